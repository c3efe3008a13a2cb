//! Tests of files as other programs write them: delimiters, encodings, line ends, compression.

use super::*;
use crate::rows::encoding::Encoding;
use crate::rows::encoding::tests::{ALL, encode};
use ::csv::{QuoteStyle, Terminator, WriterBuilder};

const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// An encoding and compression of a text.
#[derive(Debug, Clone, Copy)]
struct Wrapping {
    encoding: usize,
    has_mark: bool,
    compression: usize,
}

impl Wrapping {
    fn encoding(self) -> Encoding {
        ALL[self.encoding]
    }

    fn wrap(self, text: &str) -> Vec<u8> {
        let mark = if self.has_mark { "\u{feff}" } else { "" };
        let bytes = encode(&format!("{mark}{text}"), self.encoding());
        let half = bytes.len() / 2;
        match self.compression {
            0 => bytes,
            1 => [gzip(&bytes[..half]), vec![0; 7], gzip(&bytes[half..]), vec![0; 512]].concat(),
            _ => [zstd(&bytes[..half]), zstd(&bytes[half..])].concat(),
        }
    }
}

fn any_wrapping() -> impl Strategy<Value = Wrapping> {
    (0..ALL.len(), any::<bool>(), 0_usize..3).prop_map(|(encoding, has_mark, compression)| Wrapping {
        encoding,
        has_mark,
        compression,
    })
}

fn read_options(
    bytes: impl Into<Vec<u8>>,
    format: &'static PromptFormat,
    options: ReadOptions,
) -> (Vec<String>, Vec<Notice>) {
    let input = Input::of_stream("rows", Cursor::new(bytes.into()));
    let mut reader = PromptReader::of_input(input, format, options).unwrap();
    let entries = reader.by_ref().map(summary).collect();
    (entries, reader.take_notices())
}

fn without_header(text: &str, format: &'static PromptFormat, column: Option<&str>) -> Vec<String> {
    let options = ReadOptions { prompt_column: column.map(str::to_string), no_header: true, ..ReadOptions::default() };
    read_options(text, format, options).0
}

fn notes(text: &str, format: &'static PromptFormat) -> Vec<String> {
    let (_, notices) = read_options(text, format, ReadOptions::default());
    notices.into_iter().map(|notice| format!("{}{}", if notice.is_warning { "!" } else { "" }, notice.text)).collect()
}

proptest! {
    #[test]
    fn a_table_has_the_same_rows_in_any_dialect(
        cells in proptest::collection::vec(("[^\0\r\n\u{feff}]{0,12}", "[^\0\r\n\u{feff}]{1,6}", any::<u64>()), 1..20),
        delimiter in 0_usize..4,
        quotes in 0_usize..3,
        ending in 0_usize..3,
        is_tsv in any::<bool>(),
        is_told in any::<bool>(),
        joined in 0_usize..20,
        wrapping in any_wrapping(),
    ) {
        let write = |rows: &[(String, String, u64)]| {
            let mut writer = WriterBuilder::new()
                .delimiter(DELIMITERS[delimiter])
                .quote_style([QuoteStyle::Necessary, QuoteStyle::Always, QuoteStyle::NonNumeric][quotes])
                .terminator([Terminator::Any(b'\n'), Terminator::CRLF, Terminator::Any(b'\r')][ending])
                .from_writer(Vec::new());
            writer.write_record(["prompt", "id", "seed"]).unwrap();
            for (prompt, id, seed) in rows {
                writer.write_record([prompt, id, &seed.to_string()]).unwrap();
            }
            String::from_utf8(writer.into_inner().unwrap()).unwrap()
        };
        let (first, second) = cells.split_at(joined.min(cells.len()));
        let mut text = write(first);
        if is_told {
            let end = ["\n", "\r\n", "\r"][ending];
            text = format!("sep={}{end}{text}", char::from(DELIMITERS[delimiter]));
        }
        if !second.is_empty() {
            // As `cat` joins files with byte order marks.
            text = format!("{text}\u{feff}{}", write(second));
        }
        let expected: Vec<PromptRecord> = cells
            .iter()
            .map(|(prompt, id, seed)| PromptRecord {
                prompt: prompt.as_str().into(),
                id: Some(id.clone()),
                seed: Some(*seed),
                ..PromptRecord::default()
            })
            .collect();
        let format = if is_tsv { &TSV } else { &CSV };
        prop_assert_eq!(records(wrapping.wrap(&text), format), expected, "{:?}", text);
    }

    #[test]
    fn lines_are_the_same_in_any_dialect(
        lines in proptest::collection::vec("[^\0\r\n\u{feff}]{0,20}", 1..20),
        ending in 0_usize..3,
        joined in 0_usize..20,
        wrapping in any_wrapping(),
    ) {
        let end = ["\n", "\r\n", "\r"][ending];
        // Without a mark, the encoding is detected by the first line.
        let all: Vec<String> = std::iter::once("a red apple".to_string()).chain(lines).collect();
        let line = |(number, line): (usize, &String)| {
            format!("{}{line}{end}", if number > 0 && number == joined { "\u{feff}" } else { "" })
        };
        let text: String = all.iter().enumerate().map(line).collect();
        let expected: Vec<&String> = all.iter().filter(|line| !line.trim().is_empty()).collect();
        let read = records(wrapping.wrap(&text), &TXT);
        let read: Vec<String> = read.iter().map(|record| record.prompt.to_string()).collect();
        prop_assert_eq!(read.iter().collect::<Vec<_>>(), expected);
        let json = |(number, line): (usize, &String)| {
            let mark = if number > 0 && number == joined { "\u{feff}" } else { "" };
            format!("{mark}{}{end}", serde_json::json!({"caption": line, "seed": number as f64}))
        };
        let text: String = all.iter().enumerate().map(json).collect();
        let read = records(wrapping.wrap(&text), &JSONL);
        prop_assert_eq!(read.iter().map(|record| record.prompt.to_string()).collect::<Vec<_>>(), all.clone());
        prop_assert!(read.iter().zip(0..).all(|(record, number)| record.seed == Some(number)));
    }
}

