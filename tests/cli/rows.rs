//! Rows that cannot be used, and files that are not what they are said to be.

use crate::common::{Workplace, assert_done, assert_refused, read_npy};
use serde_json::{Value, json};
use std::fs;

const LINES: &str =
    "{\"prompt\": \"a\"}\n{\"prompt\": 5}\n\n{\"prompt\": \"b\", \"steps\": 100000}\n{\"prompt\": \"c\"}\n";

#[test]
fn a_bad_row_is_named_before_the_work() {
    let place = Workplace::new();
    fs::write(place.path("p.jsonl"), LINES).unwrap();
    assert_refused(&place, place.command().args(["-f", "p.jsonl", "--out", "e.npy"]), 2, &["p.jsonl:2", "prompt"]);
}

#[test]
fn skipped_rows_are_zeros_in_their_place_and_reported() {
    let place = Workplace::new();
    fs::write(place.path("p.jsonl"), LINES).unwrap();
    let options = ["-f", "p.jsonl", "--on-error", "skip", "--samples-per-prompt", "2", "--batch-size", "3"];
    let warning = assert_done(place.command().args(options).args(["--out", "e.npy"]));
    assert!(warning.contains("4 rows") && warning.contains("e.npy.errors.jsonl"), "{warning}");
    assert_eq!(warning.lines().count(), 1, "{warning}");
    let all = read_npy(&fs::read(place.path("e.npy")).unwrap());
    let zeros: Vec<bool> = all.rows().into_iter().map(|row| row.iter().all(|number| *number == 0.0)).collect();
    assert_eq!(zeros, [false, false, true, true, true, true, false, false]);
    let report = fs::read_to_string(place.path("e.npy.errors.jsonl")).unwrap();
    let lines: Vec<Value> = report.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{report}");
    for (line, (row, place)) in lines.iter().zip([(2, "line 2"), (4, "line 4")]) {
        assert_eq!((&line["row"], &line["rows"], &line["place"]), (&json!(row), &json!(2), &json!(place)));
    }
    assert!(lines[1]["reason"].as_str().unwrap().contains("100000"), "{report}");
    // The others are what they are without them.
    assert_done(place.command().args(["-p", "c", "--seed", "6", "--out", "c.npy"]));
    let alone = read_npy(&fs::read(place.path("c.npy")).unwrap());
    assert!(alone.row(0).iter().zip(all.row(6)).all(|(left, right)| (left - right).abs() < 1e-4));
    // Neither file is written over.
    assert_refused(&place, place.command().args(options).args(["--out", "e.npy"]), 2, &["e.npy", "--overwrite"]);
    fs::remove_file(place.path("e.npy")).unwrap();
    assert_refused(&place, place.command().args(options).args(["--out", "e.npy"]), 2, &["errors.jsonl", "--overwrite"]);
    assert_done(place.command().args(options).args(["--out", "e.npy", "--overwrite"]));
}

#[test]
fn there_is_no_report_without_something_to_report() {
    let place = Workplace::new();
    assert_eq!(assert_done(place.command().args(["-p", "a", "--on-error", "skip", "--out", "e.npy"])), "");
    assert_eq!(place.names(), ["e.npy"]);
}

#[test]
fn hostile_files_are_refused_in_one_line() {
    let place = Workplace::new();
    let files: [(&str, Vec<u8>, &str); 9] = [
        ("cut.txt.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x4b".to_vec(), "gzip"),
        ("not.jsonl.zst", b"plain text".to_vec(), "zstd"),
        ("not.parquet", b"plain text".to_vec(), "not.parquet"),
        ("cut.parquet", b"PAR1\xff\xff\xff\x7fPAR1".to_vec(), "cut.parquet"),
        ("empty.csv", Vec::new(), "empty.csv"),
        ("quote.csv", b"prompt\n\"never closed\nx\n".to_vec(), "quote"),
        ("deep.jsonl", [b"{\"prompt\": ".to_vec(), vec![b'['; 100_000]].concat(), ":1: "),
        ("seed.jsonl", b"{\"prompt\": \"a\", \"seed\": 18446744073709551615, \"samples\": 2}".to_vec(), "seed"),
        ("nul.txt", b"ok\nbad \xff\xfe\n".to_vec(), ":2: "),
    ];
    for (name, bytes, word) in &files {
        fs::write(place.path(name), bytes).unwrap();
        assert_refused(&place, place.command().args(["-f", name, "--out", "e.npy"]), 2, &[name, word]);
    }
}

#[test]
fn as_many_samples_as_can_be_counted_and_no_more() {
    let place = Workplace::new();
    fs::write(place.path("p.jsonl"), "{\"prompt\": \"a\", \"samples\": 4294967296}\n").unwrap();
    assert_refused(&place, place.command().args(["-f", "p.jsonl", "--out", "e.npy"]), 2, &["p.jsonl:1", "samples"]);
}
