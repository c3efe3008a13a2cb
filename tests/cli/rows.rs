//! Bad rows, and files that are damaged or of another format.

use crate::common::{Workplace, assert_done, assert_refused, kill_after_rows, prompts, read_npy, stderr};
use serde_json::{Value, json};
use std::fs;

const LINES: &str =
    "{\"prompt\": \"a\"}\n{\"prompt\": 5}\n\n{\"prompt\": \"b\", \"steps\": 100000}\n{\"prompt\": \"c\"}\n";

#[test]
fn a_bad_row_is_refused_before_any_work() {
    let place = Workplace::new();
    fs::write(place.path("p.jsonl"), LINES).unwrap();
    assert_refused(&place, place.command().args(["-f", "p.jsonl", "--out", "e.npy"]), 2, &["p.jsonl:2", "prompt"]);
}

#[test]
fn skipped_rows_are_zeros_and_are_reported() {
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
    // The other rows do not change.
    assert_done(place.command().args(["-p", "c", "--seed", "6", "--out", "c.npy"]));
    let alone = read_npy(&fs::read(place.path("c.npy")).unwrap());
    assert!(alone.row(0).iter().zip(all.row(6)).all(|(left, right)| (left - right).abs() < 1e-4));
    // Neither file is overwritten.
    assert_refused(&place, place.command().args(options).args(["--out", "e.npy"]), 2, &["e.npy", "--overwrite"]);
    fs::remove_file(place.path("e.npy")).unwrap();
    assert_refused(&place, place.command().args(options).args(["--out", "e.npy"]), 2, &["errors.jsonl", "--overwrite"]);
    assert_done(place.command().args(options).args(["--out", "e.npy", "--overwrite"]));
}

