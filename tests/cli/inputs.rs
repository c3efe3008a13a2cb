//! Several files of prompts: lists, folders and patterns.

use crate::common::{Workplace, assert_done, assert_refused, kill_after_rows, prompts, stderr, wait};
use assert_cmd::Command;
use flate2::write::GzEncoder;
use ndarray::Array2;
use ndarray_npy::WriteNpyExt;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

/// Six prompts in a folder: every file of another format, and some that are no prompts.
fn workplace() -> Workplace {
    let place = Workplace::new();
    fs::create_dir_all(place.path("in/a")).unwrap();
    fs::create_dir_all(place.path("in/_logs")).unwrap();
    let gzip = |name: &str, text: &str| {
        let mut gzip = GzEncoder::new(File::create(place.path(name)).unwrap(), Default::default());
        gzip.write_all(text.as_bytes()).unwrap();
        gzip.finish().unwrap();
    };
    let jsonl = "{\"prompt\": \"three\", \"id\": \"t\", \"steps\": 2}\n{\"prompt\": \"four\"}\n";
    fs::write(place.path("in/a/b.jsonl.zst"), zstd::encode_all(jsonl.as_bytes(), 0).unwrap()).unwrap();
    // Before a/, whose slash is greater than a dot.
    fs::write(place.path("in/a.txt"), "one\n\ntwo\n").unwrap();
    gzip("in/c.csv.gz", "id,prompt\n7,five\n");
    fs::write(place.path("in/d.tsv"), "caption\nsix\n").unwrap();
    for other in
        ["in/README.md", "in/.hidden.txt", "in/_SUCCESS", "in/_x.txt", "in/_logs/x.txt", "in/x.gz", "in/a/notes"]
    {
        fs::write(place.path(other), "no prompt\n").unwrap();
    }
    place
}

const FILES: [&str; 4] = ["in/a.txt", "in/a/b.jsonl.zst", "in/c.csv.gz", "in/d.tsv"];

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A run that writes its rows to standard output.
fn embed(place: &Workplace, options: &[&str]) -> Command {
    let mut command = place.command();
    command.args(["--seed", "5", "-o", "-", "--format", "jsonl"]).args(options);
    command
}

fn rows(command: &mut Command) -> Vec<Value> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    lines(&String::from_utf8(output.stdout).unwrap())
}

/// Its prompts in their order.
fn order(place: &Workplace, options: &[&str]) -> String {
    let rows = rows(&mut embed(place, options));
    for (number, row) in rows.iter().enumerate() {
        assert_eq!((&row["row"], &row["seed"]), (&json!(number), &json!(number + 5)), "{options:?}");
    }
    rows.iter().map(|row| row["prompt"].as_str().unwrap()).collect::<Vec<_>>().join(" ")
}

#[test]
fn rows_are_numbered_through_whatever_the_files_are() {
    let place = workplace();
    let joined = json!({"prompt": "three", "id": "t", "steps": 2}).to_string();
    let plain = |prompt: &str| json!({"prompt": prompt}).to_string();
    let five = json!({"prompt": "five", "id": "7"}).to_string();
    let joined = [plain("one"), plain("two"), joined, plain("four"), five, plain("six")].join("\n");
    fs::write(place.path("all.jsonl"), joined).unwrap();
    let expected = rows(&mut embed(&place, &["-f", "all.jsonl"]));
    assert_eq!(
        expected.iter().map(|row| &row["id"]).collect::<Vec<_>>(),
        [&json!(null), &json!(null), &json!("t"), &json!(null), &json!("7"), &json!(null)]
    );
    for input in [
        &["-f", FILES[0], FILES[1], "-f", FILES[2], "-f", FILES[3]][..],
        &["-f", "in"],
        &["-f", "in/"],
        &["-f", "i[n]"],
        &["-f", "in/a.txt", "in/a", "in/[cd].*"],
        &["-f", "in/a.txt", "in/a/*.zst", "in/c*", "in/d*"],
    ] {
        assert_eq!(rows(&mut embed(&place, input)), expected, "{input:?}");
    }
}