#[test]
fn another_delimiter_is_detected_where_it_is_unambiguous() {
    for (text, expected) in [
        ("prompt;id\na, b;1\n", "line 2: a, b"),
        ("id|prompt\n1|a; b\n", "line 2: a; b"),
        ("prompt\tid\na\t1\n", "line 2: a"),
        ("sep=;\nprompt;id\na;1\n", "line 3: a"),
        ("\"sep=|\"\r\nid|prompt\r\n1|a\r\n", "line 3: a"),
        ("SEP=\t\nid\tprompt\n1\ta\n", "line 3: a"),
        ("seed;caption\n7;a\n", "line 2: a"),
        ("\n\nprompt;id\na;1\n", "line 4: a"),
        ("\"prompt\";\"an id, or none\"\na;1\n", "line 2: a"),
        // Not within a name or a cell.
        ("prompt\na; b\n", "line 2: a; b"),
        ("prompt,\"a; b\"\na; b,1\n", "line 2: a; b"),
        ("prompt,a;b\nx,1\n", "line 2: x"),
    ] {
        assert_eq!(read_with(text, &CSV, None), [expected], "{text:?}");
    }
    assert_eq!(read_with("prompt,id\na\tb,1\n", &TSV, None), ["line 2: a\tb"]);
    assert_eq!(read_with("the caption, as it is\na\n", &TSV, Some("the caption, as it is")), ["line 2: a"]);
    let cells = read_with("prompt;id\na;1\nb;2;3\n", &CSV, None);
    assert_eq!(cells, ["line 2: a", "line 3: !3 cells where the header has 2"], "all rows are cut alike");
}

#[test]
fn an_ambiguous_delimiter_is_refused() {
    for text in ["caption;x,id\na;b,1\n", "a;b|c\n1;2|3\n", "prompt;a|prompt\nx;y|z\n"] {
        let read = read_with(text, &CSV, None);
        assert!(read.len() == 1 && read[0].contains(" could both separate the columns of "), "{read:?}");
        assert!(read[0].contains("sep="), "{read:?}");
    }
    let read = read_with("a;b\n1;2\n", &CSV, None);
    assert!(read[0].contains("has no column \"prompt\", only \"a\", \"b\""), "{read:?}");
    assert_eq!(read_with("a;b\n1;2\n", &CSV, Some("b")), ["line 2: 2"]);
}

