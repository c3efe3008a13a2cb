//! Tests of what the formats have in common, and helpers for the formats' own tests.

mod dialects;
mod nearly;

use super::csv::{CSV, TSV};
use super::formats::format_of_path;
use super::input::Input;
use super::jsonl::JSONL;
use super::parquet::PARQUET;
use super::txt::TXT;
use super::*;
use ::parquet::arrow::ArrowWriter;
use anyhow::Result;
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array};
use flate2::write::GzEncoder;
use proptest::prelude::*;
use std::io::{self, Cursor, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Reads a stream named `rows` to a line for each row: `PLACE: PROMPT`, `PLACE: !REASON` or `error: MESSAGE`.
pub(super) fn read_stream(
    stream: impl Read + Send + 'static,
    format: &'static PromptFormat,
    prompt_column: Option<&str>,
) -> Vec<String> {
    let options = ReadOptions { prompt_column: prompt_column.map(str::to_string), ..ReadOptions::default() };
    let reader = PromptReader::of_input(Input::of_stream("rows", stream), format, options);
    reader.map_or_else(|error| vec![summary(Err(error))], |reader| reader.map(summary).collect())
}

/// [`read_stream`] of these bytes.
pub(super) fn read_with(
    bytes: impl Into<Vec<u8>>,
    format: &'static PromptFormat,
    prompt_column: Option<&str>,
) -> Vec<String> {
    read_stream(Cursor::new(bytes.into()), format, prompt_column)
}

/// The only record of these bytes.
pub(super) fn record(bytes: impl Into<Vec<u8>>, format: &'static PromptFormat) -> PromptRecord {
    let records = records(bytes.into(), format);
    assert_eq!(records.len(), 1);
    records.into_iter().next().unwrap()
}

fn records(bytes: Vec<u8>, format: &'static PromptFormat) -> Vec<PromptRecord> {
    let input = Input::of_stream("rows", Cursor::new(bytes));
    let reader = PromptReader::of_input(input, format, ReadOptions::default()).unwrap();
    let record_of = |entry: Result<PromptRow>| match entry.unwrap() {
        PromptRow::Prompt { record, .. } => record,
        PromptRow::Bad(row) => panic!("{row}"),
    };
    reader.map(record_of).collect()
}

fn summary(row: Result<PromptRow>) -> String {
    match row {
        Ok(PromptRow::Prompt { place, record }) => format!("{place}: {}", record.prompt),
        Ok(PromptRow::Bad(row)) => format!("{}: !{}", row.place, row.reason),
        Err(error) => {
            assert_eq!(crate::cli::errors::exit_code(&error), 2, "{error:#}");
            format!("error: {error}")
        }
    }
}

/// A stream that gives one piece a read, and counts the reads.
pub(super) struct Dribble {
    pieces: Vec<Vec<u8>>,
    given: Arc<AtomicUsize>,
}

impl Dribble {
    /// Asserts that the first row is returned as soon as `needed` of the pieces have arrived.
    pub(super) fn check(pieces: &[impl AsRef<[u8]>], format: &'static PromptFormat, needed: usize, entry: &str) {
        let given = Arc::new(AtomicUsize::new(0));
        let stream =
            Self { pieces: pieces.iter().map(|piece| piece.as_ref().to_vec()).collect(), given: given.clone() };
        let mut reader =
            PromptReader::of_input(Input::of_stream("rows", stream), format, ReadOptions::default()).unwrap();
        assert_eq!(given.load(Ordering::SeqCst), 0, "reading began before the first row was asked for");
        assert_eq!(summary(reader.next().unwrap()), entry);
        assert_eq!(given.load(Ordering::SeqCst), needed, "pieces read for {entry:?}");
        assert_eq!(reader.count(), pieces.len() - needed);
    }
}

impl Read for Dribble {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let place = self.given.fetch_add(1, Ordering::SeqCst);
        let Some(piece) = self.pieces.get(place) else { return Ok(0) };
        buffer[..piece.len()].copy_from_slice(piece);
        Ok(piece.len())
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 0).unwrap()
}

fn utf16(text: &str, bytes_of: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let with_mark = format!("\u{feff}{text}");
    with_mark.encode_utf16().flat_map(bytes_of).collect()
}