#[test]
fn arguments_keep_their_order_and_what_they_match_is_sorted() {
    let place = Workplace::new();
    fs::create_dir_all(place.path("x/B")).unwrap();
    for (name, prompt) in [("x/b.txt", "b"), ("x/B/z.txt", "z"), ("x/10.txt", "10"), ("x/9.txt", "9"), ("x/é.txt", "é")]
    {
        fs::write(place.path(name), prompt).unwrap();
    }
    for (input, expected) in [
        (&["-f", "x"][..], "10 9 z b é"),
        (&["-f", "x/*.txt"], "10 9 b é"),
        (&["-f", "x/*"], "10 9 z b é"),
        (&["-f", "x/**"], "10 9 z b é"),
        (&["-f", "x/b.txt", "x/9.txt", "x/b.txt"], "b 9 b"),
        (&["-p", "first", "-f", "x/9.txt", "-p", "second", "-f", "x/B"], "first second 9 z"),
        // --format-in says which files a folder gives, too.
        (&["-f", "x", "x/9.txt", "--format-in", "txt"], "10 9 z b é 9"),
    ] {
        assert_eq!(order(&place, input), expected, "{input:?}");
    }
    assert_refused(&place, &mut embed(&place, &["-f", "x", "--format-in", "csv"]), 2, &["no prompt files (.csv)"]);
}

#[test]
fn what_gives_no_files_is_one_clear_line() {
    let place = workplace();
    fs::create_dir(place.path("empty")).unwrap();
    fs::write(place.path("blank.txt"), "\n").unwrap();
    for (input, words) in [
        (&["-f", "in/*.xml"][..], &["\"in/*.xml\" matches no files"][..]),
        (&["-f", "in/a.txt", "in/none.txt"], &["prompts file \"in/none.txt\"", "No such file"]),
        (&["-f", "in/[", "in/a.txt"], &["\"in/[\"", "pattern"]),
        (&["-f", "in", "empty"], &["\"empty\" holds no prompt files (.txt, .jsonl, .ndjson, .csv, .tsv, .parquet)"]),
        (&["-f", "in/*"], &["in/README.md", "--format-in"]),
        (&["-f", "in/a.txt", "in/c.csv.gz", "--prompt-column", "x"], &["in/c.csv.gz has no column \"x\""]),
        (&["-f", "in/a.txt", "in/a/notes", "--prompt-column", "x"], &["in/a.txt is read as text"]),
        (&["-f", "in/a.txt", "in/a/b.jsonl.zst", "--no-header"], &["--no-header: in/a.txt is read as txt"]),
        (&["-f", "blank.txt", "blank.txt"], &["--prompts holds no prompts"]),
        (&["-f", "in", "--out", "in/a/e.parquet"], &["\"in/a/e.parquet\" would lie in the folder of prompts \"in\""]),
        (&["-f", "in", "--on-error", "skip", "--out", "in/e.npy"], &["\"in/e.npy.errors.jsonl\" would lie"]),
        (
            &["-f", "in/*.tsv", "--out", "in/d.tsv", "--format", "npy", "--overwrite"],
            &["in/d.tsv", "would be replaced"],
        ),
        (&["-f", "-", "in", "-"], &["standard input is named twice"]),
        (&["-f", "in", "-", "--resume", "--out", "e.npy"], &["--resume needs", "standard input cannot"]),
        (&["-f", "in", "-", "--shard", "1/2", "--out", "e.npy"], &["--shard needs", "standard input cannot"]),
    ] {
        let out = if input.contains(&"--out") { &[][..] } else { &["--out", "e.npy"] };
        assert_refused(&place, place.command().args(input).args(out), 2, words);
    }
    let mut command = place.command();
    assert_refused(&place, command.args(["-f", "in", "--out-dir", "in/out"]), 2, &["\"in/out\" would lie"]);
    // Neither these outputs nor hidden ones would be read.
    for out in ["in/e.npy", "in/_e.parquet"] {
        assert_done(place.command().args(["-f", "in", "--out", out]));
        assert_done(place.command().args(["-f", "in", "--out", out, "--overwrite"]));
    }
    assert_eq!(order(&place, &["-f", "in"]), "one two three four five six");
}