#[test]
fn a_table_may_have_no_header() {
    let csv = |text: &str, column| without_header(text, &CSV, column);
    assert_eq!(csv("a\n\"b, c\"\n", None), ["line 1: a", "line 2: b, c"]);
    assert_eq!(csv("1,a\n2,b\n", Some("2")), ["line 1: a", "line 2: b"]);
    assert_eq!(csv("sep=;\n1;a\n2;b\n", Some("2")), ["line 2: a", "line 3: b"]);
    assert_eq!(csv("1,a\n2\n", Some("2")), ["line 1: a", "line 2: !1 cells where the first line has 2"]);
    assert!(csv("\"a\"x,1\nb,2\n", Some("1"))[0].starts_with("error: rows: line 1: in the first line a cell goes on"));
    assert!(csv("", None).is_empty());
    for (text, column) in [("1,a\n", None), ("1,a\n", Some("3")), ("1,a\n", Some("0")), ("1,a\n", Some("prompt"))] {
        let read = csv(text, column);
        assert!(read[0].contains("--prompt-column 1 to 2"), "{read:?}");
    }
    assert!(csv("a;b\n", None)[0].contains("could both separate"));
    assert_eq!(without_header("a\t1\nb\t2\n", &TSV, Some("1")), ["line 1: a", "line 2: b"]);
    for format in [&TXT, &JSONL, &PARQUET] {
        let options = ReadOptions { no_header: true, ..ReadOptions::default() };
        let error = PromptReader::of_input(Input::of_stream("rows", io::empty()), format, options).err().unwrap();
        assert!(error.to_string().contains("--no-header: rows is read as "), "{error}");
    }
}

#[test]
fn joined_tables_have_one_header() {
    let joined = "prompt,id\na,1\n\u{feff}prompt,id\nb,2\n\u{feff}\u{feff}\"prompt\",id\nc,3";
    assert_eq!(read_with(joined, &CSV, None), ["line 2: a", "line 4: b", "line 6: c"]);
    let read = read_with("prompt,id\na,1\n\u{feff}id,prompt\n2,b\n", &CSV, None);
    assert_eq!(read.len(), 2, "no cell is read from the wrong column: {read:?}");
    assert!(read[1].starts_with("error: rows: line 3: there is a byte order mark"), "{read:?}");
    assert_eq!(without_header("a,1\n\u{feff}b,2\n", &CSV, Some("1")), ["line 1: a", "line 2: b"]);
    assert_eq!(read_with("prompt\n\u{feff}", &CSV, None), Vec::<String>::new());
}

#[test]
fn lines_with_other_ends_are_split_or_refused() {
    let text = |text: &str| read_with(text, &TXT, None);
    assert_eq!(text("a\rb\r"), ["line 1: a", "line 2: b"]);
    assert_eq!(text("a\r"), ["line 1: a"]);
    let long = "x".repeat(70_000);
    assert_eq!(text(&format!("{long}\r\nb\r\n")).len(), 2);
    assert_eq!(text(&format!("{}\r\nb\r\n", &long[..65_535])), [&format!("line 1: {}", &long[..65_535]), "line 2: b"]);
    for mixed in ["a\rb\nc\n", "a\nb\rc\nd\n"] {
        let read = text(mixed);
        assert!(read.iter().any(|entry| entry.contains("!the line holds a carriage return")), "{read:?}");
    }
    assert_eq!(
        read_with("{\"prompt\":\"a\"}\r{\"prompt\":\r\"b\"}\n", &JSONL, None)[0],
        "line 1: !the line is not a JSON object: trailing characters (column 16)"
    );
    let windows_behind: String = format!("a\r{}\rb\r\nc\r", "x".repeat(65_536));
    assert_eq!(text(&windows_behind).len(), 4, "line feeds behind the ends that were found");
}

#[test]
fn nuls_are_refused() {
    for (text, format) in [
        ("a\nb \0 and more text\nc\n", &TXT),
        ("{\"prompt\": \"a\"}\n{\"prompt\": \"b\0\"}\n{\"prompt\": \"c\"}\n", &JSONL),
        ("a,prompt\n1,a\n\0,b\n3,c\n", &CSV),
    ] {
        let read = read_with(text, format, None);
        let bad = read.iter().position(|entry| entry.contains("holds a NUL, which no text has")).unwrap();
        assert_eq!((read.len(), bad), (3, 1), "{read:?}");
    }
    assert!(read_with("pro\0mpt,a\nb,c\n", &CSV, None)[0].starts_with("error: rows: line 1: in the header"));
}