#[test]
fn the_rows_of_a_file_are_printed_as_a_run_numbers_them() {
    let place = Workplace::new();
    fs::write(place.path("p.csv"), "id;caption;samples;seed\n1;\"two\nlines\";;\n;b;3;7\n3;;;\n").unwrap();
    let print = |options: &[&str]| {
        let output = place.bare().args(["rows", "p.csv"]).args(options).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let lines = [
        r#"{"row":0,"id":"1","prompt":"two\nlines","place":"line 2"}"#,
        r#"{"row":2,"prompt":"b","seed":7,"samples":3,"place":"line 4"}"#,
        r#"{"row":5,"id":"3","prompt":"","place":"line 5"}"#,
    ];
    let printed = print(&["--samples-per-prompt", "2"]);
    assert_eq!(printed.lines().collect::<Vec<_>>(), lines);
    for (range, expected) in [("1..2", &lines[1..2]), ("2..", &lines[2..]), ("..1", &lines[..1]), ("3..9", &[])] {
        let printed = print(&["--samples-per-prompt", "2", "--range", range]);
        assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{range}");
    }
    assert_eq!(print(&["--count", "--samples-per-prompt", "2"]), "{\"prompts\":3,\"rows\":7}\n");
    // They are a file of prompts themselves, and make the same rows.
    fs::write(place.path("p.jsonl"), &printed).unwrap();
    for file in ["p.csv", "p.jsonl"] {
        assert_done(place.command().args(["-f", file, "--samples-per-prompt", "2", "--out", &format!("{file}.npy")]));
    }
    assert_eq!(place.npy("p.csv.npy"), place.npy("p.jsonl.npy"));
    for range in ["2..1", "1", "a..b", "-1..2"] {
        let range = format!("--range={range}");
        assert_refused(&place, place.bare().args(["rows", "p.csv", &range]), 2, &["A..B"]);
    }
}

#[test]
fn rows_that_cannot_be_used_are_refused_or_told() {
    let place = Workplace::new();
    fs::write(place.path("p.jsonl"), LINES).unwrap();
    assert_refused(&place, place.bare().args(["rows", "p.jsonl", "--count"]), 2, &["p.jsonl:2", "prompt"]);
    assert_refused(&place, place.bare().args(["rows", "nowhere.txt"]), 2, &["nowhere.txt"]);
    let output = place.bare().args(["rows", "p.jsonl", "--on-error", "skip"]).output().unwrap();
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!((&lines[1]["row"], &lines[1]["place"]), (&json!(1), &json!("line 2")));
    assert!(lines[1]["reason"].as_str().unwrap().contains("must be text"));
    assert_eq!(lines[2]["steps"], json!(100_000), "what only a model can tell is not checked");
}

#[test]
fn no_report_is_written_without_bad_rows() {
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
fn too_many_samples_are_a_bad_row() {
    let place = Workplace::new();
    fs::write(place.path("p.jsonl"), "{\"prompt\": \"a\", \"samples\": 4294967296}\n").unwrap();
    assert_refused(&place, place.command().args(["-f", "p.jsonl", "--out", "e.npy"]), 2, &["p.jsonl:1", "samples"]);
}

#[test]
fn the_report_of_an_earlier_run_is_replaced_with_its_output() {
    let place = Workplace::new();
    fs::write(place.path("bad.jsonl"), LINES).unwrap();
    fs::write(place.path("good.jsonl"), "{\"prompt\": \"a\"}\n").unwrap();
    let embed = |prompts: &str, more: &[&str]| {
        let mut command = place.command();
        command.args(["-f", prompts, "--on-error", "skip", "--out", "e.npy"]).args(more);
        command
    };
    let report = place.path("e.npy.errors.jsonl");
    assert_done(&mut embed("bad.jsonl", &[]));
    assert!(report.exists());
    for on_error in ["skip", "fail"] {
        assert_done(&mut embed("bad.jsonl", &["--overwrite"]));
        assert!(report.exists());
        assert_done(&mut embed("good.jsonl", &["--on-error", on_error, "--overwrite"]));
        assert!(!report.exists(), "it is about an output that is gone");
    }
    // Another program's file stays.
    fs::remove_file(place.path("e.npy")).unwrap();
    fs::write(&report, "precious").unwrap();
    assert_refused(&place, &mut embed("bad.jsonl", &[]), 2, &["errors.jsonl", "--overwrite"]);
    let output = embed("bad.jsonl", &["--resume"]).output().unwrap();
    assert!(stderr(&output).contains("of another run") && output.status.code() == Some(2), "{}", stderr(&output));
    assert_eq!(fs::read(&report).unwrap(), b"precious");
    fs::remove_file(&report).unwrap();
    assert_done(&mut embed("bad.jsonl", &["--resume"]));
    assert!(report.exists() && place.path("e.npy").exists());
}

#[test]
fn a_report_is_beside_a_folder_but_not_beside_a_device() {
    let place = Workplace::new();
    fs::write(place.path("p.jsonl"), LINES).unwrap();
    let options = ["-f", "p.jsonl", "--on-error", "skip"];
    assert_done(place.command().args(options).args(["--out-dir", "dd/"]));
    assert_eq!(place.names(), ["dd", "dd.errors.jsonl", "p.jsonl"]);
    let told = assert_done(place.command().args(options).args(["--out", "/dev/null", "--format", "npy"]));
    assert!(told.contains("line 2") && told.contains("line 4"), "{told}");
    assert!(!std::path::Path::new("/dev/null.errors.jsonl").exists());
    // Skipped rows must be reported somewhere.
    let mut silent = place.command();
    silent.args(options).args(["--out", "-", "--quiet"]);
    assert_refused(&place, &mut silent, 2, &["--quiet", "--stats"]);
    let output = silent.args(["--stats", "s.json"]).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let stats: Value = serde_json::from_slice(&fs::read(place.path("s.json")).unwrap()).unwrap();
    assert_eq!((&stats["rows"], &stats["skipped_rows"]), (&json!(4), &json!(2)));
    let mut same = place.command();
    same.args(options).args(["--out", "e.npy", "--stats", "e.npy.errors.jsonl"]);
    assert_refused(&place, &mut same, 2, &["--stats", "report"]);
}

#[test]
fn warnings_about_many_rows_are_summed_up() {
    let place = Workplace::new();
    let lines: String = (0..30).map(|row| format!("{{\"prompt\": \"{}\"}}\n", format!("{row} ").repeat(100))).collect();
    fs::write(place.path("p.jsonl"), lines + &"nonsense\n".repeat(20)).unwrap();
    let run = |more: &[&str]| {
        let options = ["-f", "p.jsonl", "--on-error", "skip", "--batch-size", "4", "--stats", "s.json", "--overwrite"];
        let output = place.command().args(options).args(["--out", "-"]).args(more).output().unwrap();
        assert!(output.status.success());
        stderr(&output)
    };
    let told = run(&[]);
    assert_eq!(told.lines().count(), 22, "{told}");
    assert!(
        told.contains("the prompts of 30 rows were too long") && told.contains("20 rows could not be used"),
        "{told}"
    );
    let stats: Value = serde_json::from_slice(&fs::read(place.path("s.json")).unwrap()).unwrap();
    assert_eq!((&stats["cut_off_rows"], &stats["skipped_rows"]), (&json!(30), &json!(20)));
    assert_eq!(run(&["-v"]).matches("warning: ").count(), 50);
}

#[test]
fn skipped_rows_keep_their_place_in_shards_and_on_resume() {
    let place = Workplace::new();
    let line =
        |row: usize| if row % 7 == 3 { "{}\n".into() } else { format!("{{\"prompt\": \"{}\"}}\n", prompts(row)) };
    fs::write(place.path("p.jsonl"), (0..40).map(line).collect::<String>()).unwrap();
    let options = ["-f", "p.jsonl", "--on-error", "skip", "--batch-size", "4", "--steps", "200"];
    assert_done(place.command().args(options).args(["--out", "whole.npy"]));
    for (shard, part) in [("1/2", "a.npy"), ("2/2", "b.npy")] {
        assert_done(place.command().args(options).args(["--shard", shard, "--out", part]));
    }
    assert_done(place.bare().args(["merge", "a.npy", "b.npy", "--out", "all.npy"]));
    let read = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(read("all.npy") == read("whole.npy"), "shards");
    let lines = |name: &str| {
        let mut lines: Vec<String> = String::from_utf8(read(name)).unwrap().lines().map(str::to_string).collect();
        lines.sort();
        lines
    };
    let mut parts = [lines("a.npy.errors.jsonl"), lines("b.npy.errors.jsonl")].concat();
    parts.sort();
    assert_eq!(parts, lines("whole.npy.errors.jsonl"));
    let resumed = [&options[..], &["--out", "e.npy", "--stats", "s.json"]].concat();
    kill_after_rows(&place, &resumed, 8);
    assert_done(place.command().args(&resumed).arg("--resume"));
    assert!(read("e.npy") == read("whole.npy") && read("e.npy.errors.jsonl") == read("whole.npy.errors.jsonl"));
    let stats: Value = serde_json::from_slice(&read("s.json")).unwrap();
    let rows = stats["resumed_rows"].as_u64().unwrap();
    assert!((8..40).contains(&rows) && stats["rows"] == 40 && stats["skipped_rows"] == 6, "{stats}");
}
