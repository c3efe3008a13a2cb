//! Pipes: a filter that answers line by line, streams of rows, readers that close early.

use crate::common::{Workplace, assert_done, assert_refused, model, read_npy, stderr, wait};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

const FILTER: [&str; 8] = ["-f", "-", "--format-in", "jsonl", "--out", "-", "--format", "jsonl"];

/// Long enough for any machine, and no wait where all is well.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_filter_answers_line_by_line() {
    let place = Workplace::new();
    let mut child = place.spawn(&FILTER, Stdio::piped(), Stdio::piped());
    let mut input = child.stdin.take().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = channel();
    let reader = thread::spawn(move || output.lines().for_each(|line| sender.send(line.unwrap()).unwrap()));
    for (row, prompt) in ["a red apple", "two cats", "rain"].into_iter().enumerate() {
        writeln!(input, "{{\"prompt\": \"{prompt}\", \"id\": {row}}}").unwrap();
        // Nothing more is written before the answer is there.
        let line: Value = serde_json::from_str(&lines.recv_timeout(PATIENCE).unwrap()).unwrap();
        assert_eq!(
            (&line["row"], &line["prompt"], &line["id"]),
            (&row.into(), &prompt.into(), &row.to_string().into())
        );
        assert!(line["image_embeds"].as_array().unwrap().len() > 1);
    }
    drop(input);
    let output = wait(child);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    reader.join().unwrap();
    assert!(lines.recv().is_err(), "no line without a prompt");
}

#[test]
fn a_filter_answers_at_once() {
    let place = Workplace::new();
    let mut child = place.spawn(&FILTER, Stdio::piped(), Stdio::piped());
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut times: Vec<Duration> = (0..30)
        .map(|row| {
            let start = Instant::now();
            writeln!(input, "{{\"prompt\": \"cat {row}\"}}").unwrap();
            assert!(output.read_line(&mut String::new()).unwrap() > 0);
            start.elapsed()
        })
        .collect();
    drop(input);
    assert_eq!(wait(child).status.code(), Some(0));
    // The first waits for the model. An answer takes milliseconds; a timer or a full batch would take much longer.
    times.remove(0);
    times.sort();
    assert!(times[times.len() / 2] < Duration::from_millis(500), "{times:?}");
}

#[test]
fn prompts_come_compressed_and_in_other_encodings_through_a_pipe() {
    let place = Workplace::new();
    let run = |name: &str, format: &str, bytes: Vec<u8>| {
        fs::write(place.path(name), &bytes).unwrap();
        let filed = place.command().args(["-f", name, "--out", "-"]).output().unwrap();
        let mut command = place.command();
        command.args(["-f", "-", "--format-in", format, "--out", "-"]).write_stdin(bytes);
        let piped = command.output().unwrap();
        assert_eq!(read_npy(&piped.stdout).nrows(), 2, "{name}: {}", stderr(&piped));
        assert!(piped.stdout == filed.stdout, "{name}");
        piped.stdout
    };
    let plain = run("p.txt", "txt", "a cät\ntwo dogs\n".into());
    let utf16: Vec<u8> = "\u{feff}a cät\ntwo dogs\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all("{\"prompt\": \"a cät\"}\n{\"prompt\": \"two dogs\"}\n".as_bytes()).unwrap();
    let zstd = zstd::encode_all("prompt,id\na cät,1\ntwo dogs,2\n".as_bytes(), 0).unwrap();
    let batch =
        RecordBatch::try_from_iter([("prompt", Arc::new(StringArray::from(vec!["a cät", "two dogs"])) as ArrayRef)]);
    let batch = batch.unwrap();
    let mut parquet = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut parquet, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    for (name, format, bytes) in [
        ("u.txt", "txt", utf16),
        ("p.jsonl.gz", "jsonl", gzip.finish().unwrap()),
        ("p.csv.zst", "csv", zstd),
        ("p.parquet", "parquet", parquet),
    ] {
        assert!(run(name, format, bytes) == plain, "{name}");
    }
}

