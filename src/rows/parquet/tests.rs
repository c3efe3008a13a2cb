//! Tests of reading Parquet.

use super::PARQUET;
use crate::rows::tests::{read_with, record};
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float16Array, Float32Array,
    Float64Array, Int32Array, LargeStringArray, ListArray, RecordBatch, StringArray, StringViewArray, StructArray,
    Time64MicrosecondArray, TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray,
    UInt64Array,
};
use arrow_schema::{DataType, Field};
use half::f16;
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, FixedLenByteArray, FixedLenByteArrayType, Int96, Int96Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::sync::Arc;

/// A file with these columns, in row groups of 100 rows.
fn file(columns: Vec<(&str, ArrayRef)>, compression: Compression) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(100)).set_compression(compression).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn read(columns: Vec<(&str, ArrayRef)>) -> Vec<String> {
    read_with(file(columns, Compression::SNAPPY), &PARQUET, None)
}

fn texts(texts: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(texts.to_vec()))
}

#[test]
fn every_type_of_text_is_read() {
    let expected = ["row 1: a", "row 2: !there is no \"prompt\"", "row 3: b", "row 4: "];
    let texts = [Some("a"), None, Some("b"), Some("")];
    let columns: [ArrayRef; 5] = [
        Arc::new(StringArray::from(texts.to_vec())),
        Arc::new(LargeStringArray::from(texts.to_vec())),
        Arc::new(StringViewArray::from(texts.to_vec())),
        Arc::new(texts.into_iter().collect::<DictionaryArray<Int32Type>>()),
        Arc::new(BinaryArray::from(texts.iter().map(|text| text.map(str::as_bytes)).collect::<Vec<_>>())),
    ];
    for column in columns {
        let kind = column.data_type().to_string();
        assert_eq!(read(vec![("prompt", column)]), expected, "{kind}");
    }
}

#[test]
fn rows_are_counted_through_row_groups_and_compression() {
    let prompts: Vec<String> = (1..=1000).map(|number| format!("prompt {number}")).collect();
    let expected: Vec<String> = (1..=1000).map(|number| format!("row {number}: prompt {number}")).collect();
    let level = ZstdLevel::default();
    for compression in [Compression::UNCOMPRESSED, Compression::LZ4_RAW, Compression::ZSTD(level)] {
        let column: ArrayRef = Arc::new(StringArray::from(prompts.clone()));
        let bytes = file(vec![("prompt", column)], compression);
        assert_eq!(read_with(bytes, &PARQUET, None), expected, "{compression:?}");
    }
}

#[test]
fn columns_beside_the_prompt_are_settings() {
    let bytes = file(
        vec![
            ("id", Arc::new(Int32Array::from(vec![-7]))),
            ("caption", texts(&["a red apple"])),
            ("seed", Arc::new(UInt64Array::from(vec![u64::MAX]))),
            ("guidance_scale", Arc::new(Float64Array::from(vec![2.5]))),
            ("steps", Arc::new(Int32Array::from(vec![10]))),
            ("samples", Arc::new(Int32Array::from(vec![None]))),
            ("negative_prompt", texts(&["green"])),
        ],
        Compression::SNAPPY,
    );
    let record = record(bytes, &PARQUET);
    assert_eq!(&*record.prompt, "a red apple", "the only text column that is not a setting");
    assert_eq!((record.id.as_deref(), record.seed), (Some("-7"), Some(u64::MAX)));
    assert_eq!((record.guidance_scale, record.steps, record.samples), (Some(2.5), Some(10), None));
    assert_eq!(record.negative_prompt.as_deref(), Some("green"));
}

#[test]
fn a_bad_value_spoils_its_row_alone() {
    let prompts = BinaryArray::from_vec(vec![b"a", b"\xff", b"c", b"d"]);
    let steps = Int32Array::from(vec![1, 2, 0, 4]);
    let read = read(vec![("prompt", Arc::new(prompts)), ("steps", Arc::new(steps))]);
    assert_eq!(read[0], "row 1: a");
    assert_eq!(read[1], "row 2: !the text is not UTF-8; convert the file");
    assert_eq!(read[2], "row 3: !\"steps\" must be a whole number between 1 and 2147483647, not 0");
    assert_eq!(read[3], "row 4: d");
    let read = self::read(vec![("prompt", Arc::new(BooleanArray::from(vec![true])))]);
    assert_eq!(read, ["row 1: !\"prompt\" must be text, not true"]);
}

#[test]
fn columns_that_cannot_be_used_are_refused() {
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), Some(2)])]);
    let read = read(vec![("samples", Arc::new(lists)), ("prompt", texts(&["a"]))]);
    assert_eq!(
        read,
        ["error: rows: column \"samples\" holds lists where single values are needed; rename or convert it"],
        "as in .jsonl a list is no number of samples"
    );
    let times = TimestampMillisecondArray::from(vec![0]);
    let read = self::read(vec![("seed", Arc::new(times)), ("prompt", texts(&["a"]))]);
    assert!(read[0].starts_with("error: rows: column \"seed\" is of a type that holds no numbers"), "{read:?}");
    let read = self::read(vec![("a", texts(&["x"])), ("b", texts(&["y"]))]);
    assert_eq!(read, ["error: rows has no column \"prompt\", only \"a\", \"b\"; name one with --prompt-column"]);
}

