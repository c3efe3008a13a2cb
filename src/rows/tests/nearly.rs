//! Files that are nearly valid: whatever is wrong with them, every row is a prompt or a bad row in its place, or the
//! file ends in an error.

use super::*;
use crate::rows::field::{Extras, Field, FieldNames, Scalar};
use ::parquet::basic::{Compression, Encoding};
use ::parquet::file::properties::WriterProperties;
use arrow_array::types::Int8Type;
use arrow_array::{
    BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float16Array, Float32Array, Int8Array,
    Int64Array, LargeStringArray, ListArray, StringViewArray, TimestampMicrosecondArray,
};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use half::f16;
use proptest::sample::select;
use serde_json::{Value, json};

/// What a table is made of where its writer takes no care.
fn any_fragment() -> impl Strategy<Value = &'static [u8]> {
    const COMMON: [&[u8]; 8] = [b"a", b"\"", b",", b"\n", b"\"\"", b"\",\"", b"\"\n", b" "];
    const RARE: [&[u8]; 9] =
        [b"\r\n", b"\r", b"\t", b";", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xef\xbb", "é".as_bytes()];
    prop_oneof![4 => select(&COMMON[..]), 1 => select(&RARE[..])]
}

/// The rows of a stream that gives so many bytes a read.
fn read_in_pieces(bytes: &[u8], size: usize, format: &'static PromptFormat) -> Vec<String> {
    let pieces = bytes.chunks(size).map(<[u8]>::to_vec).collect();
    read_stream(Dribble { pieces, given: Arc::default() }, format, None)
}

/// The values that a writer may give a key.
fn any_value() -> impl Strategy<Value = Value> {
    let numbers = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-5_i32..5).prop_map(|number| json!(f64::from(number))),
        any::<f64>().prop_map(|number| json!(number)),
        select(vec![json!(0), json!(1), json!(i32::MAX), json!(1e300), json!(-0.0), json!(0.5)]),
    ];
    let texts = prop_oneof![Just("7".to_string()), Just(String::new()), "\\PC{0,9}"].prop_map(Value::from);
    let leaf = prop_oneof![3 => numbers, 3 => texts, 1 => any::<bool>().prop_map(Value::from), 1 => Just(Value::Null)];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            inner.prop_map(|value| json!({"x": value}))
        ]
    })
}

/// Whether a value is right for a field, as the README says; null is as good as none.
fn is_right(field: Field, value: &Value) -> bool {
    let whole = || match value.as_f64() {
        Some(float) if value.is_f64() && (float.fract() != 0.0 || float.abs() >= 2_f64.powi(53)) => None,
        Some(float) if value.is_f64() => Some(float as i128),
        _ => value.as_i64().map(i128::from).or(value.as_u64().map(i128::from)),
    };
    let in_range = |range: std::ops::RangeInclusive<i128>| whole().is_some_and(|number| range.contains(&number));
    value.is_null()
        || match field {
            Field::Prompt | Field::NegativePrompt | Field::Image => value.is_string(),
            Field::Id => value.is_string() || whole().is_some(),
            Field::Seed | Field::NegativeSeed => in_range(0..=u64::MAX.into()),
            Field::Noise | Field::NegativeNoise => value.as_str().is_some_and(|text| {
                let bytes = BASE64_STANDARD.decode(text).unwrap_or(vec![0]);
                let (numbers, rest) = bytes.as_chunks();
                rest.is_empty() && numbers.iter().all(|number| f32::from_le_bytes(*number).is_finite())
            }),
            Field::GuidanceScale => value.is_number(),
            Field::Steps | Field::Samples => in_range(1..=i32::MAX.into()),
        }
}