#[test]
fn a_filter_gives_what_a_file_gives() {
    let place = Workplace::new();
    let prompts: Vec<String> = (0..150).map(|number| format!("{{\"prompt\": \"cat {number}\"}}\n")).collect();
    fs::write(place.path("p.jsonl"), prompts.concat()).unwrap();
    let output = place.command().args(FILTER).write_stdin(prompts.concat()).output().unwrap();
    assert_done(place.command().args(["-f", "p.jsonl", "--out", "e.jsonl"]));
    let lines = |bytes: &[u8]| -> Vec<Value> {
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    };
    let (streamed, filed) = (lines(&output.stdout), lines(&fs::read(place.path("e.jsonl")).unwrap()));
    assert_eq!((streamed.len(), filed.len()), (150, 150));
    for (left, right) in streamed.iter().zip(&filed) {
        assert_eq!((&left["row"], &left["prompt"], &left["seed"]), (&right["row"], &right["prompt"], &right["seed"]));
        let numbers = |line: &Value| -> Vec<f64> {
            line["image_embeds"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
        };
        let (left, right) = (numbers(left), numbers(right));
        let largest = right.iter().fold(0.0_f64, |largest, number| largest.max(number.abs()));
        assert!(left.iter().zip(&right).all(|(left, right)| (left - right).abs() <= 1e-4 * largest));
    }
}

#[test]
fn a_filter_keeps_the_place_of_a_bad_line() {
    let place = Workplace::new();
    let lines = "{\"prompt\": \"a\"}\nnonsense\n{\"prompt\": \"b\"}\n";
    let output = place.command().args(FILTER).args(["--on-error", "skip"]).write_stdin(lines).output().unwrap();
    let warning = stderr(&output);
    assert!(output.status.success() && warning.contains("line 2") && warning.lines().count() == 1, "{warning}");
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let prompts: Vec<&str> = rows.iter().map(|row| row["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts, ["a", "", "b"]);
    assert!(rows[1]["image_embeds"].as_array().unwrap().iter().all(|number| number.as_f64() == Some(0.0)));
    assert_eq!(rows[2]["seed"], 2);
    // Without it, what came before is written, and then the error ends the run.
    let output = place.command().args(FILTER).write_stdin(lines).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 1);
    assert!(stderr(&output).contains("standard input:2: "), "{}", stderr(&output));
}

#[test]
fn a_stream_of_rows_is_the_file() {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), "a\nb\nc\n").unwrap();
    for format in ["npy", "npz", "safetensors", "jsonl", "parquet"] {
        let options = ["-f", "p.txt", "--batch-size", "2", "--format", format];
        let output = place.command().args(options).args(["--out", "-"]).output().unwrap();
        assert_done(place.command().args(options).args(["--out", "e", "--overwrite"]));
        assert!(output.stdout == fs::read(place.path("e")).unwrap(), "{format}");
    }
    // The number of rows comes first in .npy, and here it is known last.
    let output = place.command().args(["-f", "-", "--out", "-"]).write_stdin("a\nb\nc\n").output().unwrap();
    assert_eq!(read_npy(&output.stdout).nrows(), 3, "{}", stderr(&output));
}

#[test]
fn a_closed_pipe_ends_the_run_quietly() {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), "a cat\n".repeat(5000)).unwrap();
    for format in ["npy", "jsonl"] {
        let options = ["-f", "p.txt", "--batch-size", "8", "--out", "-", "--format", format];
        let mut child = place.spawn(&options, Stdio::null(), Stdio::piped());
        let mut start = [0; 6];
        child.stdout.take().unwrap().read_exact(&mut start).unwrap();
        let output = wait(child);
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{format}");
    }
}

#[test]
fn an_empty_stream_is_an_error() {
    let place = Workplace::new();
    for out in ["e.npy", "-"] {
        let mut command = place.command();
        assert_refused(
            &place,
            command.args(["-f", "-", "--out", out]).write_stdin("\n\n"),
            2,
            &["standard input", "no prompts"],
        );
    }
}

#[test]
fn a_pipe_by_name_is_a_stream() {
    let place = Workplace::new();
    let script = format!(
        "{:?} -m {:?} --steps 2 -f <(printf 'a\\nb\\n') --out e.npy",
        env!("CARGO_BIN_EXE_prior-embed"),
        model()
    );
    let mut command = assert_cmd::Command::new("bash");
    assert_done(command.current_dir(place.folder.path()).args(["-c", &script]));
    assert_eq!(read_npy(&fs::read(place.path("e.npy")).unwrap()).nrows(), 2);
}

#[test]
fn a_failed_run_from_a_pipe_leaves_nothing() {
    let place = Workplace::new();
    let run = |options: &[&str], input: &str| {
        let mut command = place.command();
        command.args(["-f", "-", "--format-in", "jsonl", "--batch-size", "1", "--out", "e.npy"]).args(options);
        command.write_stdin(input).output().unwrap()
    };
    // The second row fails when the first is written already.
    let output = run(&[], "{\"prompt\": \"a\"}\n{\"prompt\": 5}\n");
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("standard input:2") && !message.contains("--resume"), "{message}");
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[test]
fn a_killed_run_from_a_pipe_is_not_in_the_way() {
    let place = Workplace::new();
    let options = ["-f", "-", "--batch-size", "1", "--out", "e.npy"];
    let mut child = place.spawn(&options, Stdio::piped(), Stdio::null());
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "a\nb").unwrap();
    place.wait_for_rows("e.npy", 1, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(place.names(), [".e.npy.prior-embed"]);
    assert_done(place.command().args(options).write_stdin("c\n"));
    assert_eq!(place.names(), ["e.npy"]);
    assert_eq!(read_npy(&fs::read(place.path("e.npy")).unwrap()).nrows(), 1);
}

#[test]
fn a_run_that_nobody_reads_ends_before_it_writes() {
    let place = Workplace::new();
    // Written at the end, which would be in days.
    let options = ["-p", "cat", "--samples-per-prompt", "100000000", "--steps", "1000", "-o", "-", "--format", "npz"];
    let mut child = place.spawn(&options, Stdio::null(), Stdio::piped());
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    drop(child.stdout.take());
    let start = Instant::now();
    assert_eq!(wait(child).status.code(), Some(0));
    assert!(start.elapsed() < PATIENCE);
}