#[test]
fn a_file_that_is_not_parquet_or_truncated_is_refused() {
    let whole = file(vec![("prompt", texts(&["a red apple", "two"]))], Compression::SNAPPY);
    for bytes in [&b""[..], b"PAR1", b"a red apple\n", &whole[..whole.len() - 1], &whole[10..]] {
        let read = read_with(bytes.to_vec(), &PARQUET, None);
        let last = read.last().unwrap();
        assert!(last.starts_with("error: rows"), "{read:?}");
    }
}

#[test]
fn a_damaged_file_is_an_error_at_most() {
    let prompts: Vec<String> = (0..50).map(|number| format!("prompt {}", number % 7)).collect();
    let columns = || -> Vec<(&str, ArrayRef)> {
        let seeds = UInt64Array::from_iter((0..50).map(|number| (number % 3 > 0).then_some(number)));
        vec![("prompt", Arc::new(StringArray::from(prompts.clone()))), ("seed", Arc::new(seeds))]
    };
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
        let whole = file(columns(), compression);
        for place in 0..whole.len() {
            for mask in [0x01, 0x80] {
                let mut bytes = whole.clone();
                bytes[place] ^= mask;
                // Damage to a text's letters goes unnoticed; what matters is that reading ends.
                read_with(bytes, &PARQUET, None);
            }
        }
    }
}

/// The `id` of a row whose `id` column is this.
fn id(column: ArrayRef) -> String {
    record(file(vec![("id", column), ("prompt", texts(&["a"]))], Compression::SNAPPY), &PARQUET).id.unwrap()
}

