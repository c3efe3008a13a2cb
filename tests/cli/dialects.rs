//! Prompt files as other programs write them.

use crate::common::{Workplace, assert_done, assert_refused, stderr};
use serde_json::Value;
use std::fs;

/// The id and prompt of each row.
fn rows(place: &Workplace, options: &[&str]) -> Vec<(Option<String>, String)> {
    let output = place.command().args(options).args(["--out", "-", "--format", "jsonl"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        (line["id"].as_str().map(str::to_string), line["prompt"].as_str().unwrap().to_string())
    };
    text.lines().map(row).collect()
}

fn units(text: &str, width: usize) -> Vec<u8> {
    text.chars().flat_map(|char| (char as u32).to_le_bytes()[..width].to_vec()).collect()
}

#[test]
fn files_in_other_dialects_are_read() {
    let place = Workplace::new();
    let texts: [(&str, Vec<u8>); 8] = [
        ("bom.txt", "\u{feff}a red apple\n\u{feff}two cats\n".into()),
        ("mac.txt", b"a red apple\rtwo cats\r".to_vec()),
        ("mac.jsonl", b"{\"prompt\":\"a red apple\"}\r{\"prompt\":\"two cats\"}\r".to_vec()),
        ("utf16.txt", units("a red apple\ntwo cats\n", 2)),
        ("utf32.txt", units("\u{feff}a red apple\r\ntwo cats\r\n", 4)),
        ("caption.jsonl", b"{\"caption\": \"a red apple\"}\n{\"caption\": \"two cats\"}\n".to_vec()),
        ("bom.csv", "prompt\na red apple\n\u{feff}prompt\ntwo cats\n".into()),
        ("mac.csv", b"prompt\ra red apple\rtwo cats\r".to_vec()),
    ];
    for (name, bytes) in texts {
        fs::write(place.path(name), bytes).unwrap();
        let read = rows(&place, &["-f", name]);
        assert_eq!(read, [(None, "a red apple".into()), (None, "two cats".into())], "{name}");
    }
    let tables: [(&str, &str, &[&str]); 6] = [
        ("semicolon.csv", "prompt;id\na red apple;1\ntwo cats;2\n", &[]),
        ("told.csv", "sep=;\nprompt;id\na red apple;1\ntwo cats;2\n", &[]),
        ("tab.csv", "prompt\tid\na red apple\t1\ntwo cats\t2\n", &[]),
        ("pipe.tsv", "id|caption\n1|a red apple\n2|two cats\n", &[]),
        (
            "floats.jsonl",
            "{\"prompt\":\"a red apple\",\"id\":1.0,\"seed\":7.0}\n{\"prompt\":\"two cats\",\"id\":2.0}\n",
            &[],
        ),
        ("none.csv", "1,a red apple\n2,two cats\n", &["--no-header", "--prompt-column", "2"]),
    ];
    for (name, text, options) in tables {
        fs::write(place.path(name), text).unwrap();
        let read = rows(&place, &[&["-f", name], options].concat());
        let id = |number: &str| (!options.contains(&"--no-header")).then(|| number.to_string());
        assert_eq!(read, [(id("1"), "a red apple".into()), (id("2"), "two cats".into())], "{name}");
    }
}

/// A file's name and bytes, options, and words of the error.
type Ambiguous<'a> = (&'a str, &'a [u8], &'a [&'a str], &'a [&'a str]);

#[test]
fn ambiguous_files_are_refused_in_one_line() {
    let place = Workplace::new();
    let files: [Ambiguous; 7] = [
        ("doubt.csv", b"caption;x,id\na;b,1\n", &[], &["doubt.csv", "could both separate", "sep="]),
        ("nul.txt", b"a red apple\ntwo \0cats\nand a dog\n", &[], &["nul.txt:2", "UTF-16"]),
        ("mixed.txt", b"a red apple\rtwo cats\nrain\n", &[], &["mixed.txt:1", "carriage return"]),
        ("keys.jsonl", b"{\"a\": \"x\", \"b\": \"y\"}\n", &[], &["keys.jsonl:1", "\"a\", \"b\"", "--prompt-column"]),
        ("wide.csv", b"1,a\n2,b\n", &["--no-header"], &["wide.csv", "--prompt-column 1 to 2"]),
        ("text.txt", b"a\n", &["--no-header"], &["--no-header", "text.txt"]),
        (
            "joined.csv",
            b"prompt,id\na,1\n\xef\xbb\xbfid,prompt\n2,b\n",
            &["--on-error", "skip"],
            &["joined.csv: line 3"],
        ),
    ];
    for (name, bytes, options, words) in files {
        fs::write(place.path(name), bytes).unwrap();
        assert_refused(&place, place.command().args(["-f", name, "--out", "e.npy"]).args(options), 2, words);
    }
}

#[test]
fn a_dialect_does_not_change_the_embeddings() {
    let place = Workplace::new();
    fs::write(place.path("plain.csv"), "prompt,seed\na red apple,7\ntwo cats,8\n").unwrap();
    fs::write(place.path("other.csv"), units("seed;prompt\r\n7.0;a red apple\r\n8.0;two cats\r\n", 2)).unwrap();
    assert_done(place.command().args(["-f", "plain.csv", "--out", "plain.npy"]));
    assert_done(place.command().args(["-f", "other.csv", "--out", "other.npy"]));
    assert!(fs::read(place.path("plain.npy")).unwrap() == fs::read(place.path("other.npy")).unwrap());
}