#[test]
fn notices_say_how_a_file_is_read() {
    let column = "the prompts of rows are in column";
    assert_eq!(notes("prompt,id\na,1\n", &CSV), [format!("{column} \"prompt\"")]);
    let separated = format!("{column} \"caption\", and ';' separates the columns");
    assert_eq!(notes("caption;id\na;1\n", &CSV), [separated]);
    assert_eq!(notes("{\"x\": \"a\"}\n", &JSONL), ["the prompts of rows have the key \"x\""]);
    assert_eq!(notes("a\n", &TXT), Vec::<String>::new());
    assert_eq!(notes("a\rb", &TXT), ["the lines of rows end in carriage returns"]);
    let warned = notes("a\nb\u{feff}c\nd\u{feff}e\n", &TXT);
    assert!(warned.len() == 1 && warned[0].starts_with("!rows: line 2: there is a byte order mark"), "{warned:?}");
    let (_, notices) = read_options(encode("a\nb\n", ALL[2]), &TXT, ReadOptions::default());
    assert_eq!(notices[0].text, "rows is UTF-16BE without a byte order mark");
    let options = ReadOptions { prompt_column: Some("2".into()), no_header: true, ..ReadOptions::default() };
    assert_eq!(read_options("1,a\n", &CSV, options).1[0].text, "the prompts of rows are in column 2");
    assert_eq!(notes("\"prompt\"\n", &CSV).len(), 1, "also without rows");
}

#[test]
fn the_sample_of_a_file_is_longer_than_that_of_a_stream() {
    // The first line has no NUL in it.
    let bytes = encode("一个红苹果\n两只猫\n", ALL[1]);
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("p.txt");
    std::fs::write(&path, &bytes).unwrap();
    let read: Vec<String> = PromptReader::open(&path.into(), &ReadOptions::default()).unwrap().map(summary).collect();
    assert_eq!(read, ["line 1: 一个红苹果", "line 2: 两只猫"]);
    let read = read_with(bytes, &TXT, None);
    assert!(read.iter().any(|entry| entry.contains('!')), "nothing of it passes for text: {read:?}");
}

#[test]
fn a_dialect_is_detected_by_the_first_line() {
    Dribble::check(&["prompt;id\n", "a;1\n", "b;2\n"], &CSV, 2, "line 2: a");
    Dribble::check(&["sep=;\n", "prompt;id\n", "a;1\n", "b;2\n"], &CSV, 3, "line 3: a");
    Dribble::check(&["{\"caption\": \"a\"}\n", "{\"caption\": \"b\"}\n"], &JSONL, 1, "line 1: a");
    for encoding in ALL {
        let pieces = ["a red apple\n", "b\n"].map(|line| encode(line, encoding));
        Dribble::check(&pieces, &TXT, 1, "line 1: a red apple");
        let pieces = ["{\"prompt\": \"a\"}\r\n", "{\"prompt\": \"b\"}\r\n"].map(|line| encode(line, encoding));
        Dribble::check(&pieces, &JSONL, 1, "line 1: a");
    }
}

#[test]
fn the_only_text_of_the_first_object_is_the_prompt() {
    let read = |text: &str| read_with(text, &JSONL, None);
    let first = "{\"id\": \"x\", \"n\": 5, \"caption\": \"a\", \"list\": [\"b\"], \"negative_prompt\": \"c\"}\n";
    let missing = "!there is no \"caption\"; name the key with --prompt-column";
    assert_eq!(read(&format!("{first}{{\"prompt\": \"b\"}}\n")), ["line 1: a", &format!("line 2: {missing}")]);
    // An object without text decides nothing.
    let none = "!there is no \"prompt\"; name the key with --prompt-column";
    assert_eq!(read("{\"caption\": null}\n{\"caption\": \"a\"}\n"), [&format!("line 1: {none}"), "line 2: a"]);
    // One with two texts does.
    let two = "!there is no \"prompt\", only \"a\", \"b\"; name the key with --prompt-column";
    assert_eq!(
        read("{\"a\": \"x\", \"b\": \"y\"}\n{\"a\": \"x\"}\n{\"prompt\": \"z\"}\n"),
        [&format!("line 1: {two}"), &format!("line 2: {none}"), "line 3: z"]
    );
    assert_eq!(read("{\"caption\": \"x\", \"prompt\": null}\n{\"prompt\": \"a\"}\n")[1], "line 2: a");
    assert!(read("nonsense\n{\"caption\": \"a\"}\n")[1] == "line 2: a");
    let wanted = read_with("{\"a\": \"x\", \"b\": \"y\"}\n{}\n", &JSONL, Some("b"));
    assert_eq!(wanted, ["line 1: y", "line 2: !there is no \"b\""]);
}