#[test]
fn a_line_is_a_prompt_without_its_end() {
    let read = read_with("a red apple\r\n\n  \n two  spaces \nmany\r\r\nand é\r", &TXT, None);
    assert_eq!(read, ["line 1: a red apple", "line 4:  two  spaces ", "line 5: many", "line 6: and é"]);
    assert!(read_with("", &TXT, None).is_empty());
    assert!(read_with("\n\n", &TXT, None).is_empty());
}

#[test]
fn a_line_that_is_not_utf8_is_a_bad_row() {
    let read = read_with(b"fine\nbad \xff\xfe\n\x80\ngood\n".to_vec(), &TXT, None);
    let reason = |byte| format!("!the line is not UTF-8 from byte {byte} on; convert the file");
    assert_eq!(
        read,
        ["line 1: fine", &format!("line 2: {}", reason(5)), &format!("line 3: {}", reason(1)), "line 4: good"]
    );
}

#[test]
fn encodings_with_a_byte_order_mark_are_decoded() {
    let text = "a red äpple\r\n😀\n";
    let expected = ["line 1: a red äpple", "line 2: 😀"];
    for bytes in [format!("\u{feff}{text}").into_bytes(), utf16(text, u16::to_le_bytes), utf16(text, u16::to_be_bytes)]
    {
        assert_eq!(read_with(bytes.clone(), &TXT, None), expected);
        assert_eq!(read_with(gzip(&bytes), &TXT, None), expected);
    }
    let mut broken = utf16("good\nbad", u16::to_le_bytes);
    broken.extend(b"\x00\xd8\n\x00a\x00");
    let reason = "!the line is not UTF-8 from byte 4 on; convert the file";
    assert_eq!(read_with(broken, &TXT, None), ["line 1: good", &format!("line 2: {reason}"), "line 3: a"]);
    let csv = read_with(utf16("prompt\ta\nä\t1\n", u16::to_le_bytes), &TSV, None);
    assert_eq!(csv, ["line 2: ä"]);
}

#[test]
fn compressed_streams_are_known_by_their_magic_numbers() {
    for compress in [gzip, zstd] {
        let mut bytes = compress(b"one\ntw");
        bytes.extend(compress(b"o\nthree\n"));
        assert_eq!(read_with(bytes, &TXT, None), ["line 1: one", "line 2: two", "line 3: three"]);
        assert_eq!(read_with(compress(b"prompt\none\n"), &CSV, None), ["line 2: one"]);
    }
    // The start of a magic number, and then something else.
    let read = read_with(b"(\n\x1f\n(\xb5\n".to_vec(), &TXT, None);
    assert_eq!(read[..2], ["line 1: (", "line 2: \x1f"]);
}

#[test]
fn a_truncated_compressed_stream_is_an_error_after_the_rows_before() {
    let text: String = (1..=20_000).map(|number| format!("prompt {}\n", number * 7919 % 10_007)).collect();
    for (compress, name) in [(gzip as fn(&[u8]) -> Vec<u8>, "gzip"), (zstd, "zstd")] {
        for (format, text) in [(&TXT, text.clone()), (&CSV, format!("prompt\n{text}"))] {
            let whole = compress(text.as_bytes());
            let read = read_with(whole[..whole.len() - 2].to_vec(), format, None);
            let (last, before) = read.split_last().unwrap();
            assert!(last.starts_with("error: rows: line "), "{last}");
            let end = format!(": the {name} data are damaged or end too early; get the whole file again");
            assert!(last.ends_with(&end), "{last}");
            assert!(before.len() <= 20_000 && before.iter().all(|line| line.contains(": prompt ")), "{format:?}");
        }
        let mut damaged = compress(text.as_bytes());
        let middle = damaged.len() / 2;
        damaged[middle..middle + 64].fill(0xaa);
        assert!(read_with(damaged, &TXT, None).last().unwrap().starts_with("error: rows: line "));
        let start = compress(b"a\n")[..5].to_vec();
        assert!(read_with(start, &TXT, None)[0].starts_with("error: rows: line 1: the "));
    }
}