/// A column of any type, with values that may be right or wrong for a field, and null where a number is a multiple of
/// 5.
fn column(kind: usize, numbers: &[i64]) -> ArrayRef {
    let numbers = || numbers.iter().map(|number| (number % 5 != 0).then_some(*number));
    let texts = || numbers().map(|number| number.map(|number| format!("text {number}")));
    match kind {
        0 => Arc::new(texts().collect::<StringArray>()),
        1 => Arc::new(texts().collect::<LargeStringArray>()),
        2 => Arc::new(texts().collect::<StringViewArray>()),
        3 => Arc::new(numbers().map(|number| number.map(|number| number.to_le_bytes())).collect::<BinaryArray>()),
        4 => {
            let few: Vec<Option<String>> =
                numbers().map(|number| number.map(|number| format!("{}", number % 9))).collect();
            Arc::new(few.iter().map(Option::as_deref).collect::<DictionaryArray<Int8Type>>())
        }
        5 => Arc::new(numbers().collect::<Int64Array>()),
        6 => Arc::new(numbers().map(|number| number.map(|number| number as i8)).collect::<Int8Array>()),
        7 => Arc::new(numbers().map(|number| number.map(i64::cast_unsigned)).collect::<UInt64Array>()),
        8 => Arc::new(numbers().map(|number| number.map(|number| number as f64)).collect::<Float64Array>()),
        9 => Arc::new(numbers().map(|number| number.map(|number| number as f32 / 2.0)).collect::<Float32Array>()),
        10 => Arc::new(
            numbers().map(|number| number.map(|number| f16::from_f32(number as f32))).collect::<Float16Array>(),
        ),
        11 => Arc::new(numbers().map(|number| number.map(|number| number > 0)).collect::<BooleanArray>()),
        12 => {
            let decimals: Decimal128Array = numbers().map(|number| number.map(i128::from)).collect();
            Arc::new(decimals.with_precision_and_scale(20, 1).unwrap())
        }
        13 => Arc::new(numbers().map(|number| number.map(|number| number as i32)).collect::<Date32Array>()),
        14 => Arc::new(numbers().collect::<TimestampMicrosecondArray>().with_timezone("Europe/Berlin")),
        _ => Arc::new(ListArray::from_iter_primitive::<Int8Type, _, _>(
            numbers().map(|number| number.map(|number| vec![Some(number as i8); 2])),
        )),
    }
}

const COLUMN_KINDS: usize = 16;