/// A table with a column of a type that Arrow does not write.
fn stored<T: parquet::data_type::DataType>(column: &str, value: T::T, writer: &str) -> Vec<u8> {
    let schema = format!("message rows {{ required binary prompt (STRING); required {column}; }}");
    let properties = WriterProperties::builder().set_created_by(writer.into()).build();
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&[ByteArray::from("a")], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<T>().write_batch(&[value], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn ids_of_every_type_are_texts() {
    let decimal = |number, precision, scale| -> ArrayRef {
        Arc::new(Decimal128Array::from(vec![number]).with_precision_and_scale(precision, scale).unwrap())
    };
    // Stored as INT32, INT64 and FIXED_LEN_BYTE_ARRAY.
    for precision in [9, 18, 38] {
        assert_eq!(id(decimal(-150, precision, 2)), "-1.50");
        assert_eq!(id(decimal(7, precision, 0)), "7");
    }
    let huge = 10_i128.pow(37) + 1;
    assert_eq!(id(decimal(huge, 38, 0)), huge.to_string());
    assert_eq!(id(Arc::new(Date32Array::from(vec![19_724]))), "2024-01-02");
    assert_eq!(id(Arc::new(Time64MicrosecondArray::from(vec![3_723_000_004]))), "01:02:03.000004");
    assert_eq!(id(Arc::new(TimestampMillisecondArray::from(vec![1_704_164_645_250]))), "2024-01-02 03:04:05.250");
    let zoned = TimestampMicrosecondArray::from(vec![1_704_164_645_000_000]).with_timezone("Europe/Berlin");
    assert_eq!(id(Arc::new(zoned)), "2024-01-02 03:04:05+00:00");
    assert_eq!(id(Arc::new(TimestampNanosecondArray::from(vec![-1]))), "1969-12-31 23:59:59.999999999");
    assert_eq!(id(Arc::new(Float64Array::from(vec![-3.0]))), "-3");
    assert_eq!(id(Arc::new(Float32Array::from(vec![3.0]))), "3");
    assert_eq!(id(Arc::new(Float16Array::from(vec![f16::from_f32(3.0)]))), "3");
    let fixed = |column: &str, bytes: &[u8], writer| {
        let bytes = FixedLenByteArray::from(ByteArray::from(bytes.to_vec()));
        read_with(stored::<FixedLenByteArrayType>(column, bytes.clone(), writer), &PARQUET, None);
        stored::<FixedLenByteArrayType>(column, bytes, writer)
    };
    let id_of = |bytes| record(bytes, &PARQUET).id.unwrap();
    let bytes: Vec<u8> = (0x10..0x20).collect();
    let uuid = id_of(fixed("fixed_len_byte_array(16) id (UUID)", &bytes, "x"));
    assert_eq!(uuid, "10111213-1415-1617-1819-1a1b1c1d1e1f");
    let number = -(10_i128.pow(36));
    let polars = id_of(fixed("fixed_len_byte_array(16) id", &number.to_le_bytes(), "Polars (python) version 2.1.0"));
    assert_eq!(polars, number.to_string());
    let read = read_with(fixed("fixed_len_byte_array(16) id", &bytes, "x"), &PARQUET, None);
    assert!(read[0].starts_with("error: rows: column \"id\" is of a type that holds no text (FIXED_LEN"), "{read:?}");
    let spark = Int96::from(vec![500_000_000, 0, 2_440_589]);
    assert_eq!(id_of(stored::<Int96Type>("int96 id", spark, "x")), "1970-01-02 00:00:00.500");
}

#[test]
fn numbers_may_be_of_other_types() {
    let decimal = |number, scale| -> ArrayRef {
        Arc::new(Decimal128Array::from(vec![number]).with_precision_and_scale(10, scale).unwrap())
    };
    let read = |columns: Vec<(&str, ArrayRef)>| read(columns.into_iter().chain([("prompt", texts(&["a"]))]).collect());
    let bytes = file(
        vec![
            ("prompt", texts(&["a"])),
            ("seed", decimal(7, 0)),
            ("steps", decimal(100, 1)),
            ("guidance_scale", decimal(45, 1)),
            ("samples", Arc::new(Float64Array::from(vec![2.0]))),
        ],
        Compression::SNAPPY,
    );
    let record = record(bytes, &PARQUET);
    assert_eq!((record.seed, record.steps, record.guidance_scale), (Some(7), Some(10), Some(4.5)));
    assert_eq!(record.samples, Some(2));
    assert!(read(vec![("seed", decimal(75, 1))])[0].ends_with("not 7.5"));
    // A number that a shorter type may have rounded.
    let seed = |column: ArrayRef| read(vec![("seed", column)])[0].clone();
    assert_eq!(seed(Arc::new(Float32Array::from(vec![16_777_215.0]))), "row 1: a");
    for column in [
        Arc::new(Float32Array::from(vec![16_777_216.0])) as ArrayRef,
        Arc::new(Float16Array::from(vec![f16::from_f32(2048.0)])),
    ] {
        assert!(seed(column).ends_with("a float too large to be exact"));
    }
    let read = read(vec![("prompt2", texts(&["b"])), ("id", Arc::new(Float64Array::from(vec![1e300])))]);
    assert!(read[0].contains("\"id\" must be text or a whole number, not 1e300"), "{read:?}");
}

#[test]
fn nested_columns_are_refused_by_their_type() {
    let lists =
        || -> ArrayRef { Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), Some(2)])])) };
    let structs = || -> ArrayRef {
        let field = Arc::new(Field::new("text", DataType::Utf8, true));
        Arc::new(StructArray::from(vec![(field, texts(&["x"]))]))
    };
    let read = |columns, wanted| read_with(file(columns, Compression::SNAPPY), &PARQUET, wanted);
    for (column, name, values) in [(lists(), "captions", "lists"), (structs(), "captions", "structs")] {
        let named = read(vec![(name, column.clone()), ("id", texts(&["1"]))], Some(name));
        let reason = format!("error: rows: column \"captions\" holds {values} where single values are needed; ");
        assert!(named[0].starts_with(&reason) && named[0].contains("--prompt-column"), "{named:?}");
        let listed = read(vec![(name, column)], None);
        let reason = format!("error: rows has no column \"prompt\", only \"captions\" ({values}); name one with");
        assert!(listed[0].starts_with(&reason), "{listed:?}");
    }
    // Beside the prompt they do no harm.
    let beside = read(vec![("s", structs()), ("l", lists()), ("prompt", texts(&["a"])), ("m", structs())], None);
    assert_eq!(beside, ["row 1: a"]);
}

#[test]
fn every_encoding_and_compression_is_read() {
    let prompts: Vec<String> = (0..500).map(|number| format!("prompt {}", number * 7919 % 500)).collect();
    let column = || vec![("prompt", Arc::new(StringArray::from(prompts.clone())) as ArrayRef)];
    let expected: Vec<String> = prompts.iter().zip(1..).map(|(prompt, row)| format!("row {row}: {prompt}")).collect();
    for encoding in [Encoding::PLAIN, Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY] {
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(GzipLevel::default()),
            Compression::BROTLI(BrotliLevel::default()),
            Compression::LZ4_RAW,
            Compression::ZSTD(ZstdLevel::default()),
        ] {
            for version in [
                parquet::file::properties::WriterVersion::PARQUET_1_0,
                parquet::file::properties::WriterVersion::PARQUET_2_0,
            ] {
                let properties = WriterProperties::builder()
                    .set_writer_version(version)
                    .set_compression(compression)
                    .set_dictionary_enabled(false)
                    .set_encoding(encoding)
                    .set_data_page_row_count_limit(60)
                    .set_write_batch_size(20)
                    .build();
                let batch = RecordBatch::try_from_iter_with_nullable(column().into_iter().map(|(n, c)| (n, c, true)));
                let batch = batch.unwrap();
                let mut bytes = Vec::new();
                let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
                writer.write(&batch).unwrap();
                writer.close().unwrap();
                let read = read_with(bytes, &PARQUET, None);
                assert!(read == expected, "{encoding} {compression:?} {version:?}: {:?}", read.last());
            }
        }
    }
}