#[test]
fn a_line_that_is_too_long_is_a_bad_row() {
    let too_long = "x".repeat(lines::MAX_BYTES + 1);
    let longest = &too_long[1..];
    let reason = "!the line is longer than 16 MiB";
    for format in [&TXT, &JSONL] {
        let read = read_with(format!("{too_long}\n{{\"prompt\": \"a\"}}\n{too_long}"), format, None);
        assert_eq!(
            (read.len(), &*read[0], &*read[2]),
            (3, &*format!("line 1: {reason}"), &*format!("line 3: {reason}"))
        );
    }
    let read = read_with(format!("{longest}\nb"), &TXT, None);
    assert_eq!((read[0].len(), &*read[1]), ("line 1: ".len() + lines::MAX_BYTES, "line 2: b"));
    // The first row of an endless line is returned without waiting for its end.
    let input = Input::of_stream("rows", io::repeat(b'x'));
    let first = PromptReader::of_input(input, &TXT, ReadOptions::default()).unwrap().next().unwrap();
    assert_eq!(summary(first), format!("line 1: {reason}"));
}

#[test]
fn a_row_is_returned_as_soon_as_its_line_has_arrived() {
    Dribble::check(&["a\n", "b\n"], &TXT, 1, "line 1: a");
    Dribble::check(&["(\n", "b\n"], &TXT, 1, "line 1: (");
    Dribble::check(&["a", "b\n", "c\n"], &TXT, 2, "line 1: ab");
    Dribble::check(&["{\"prompt\": \"a\"}\r\n", "{\"prompt\": \"b\"}\n"], &JSONL, 1, "line 1: a");
    Dribble::check(&[&utf16("a\n", u16::to_le_bytes)[..], b"b\0\n\0"], &TXT, 1, "line 1: a");
    for compress in [gzip, zstd] {
        // A member for each line, as a process writes that flushes after each.
        Dribble::check(&[compress(b"a\n"), compress(b"b\n")], &TXT, 1, "line 1: a");
    }
}

#[test]
fn a_file_name_tells_the_format() {
    for (name, format) in [
        ("-", &TXT),
        ("/dev/fd/63", &TXT),
        ("a.txt", &TXT),
        ("a.b/c.TXT.GZ", &TXT),
        ("a.jsonl.zst", &JSONL),
        ("a.ndjson", &JSONL),
        ("a.csv", &CSV),
        ("a.csv.gz", &CSV),
        ("a.tsv", &TSV),
        ("a.gz", &TXT),
        ("a.parquet", &PARQUET),
    ] {
        assert_eq!(format_of_path(Path::new(name), name).unwrap(), format, "{name}");
    }
    let error = format_of_path(Path::new("captions.pdf.gz"), "x.pdf").unwrap_err();
    assert!(error.to_string().contains(".pdf") && error.to_string().contains("--format-in"), "{error}");
    assert!(error.to_string().ends_with("--format-in txt, jsonl, csv, tsv or parquet"), "{error}");
}

#[test]
fn files_are_checked_when_they_are_opened() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let open = |path: &Path, format| {
        PromptReader::open(&path.to_path_buf().into(), &ReadOptions { format, ..ReadOptions::default() })
    };
    let refused = |path: &Path, format| {
        let error = open(path, format).err().unwrap();
        assert_eq!(crate::cli::errors::exit_code(&error), 2);
        error.to_string()
    };
    let read = |path: &Path| open(path, None).unwrap().map(summary).collect::<Vec<_>>();
    assert_eq!(read(&path("a.csv.gz", &gzip(b"prompt\na\n"))), ["line 2: a"]);
    assert_eq!(read(&path("a.jsonl.zst", &zstd(b"{\"prompt\": \"a\"}\n"))), ["line 1: a"]);
    let odd = path("a.dat", b"a\tprompt\n1\tx\n");
    let reader = open(&odd, Some(&TSV)).unwrap();
    assert_eq!(reader.name(), odd.display().to_string());
    assert_eq!(reader.map(summary).collect::<Vec<_>>(), ["line 2: x"]);
    assert!(refused(&path("b.csv", b"x,y\n"), None).contains("\"x\", \"y\""), "before the first entry is asked for");
    assert!(refused(&path("c.txt.gz", b"not gzip"), None).contains("line 1: the gzip data are damaged"));
    assert!(refused(&path("d.parquet.gz", b""), None).contains("unpack it"));
    assert!(refused(folder.path(), None).contains("is a folder"));
    assert!(refused(&folder.path().join("none.txt"), None).contains("cannot read the prompts file"));
    let options = ReadOptions { prompt_column: Some("caption".into()), ..ReadOptions::default() };
    let error = PromptReader::open(&path("e.txt", b"a\n").into(), &options).err().unwrap();
    assert!(error.to_string().contains("--prompt-column"), "{error}");
    assert!(read(&path("f.txt", b"\n \r\n")).is_empty());
}