/// The names and types of columns, their values, and how they are written.
type TableFile = (Vec<(&'static str, usize)>, Vec<i64>, Encoding, Compression, bool);

fn any_parquet() -> impl Strategy<Value = TableFile> {
    let names = vec!["prompt", "id", "negative_prompt", "seed", "guidance_scale", "steps", "samples", "other"];
    let columns = proptest::sample::subsequence(names, 1..6)
        .prop_flat_map(|names| names.into_iter().map(|name| (Just(name), 0..COLUMN_KINDS)).collect::<Vec<_>>());
    let numbers = prop_oneof![3 => -3_i64..40, 1 => any::<i64>()];
    let encodings = vec![Encoding::PLAIN, Encoding::DELTA_BYTE_ARRAY, Encoding::DELTA_LENGTH_BYTE_ARRAY];
    let compressions = vec![Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::LZ4_RAW];
    let numbers = proptest::collection::vec(numbers, 1..90);
    (columns, numbers, select(encodings), select(compressions), any::<bool>())
}

fn write((columns, numbers, encoding, compression, has_dictionary): &TableFile) -> Vec<u8> {
    let arrays = columns.iter().map(|(name, kind)| (*name, column(*kind, numbers), true));
    let batch = RecordBatch::try_from_iter_with_nullable(arrays).unwrap();
    let mut properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(40))
        .set_data_page_row_count_limit(20)
        .set_write_batch_size(10)
        .set_compression(*compression)
        .set_dictionary_enabled(*has_dictionary);
    for ((name, kind), dictionary) in columns.iter().zip([*has_dictionary; COLUMN_KINDS]) {
        if *kind < 5 && !dictionary {
            properties = properties.set_column_encoding((*name).into(), *encoding);
        }
    }
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

proptest! {
    #[test]
    fn a_table_with_odd_quotes_has_each_row_in_its_place(
        fragments in proptest::collection::vec(any_fragment(), 0..40),
        size in 1_usize..9,
        is_tsv in any::<bool>(),
    ) {
        let (format, head) = if is_tsv { (&TSV, "prompt\tid\n") } else { (&CSV, "prompt,id\n") };
        let bytes = [head.as_bytes(), &fragments.concat()].concat();
        let read = read_with(bytes.clone(), format, None);
        let lines = 1 + bytes.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count();
        let places: Vec<usize> = read
            .iter()
            .filter(|row| !row.starts_with("error: "))
            .map(|row| row["line ".len()..].split(':').next().unwrap().parse().unwrap())
            .collect();
        prop_assert!(places.is_sorted() && places.iter().all(|line| (2..=lines).contains(line)), "{read:?}");
        // In which pieces it arrives makes no difference.
        prop_assert_eq!(&read_in_pieces(&bytes, size, format), &read);
        // Where nothing is wrong with it, the csv crate reads the same.
        let is_bad = |row: &String| row.contains(": !") || row.starts_with("error: ");
        if !is_tsv && !bytes.windows(3).any(|window| window == "\u{feff}".as_bytes()) && !read.iter().any(is_bad) {
            let mut reader = ::csv::ReaderBuilder::new().flexible(true).from_reader(&bytes[..]);
            let prompts: Vec<String> = reader.records().map(|record| record.unwrap()[0].to_string()).collect();
            let read: Vec<&str> = read.iter().map(|row| row.split_once(": ").unwrap().1).collect();
            prop_assert_eq!(read, prompts);
        }
    }

    #[test]
    fn an_object_with_odd_values_is_a_row_if_they_are_right(
        objects in proptest::collection::vec(proptest::collection::vec((0_usize..9, any_value()), 0..5), 1..9),
    ) {
        let names =
            ["prompt", "prompt", "id", "negative_prompt", "seed", "guidance_scale", "steps", "samples", "other"];
        let mut text = String::from("{\"prompt\": \"\"}\n");
        let mut expected = vec![true];
        for object in &objects {
            let pairs: Vec<(&str, &Value)> = object.iter().map(|(name, value)| (names[*name], value)).collect();
            let keys: Vec<String> = pairs.iter().map(|(name, value)| format!("{name:?}: {value}")).collect();
            text += &format!("{{{}}}\n", keys.join(", "));
            let field = |name: &str| FieldNames { prompt: "prompt", extras: Extras::default() }.field(name);
            let known = || pairs.iter().filter_map(|(name, value)| Some((field(name)?, *value)));
            let is_unique = known().all(|(field, _)| known().filter(|(other, _)| *other == field).count() == 1);
            let has_prompt = known().any(|(field, value)| field == Field::Prompt && value.is_string());
            expected.push(is_unique && has_prompt && known().all(|(field, value)| is_right(field, value)));
        }
        let read = read_with(text.clone(), &JSONL, None);
        let good: Vec<bool> = read.iter().map(|row| !row.contains(": !")).collect();
        prop_assert_eq!(good, expected, "{}{:?}", text, read);
    }

    #[test]
    fn a_cell_is_a_number_where_json_has_the_same(number in prop_oneof![any::<f64>(), (-9_i8..9).prop_map(f64::from)]) {
        let text = json!(number).to_string();
        if let Ok(Value::Number(number)) = serde_json::from_str(&text) {
            let cell = Scalar::of_cell(Field::GuidanceScale, &text);
            prop_assert_eq!(cell, Scalar::double(number.as_f64().unwrap()));
        }
    }

    #[test]
    fn a_parquet_file_with_odd_columns_has_all_its_rows_or_is_refused(file in any_parquet()) {
        let (columns, numbers, ..) = &file;
        let read = read_with(write(&file), &PARQUET, None);
        if read[0].starts_with("error: ") {
            prop_assert_eq!(read.len(), 1);
            let reasons = ["no column", "that holds no", "single values"];
            prop_assert!(reasons.iter().any(|reason| read[0].contains(reason)), "{read:?}");
            return Ok(());
        }
        prop_assert_eq!(read.len(), numbers.len(), "{:?}: {:?}", columns, read);
        for (row, line) in read.iter().enumerate() {
            prop_assert!(line.starts_with(&format!("row {}: ", row + 1)), "{line}");
        }
        // Without other columns, a row is as its prompt is.
        if let [("prompt", 0..=2)] = columns[..] {
            for (number, line) in numbers.iter().zip(&read) {
                let is_null = number % 5 == 0;
                let expected = if is_null { "!there is no \"prompt\"".into() } else { format!("text {number}") };
                prop_assert!(line.ends_with(&format!(": {expected}")), "{line}");
            }
        }
    }

    #[test]
    fn a_damaged_parquet_file_comes_to_an_end(
        file in any_parquet(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = write(&file);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let read = read_with(bytes, &PARQUET, None);
        let errors = read.iter().filter(|row| row.starts_with("error: ")).count();
        prop_assert!(errors == 0 || errors == 1 && read.last().unwrap().starts_with("error: "), "{read:?}");
    }
}
