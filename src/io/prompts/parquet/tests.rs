//! Tests of reading Parquet.

use crate::io::prompts::PromptFormat;
use crate::io::prompts::tests::{read_with, record};
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int32Array, LargeStringArray, ListArray,
    RecordBatch, StringArray, StringViewArray, TimestampMillisecondArray, UInt64Array,
};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
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
    read_with(file(columns, Compression::SNAPPY), PromptFormat::Parquet, None)
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
        assert_eq!(read_with(bytes, PromptFormat::Parquet, None), expected, "{compression:?}");
    }
}

#[test]
fn columns_beside_the_prompt_are_its_options() {
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
    let record = record(bytes, PromptFormat::Parquet);
    assert_eq!(&*record.prompt, "a red apple", "the only text column that is not an option's");
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
    assert_eq!(read[1], "row 2: !a text is not UTF-8; convert the file");
    assert_eq!(read[2], "row 3: !\"steps\" must be a whole number between 1 and 2147483647, and it is 0");
    assert_eq!(read[3], "row 4: d");
    let read = self::read(vec![("prompt", Arc::new(BooleanArray::from(vec![true])))]);
    assert_eq!(read, ["row 1: !\"prompt\" must be a text, and it is true"]);
}

#[test]
fn columns_of_no_use_are_passed_over_or_named() {
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), Some(2)])]);
    let read = read(vec![("samples", Arc::new(lists)), ("prompt", texts(&["a"]))]);
    assert_eq!(read, ["row 1: a"], "a list is no number of samples");
    let times = TimestampMillisecondArray::from(vec![0]);
    let read = self::read(vec![("seed", Arc::new(times)), ("prompt", texts(&["a"]))]);
    assert!(read[0].starts_with("error: rows: column \"seed\" is of a type that"), "{read:?}");
    let read = self::read(vec![("a", texts(&["x"])), ("b", texts(&["y"]))]);
    assert_eq!(read, ["error: rows has no column \"prompt\", only \"a\", \"b\"; name one with --prompt-column"]);
}

#[test]
fn a_file_that_is_no_parquet_or_cut_short_is_refused() {
    let whole = file(vec![("prompt", texts(&["a red apple", "two"]))], Compression::SNAPPY);
    for bytes in [&b""[..], b"PAR1", b"a red apple\n", &whole[..whole.len() - 1], &whole[10..]] {
        let read = read_with(bytes.to_vec(), PromptFormat::Parquet, None);
        let last = read.last().unwrap();
        assert!(last.starts_with("error: rows"), "{read:?}");
    }
}

#[test]
fn a_damaged_file_comes_to_an_end_and_never_panics() {
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
                // Damage may go unseen, as in a text's letters; that there is an end is what counts.
                read_with(bytes, PromptFormat::Parquet, None);
            }
        }
    }
}