#[test]
fn a_reader_is_send() {
    fn check<T: Send>() {}
    check::<PromptReader>();
}

/// A record with settings, whose prompt is one line.
fn any_record() -> impl Strategy<Value = PromptRecord> {
    let id = proptest::option::of("\\PC{1,8}");
    let numbers = (proptest::option::of(any::<u64>()), proptest::option::of(-1e6..1e6));
    (id, "[^\\x00\\r\\n\u{feff}]{0,20}", numbers).prop_map(|(id, prompt, (seed, guidance_scale))| PromptRecord {
        id,
        prompt: prompt.into(),
        seed,
        guidance_scale,
        ..PromptRecord::default()
    })
}

fn as_jsonl(records: &[PromptRecord]) -> Vec<u8> {
    let line = |record: &PromptRecord| {
        let PromptRecord { id, prompt, seed, guidance_scale, .. } = record;
        let prompt = &**prompt;
        let object = serde_json::json!({
            "prompt": prompt, "id": id, "seed": seed, "guidance_scale": guidance_scale, "x": [1]
        });
        format!("{object}\n")
    };
    records.iter().map(line).collect::<String>().into_bytes()
}

fn as_table(records: &[PromptRecord], delimiter: u8) -> Vec<u8> {
    let mut writer = ::csv::WriterBuilder::new().delimiter(delimiter).from_writer(Vec::new());
    writer.write_record(["seed", "prompt", "id", "guidance_scale"]).unwrap();
    for PromptRecord { id, prompt, seed, guidance_scale, .. } in records {
        let [seed, scale] = [seed.map(|seed| seed.to_string()), guidance_scale.map(|scale| format!("{scale:?}"))]
            .map(Option::unwrap_or_default);
        writer.write_record([&*seed, prompt, id.as_deref().unwrap_or_default(), &scale]).unwrap();
    }
    writer.into_inner().unwrap()
}

fn as_parquet(records: &[PromptRecord]) -> Vec<u8> {
    let prompts: StringArray = records.iter().map(|record| Some(&*record.prompt)).collect();
    let ids: StringArray = records.iter().map(|record| record.id.as_deref()).collect();
    let seeds: UInt64Array = records.iter().map(|record| record.seed).collect();
    let scales: Float64Array = records.iter().map(|record| record.guidance_scale).collect();
    let columns: [(&str, ArrayRef); 4] = [
        ("id", Arc::new(ids)),
        ("guidance_scale", Arc::new(scales)),
        ("prompt", Arc::new(prompts)),
        ("seed", Arc::new(seeds)),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

proptest! {
    #[test]
    fn all_formats_give_the_same_records(written in proptest::collection::vec(any_record(), 1..80)) {
        prop_assert_eq!(&records(as_jsonl(&written), &JSONL), &written);
        prop_assert_eq!(&records(as_table(&written, b','), &CSV), &written);
        prop_assert_eq!(&records(as_table(&written, b'\t'), &TSV), &written);
        prop_assert_eq!(&records(as_parquet(&written), &PARQUET), &written);
        let prompts: Vec<&str> = written.iter().map(|record| &*record.prompt).collect();
        let read = records(prompts.join("\n").into_bytes(), &TXT);
        let read: Vec<&str> = read.iter().map(|record| &*record.prompt).collect();
        let not_blank: Vec<&str> = prompts.into_iter().filter(|prompt| !prompt.trim().is_empty()).collect();
        prop_assert_eq!(read, not_blank);
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), head in 0_usize..6) {
        let heads: [&[u8]; 6] = [b"", b"prompt\n", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xff\xfe", b"PAR1"];
        for format in FORMATS {
            read_with([heads[head], &bytes].concat(), format, None);
        }
    }
}