#[test]
fn columns_and_settings_are_those_of_each_file() {
    let place = Workplace::new();
    fs::write(place.path("a.csv"), "caption,seed,id\na,50,x\n").unwrap();
    fs::write(place.path("b.csv"), "url,caption\nu,b\n").unwrap();
    fs::write(place.path("c.jsonl"), "{\"caption\": \"c\", \"samples\": 2, \"negative_prompt\": \"rain\"}\n").unwrap();
    fs::write(place.path("d.txt"), "d\n").unwrap();
    let told = |options: &[&str]| {
        let rows = rows(&mut embed(&place, options));
        let row = |row: &Value| format!("{} {} {}", row["prompt"].as_str().unwrap(), row["seed"], row["id"]);
        rows.iter().map(row).collect::<Vec<_>>().join(", ")
    };
    let options = ["-f", "a.csv", "b.csv", "c.jsonl", "d.txt", "--prompt-column", "caption"];
    assert_eq!(told(&options), "a 50 \"x\", b 6 null, c 7 null, c 8 null, d 9 null");
    // Without a name every file has a column of its own.
    fs::write(place.path("b.csv"), "text\nb\n").unwrap();
    let options = ["-f", "a.csv", "b.csv", "c.jsonl", "d.txt"];
    assert_eq!(told(&options), "a 50 \"x\", b 6 null, c 7 null, c 8 null, d 9 null");
    fs::write(place.path("e.tsv"), "1\te\n2\tf\n").unwrap();
    assert_eq!(told(&["-f", "e.tsv", "d.txt", "--no-header", "--prompt-column", "2"]), "e 5 null, f 6 null, d 7 null");
    // What is told of one file need not be told of the next.
    fs::write(place.path("f.csv"), "caption,id\nf,y\n").unwrap();
    let output = embed(&place, &["-v", "-f", "a.csv", "f.csv", "b.csv"]).output().unwrap();
    let notices: Vec<_> =
        stderr(&output).lines().filter(|line| line.contains("the prompts of")).map(String::from).collect();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[0].contains("a.csv") && notices[1].contains("b.csv"), "{notices:?}");
}