#[test]
fn whole_numbers_may_be_written_as_floats() {
    let jsonl = |line: &str| record(line, &JSONL);
    let read = jsonl("{\"prompt\": \"a\", \"id\": 1.0, \"seed\": 7.0, \"steps\": 1e1, \"samples\": 2.0}");
    assert_eq!((read.id.as_deref(), read.seed, read.steps, read.samples), (Some("1"), Some(7), Some(10), Some(2)));
    assert_eq!(jsonl("{\"prompt\": \"a\", \"id\": -3.0}").id.as_deref(), Some("-3"));
    let read = record("prompt,id,seed,steps\na,1.0,7.0,10.0\n", &CSV);
    assert_eq!(
        (read.id.as_deref(), read.seed, read.steps),
        (Some("1.0"), Some(7), Some(10)),
        "a cell's id is its text"
    );
    // 2^53 may be 2^53 + 1, rounded.
    let exact = "{\"prompt\": \"a\", \"seed\": 9007199254740991.0}";
    assert_eq!(jsonl(exact).seed, Some(9_007_199_254_740_991));
    for (line, word) in [
        ("\"seed\": 9007199254740992.0", "too large to be exact"),
        ("\"id\": 1e300", "too large to be exact"),
        ("\"seed\": -7.0", "not -7"),
        ("\"seed\": 0.5", "not 0.5"),
        ("\"steps\": 0.0", "between 1 and"),
    ] {
        let read = read_with(format!("{{\"prompt\": \"a\", {line}}}"), &JSONL, None);
        assert!(read[0].contains('!') && read[0].contains(word), "{read:?}");
    }
}

#[test]
fn padding_after_gzip_is_skipped() {
    let read = |bytes: Vec<u8>| read_with(bytes, &TXT, None);
    let member = gzip(b"a\n");
    assert_eq!(read([&member[..], &[0; 100_000]].concat()), ["line 1: a"]);
    assert_eq!(read([&member[..], &[0; 9], &member, &[0]].concat()), ["line 1: a", "line 2: a"]);
    let behind = read([&member[..], &[0; 9], b"x"].concat());
    assert!(behind.last().unwrap().contains("the gzip data are damaged"), "{behind:?}");
}

#[test]
fn zstd_windows_may_be_long_and_are_bounded() {
    let read = |bytes: &[u8]| read_with(bytes, &TXT, None);
    // What `zstd --long=31` makes of a pipe: a window of 2 GiB around 12 bytes.
    let long = b"\x28\xb5\x2f\xfd\x04\xa8\x61\0\0a red apple\n\x30\xf0\xc2\x92";
    assert_eq!(read(long), ["line 1: a red apple"]);
    assert_eq!(read(&[&long[..], long].concat()).len(), 2);
    // A skippable frame.
    assert_eq!(read(&[&long[..], b"\x50\x2a\x4d\x18\x02\0\0\0xx", long].concat()).len(), 2);
    let mut longer = *long;
    longer[5] = 0xb0;
    let refused = read(&longer);
    assert!(refused[0].contains("its zstd window of 4096 MiB is more than zstd decompresses"), "{refused:?}");
    assert!(read(&long[..20]).last().unwrap().contains("the zstd data are damaged"));
    // 160 MiB in a few bytes, all in the window.
    let line = [vec![b'x'; (1 << 20) - 1], vec![b'\n']].concat();
    let pack = |window_log, size: Option<u64>| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.set_pledged_src_size(size).unwrap();
        (0..160).for_each(|_| encoder.write_all(&line).unwrap());
        encoder.finish().unwrap()
    };
    for size in [None, Some(160 << 20)] {
        let read = read(&pack(28, size));
        let error = read.last().unwrap();
        assert!(error.starts_with("error: rows: line 12") && error.contains("zstd window of "), "{error}");
        assert!(error.contains("128 MiB"), "{error}");
    }
    assert_eq!(read(&pack(27, None)).len(), 160, "a window of the usual size asks no questions");
}