#[test]
fn a_bad_row_is_of_its_file_and_line() {
    let place = Workplace::new();
    fs::write(place.path("a.jsonl"), "{\"prompt\": \"a\"}\n").unwrap();
    fs::write(place.path("b.jsonl"), "{\"prompt\": \"b\"}\n\n{\"prompt\": 5}\n{\"prompt\": \"c\"}\n").unwrap();
    fs::write(place.path("c.csv"), "prompt,steps\nd,100000\n").unwrap();
    let files = ["-f", "a.jsonl", "b.jsonl", "c.csv", "a.jsonl"];
    let mut command = place.command();
    assert_refused(&place, command.args(files).args(["--out", "e.npy"]), 2, &["error: b.jsonl:3: "]);
    assert_done(place.command().args(files).args(["--on-error", "skip", "--out", "e.npy"]));
    let zeros: Vec<bool> =
        place.npy("e.npy").rows().into_iter().map(|row| row.iter().all(|number| *number == 0.0)).collect();
    assert_eq!(zeros, [false, false, true, false, true, false]);
    let report = lines(&fs::read_to_string(place.path("e.npy.errors.jsonl")).unwrap());
    let told: Vec<_> = report.iter().map(|line| [&line["row"], &line["file"], &line["place"]]).collect();
    assert_eq!(
        told,
        [[&json!(2), &json!("b.jsonl"), &json!("line 3")], [&json!(4), &json!("c.csv"), &json!("line 2")]]
    );
    let output = embed(&place, &[&files[..], &["--on-error", "skip"]].concat()).output().unwrap();
    let told = stderr(&output);
    assert!(told.contains("b.jsonl: line 3: ") && told.contains("c.csv: line 2: "), "{told}");
    // A file that ends in the middle, behind others.
    fs::write(place.path("d.txt.gz"), b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x4b").unwrap();
    let mut command = place.command();
    assert_refused(&place, command.args(["-f", "a.jsonl", "d.txt.gz", "--out", "f.npy"]), 2, &["d.txt.gz", "gzip"]);
}

/// 48 prompts in three files.
fn many(place: &Workplace) {
    fs::create_dir(place.path("p")).unwrap();
    for (name, numbers) in [("a.txt", 0..20), ("b.txt", 20..27), ("c.txt", 27..48)] {
        fs::write(place.path("p").join(name), numbers.map(|number| prompts(number) + "\n").collect::<String>())
            .unwrap();
    }
}

#[test]
fn shards_and_resumed_runs_are_the_whole() {
    let place = Workplace::new();
    many(&place);
    let all = ["p/a.txt", "p/b.txt", "p/c.txt"].map(|name| fs::read_to_string(place.path(name)).unwrap()).concat();
    fs::write(place.path("all.txt"), &all).unwrap();
    let batches = ["--batch-size", "5", "--steps", "20"];
    assert_done(
        place.command().args(["-f", "all.txt", "--out", "whole.npy", "--provenance", "whole.json"]).args(batches),
    );
    let whole = fs::read(place.path("whole.npy")).unwrap();
    for index in ["1", "2", "3"] {
        let (shard, out) = (format!("{index}/3"), format!("s{index}.npy"));
        assert_done(place.command().args(["-f", "p", "--shard", &shard, "--out", &out]).args(batches));
    }
    assert_done(place.bare().args(["merge", "s1.npy", "s2.npy", "s3.npy", "--out", "all.npy"]));
    assert!(fs::read(place.path("all.npy")).unwrap() == whole);

    let options = [&["-f", "p/a.txt", "p/b.txt", "p/c.txt", "--out", "e.npy", "--resume"][..], &batches].concat();
    kill_after_rows(&place, &options, 5);
    let refused = |input: &[&str], words: &[&str]| {
        let mut command = place.command();
        command.args(input).args(&options[4..]);
        assert_refused(&place, &mut command, 2, words);
    };
    refused(&["-f", "p/a.txt", "p/c.txt", "p/b.txt"], &["the prompts' hash"]);
    fs::write(place.path("p/aa.txt"), "new\n").unwrap();
    refused(&["-f", "p"], &["the prompts' hash", "the number of rows was 48, is 49"]);
    fs::write(place.path("p/aa.txt"), "\n").unwrap();
    let b = fs::read_to_string(place.path("p/b.txt")).unwrap();
    fs::write(place.path("p/b.txt"), b.replace("number 21", "number 22")).unwrap();
    refused(&["-f", "p"], &["the prompts' hash"]);
    fs::write(place.path("p/b.txt"), b).unwrap();
    // The same rows, however they are named.
    let mut command = place.command();
    assert_done(command.args(["-f", "./p/*.txt"]).args(&options[4..]).args(["--provenance", "e.json"]));
    assert!(fs::read(place.path("e.npy")).unwrap() == whole);
    let of_prompts = |name: &str| {
        let provenance: Value = serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap();
        provenance["prompts"]["sha256"].clone()
    };
    assert_eq!(of_prompts("e.json"), of_prompts("whole.json"));
}

#[test]
fn standard_input_has_its_place_among_files() {
    let place = Workplace::new();
    fs::write(place.path("a.txt"), "a\nb\n").unwrap();
    fs::write(place.path("z.jsonl"), "{\"prompt\": \"z\"}\n").unwrap();
    let input = ["-f", "a.txt", "-", "z.jsonl"];
    let rows = rows(embed(&place, &input).write_stdin("c\nd\n"));
    let prompts: Vec<&str> = rows.iter().map(|row| row["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts, ["a", "b", "c", "d", "z"]);
    assert_eq!(rows.iter().map(|row| row["seed"].as_u64().unwrap()).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
    let output = embed(&place, &["-f", "a.txt", "-", "--format-in", "jsonl"]).write_stdin("").output().unwrap();
    assert!(stderr(&output).contains("a.txt:1: "), "{}", stderr(&output));

    // Rows of a file do not wait for those of the pipe, nor these for what comes after it.
    let options = ["-f", "a.txt", "-", "z.jsonl", "--out", "-", "--format", "jsonl"];
    let mut child = place.spawn(&options, Stdio::piped(), Stdio::piped());
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&answers.next().unwrap().unwrap()).unwrap()["prompt"].clone();
    assert_eq!([next(), next()], ["a", "b"]);
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "c").unwrap();
    assert_eq!(next(), "c");
    drop(stdin);
    assert_eq!(next(), "z");
    assert!(wait(child).status.success());
}

#[test]
fn an_image_of_a_row_is_beside_its_file() {
    /// The small model's embedding dimension.
    const DIM: usize = 16;
    let place = Workplace::new();
    for (folder, value) in [("one", 1.0_f32), ("two", 2.0)] {
        fs::create_dir(place.path(folder)).unwrap();
        let embeds = Array2::from_elem((1, DIM), value);
        embeds.write_npy(File::create(place.path(folder).join("e.npy")).unwrap()).unwrap();
        fs::write(place.path(folder).join("p.jsonl"), "{\"prompt\": \"a\", \"image\": \"e.npy\"}\n").unwrap();
    }
    let embeds = |options: &[&str]| {
        let rows = rows(&mut embed(&place, &[options, &["--strength", "0"]].concat()));
        rows.iter().map(|row| row["image_embeds"][0].as_f64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(embeds(&["-f", "one/p.jsonl", "two/p.jsonl"]), [1.0, 2.0]);
    assert_eq!(embeds(&["-f", "*/p.jsonl"]), [1.0, 2.0]);
}
