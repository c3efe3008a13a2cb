//! Runs that end early, and those that go on.

use crate::common::{Workplace, assert_done, assert_refused, kill_after_rows, prompts, send_signal, stderr, wait};
use std::fs;
use std::path::Path;
use std::process::Stdio;

/// Small batches, so that there are many moments to stop at, and steps enough to notice them.
const OPTIONS: [&str; 8] = ["-f", "p.jsonl", "--batch-size", "4", "--seed", "3", "--steps", "200"];

/// All files below a folder, with what they hold.
fn contents(path: &Path) -> Vec<(String, Vec<u8>)> {
    if path.is_file() {
        return vec![(String::new(), fs::read(path).unwrap())];
    }
    let mut all = Vec::new();
    for entry in path.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        all.extend(contents(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
    }
    all.sort();
    all
}

/// 48 prompts, some with options of their own.
fn workplace() -> Workplace {
    let place = Workplace::new();
    let line = |number: usize| match number % 5 {
        0 => format!("{{\"prompt\": \"{}\", \"steps\": 2, \"id\": \"n{number}\"}}\n", prompts(number)),
        1 => format!("{{\"prompt\": \"{}\", \"negative_prompt\": \"rain\", \"samples\": 2}}\n", prompts(number)),
        2 => format!("{{\"prompt\": \"{}\", \"guidance_scale\": 1, \"seed\": 9}}\n", prompts(number)),
        _ => format!("{{\"prompt\": \"{}\"}}\n", prompts(number)),
    };
    fs::write(place.path("p.jsonl"), (0..48).map(line).collect::<String>()).unwrap();
    place
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    for (out, form) in
        [("e.npy", "--out"), ("e.parquet", "--out"), ("e.npz", "--out"), ("e.jsonl", "--out"), ("e", "--out-dir")]
    {
        let place = workplace();
        let command = |name: &str| {
            let mut command = place.command();
            command.args(OPTIONS).args([form, name, "--rows-per-file", "20"]);
            command
        };
        assert_done(command("whole").args(if form == "--out" { vec!["--format", &out[2..]] } else { vec![] }));
        for rows in [4, 12, 28] {
            let options = [&OPTIONS[..], &[form, out, "--rows-per-file", "20", "--resume"]].concat();
            kill_after_rows(&place, &options, rows);
        }
        assert_done(command(out).arg("--resume"));
        assert_eq!(contents(&place.path(out)), contents(&place.path("whole")), "{out}");
        let left = place.names().into_iter().filter(|name| name.starts_with('.')).count();
        assert_eq!(left, 0, "{:?}", place.names());
    }
}

#[test]
fn rows_of_an_earlier_run_are_not_lost_by_accident() {
    let place = workplace();
    let options = [&OPTIONS[..], &["--out", "e.npy"]].concat();
    kill_after_rows(&place, &options, 8);
    assert_refused(&place, place.command().args(&options), 2, &["e.npy", "earlier run", "--resume", "--overwrite"]);
    assert_done(place.command().args(&options).arg("--overwrite"));
    // It is done now, and there is nothing to go on with.
    assert_refused(&place, place.command().args(&options).arg("--resume"), 2, &["e.npy", "there already"]);
}

#[test]
fn a_run_with_other_settings_is_refused_by_name() {
    let place = workplace();
    let options = [&OPTIONS[..], &["--out", "e.npy", "--resume"]].concat();
    kill_after_rows(&place, &options, 8);
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--steps", "5"], &["--steps was 200, is 5"]),
        (&["--seed", "4"], &["--seed was 3, is 4"]),
        (&["--guidance-scale", "2"], &["--guidance-scale was 4, is 2"]),
        (&["-n", "rain"], &["--negative-prompt was not set, is \"rain\""]),
        (&["--batch-size", "8"], &["--batch-size was 4, is 8"]),
        (&["--samples-per-prompt", "2", "--normalize"], &["--samples-per-prompt was 1, is 2", "--normalize"]),
        (&["--out-dtype", "f16"], &["--out-dtype was f32, is f16"]),
        (&["-p", "one more"], &["the prompts' hash", "the number of rows"]),
    ];
    for (more, words) in cases {
        assert_refused(&place, place.command().args(&options).args(more), 2, words);
    }
    let model = place.copy_model();
    let config = model.join("scheduler/scheduler_config.json");
    fs::write(&config, fs::read_to_string(&config).unwrap() + "\n").unwrap();
    let mut command = place.command();
    assert_refused(&place, command.args(&options).arg("-m").arg(&model), 2, &["the model's hash"]);
    assert_done(place.command().args(&options));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_run_does_not_go_on_with_other_instructions() {
    let place = workplace();
    let options = [&OPTIONS[..], &["--out", "e.npy", "--resume"]].concat();
    kill_after_rows(&place, &options, 8);
    for (name, value, word) in
        [("ATEN_CPU_CAPABILITY", "default", "is DEFAULT"), ("ONEDNN_MAX_CPU_ISA", "SSE41", "SSE41")]
    {
        let mut command = place.command();
        command.args(&options).env(name, value);
        assert_refused(&place, &mut command, 2, &["the processor's instruction set was", word]);
    }
    assert_done(place.command().args(&options));
}

#[test]
fn a_signal_stops_the_run_and_says_how_to_go_on() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let place = workplace();
        let options = [&OPTIONS[..], &["--out", "e.npy"]].concat();
        let mut child = place.spawn(&options, Stdio::null(), Stdio::null());
        place.wait_for_rows("e.npy", 4, &mut child);
        send_signal(&child, signal);
        let output = wait(child);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains("stopped after") && message.contains("--resume"), "{message}");
        assert!(!place.path("e.npy").exists());
        assert_done(place.command().args(&options).arg("--resume"));
        assert_done(place.command().args(&options).args(["--out", "whole.npy"]));
        assert_eq!(fs::read(place.path("e.npy")).unwrap(), fs::read(place.path("whole.npy")).unwrap());
    }
}

#[test]
fn a_signal_while_prompts_are_waited_for_ends_the_run() {
    let place = Workplace::new();
    let child = place.spawn(&["-f", "-", "--out", "e.npy"], Stdio::piped(), Stdio::null());
    // It listens by the time that its hidden folder is there.
    place.wait_until(|| place.path(".e.npy.prior-embed").exists());
    send_signal(&child, "TERM");
    let output = wait(child);
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[test]
fn what_cannot_be_read_again_cannot_be_gone_on_with() {
    let place = Workplace::new();
    let mut command = place.command();
    command.args(["-f", "-", "--out", "e.npy", "--resume"]).write_stdin("a\n");
    assert_refused(&place, &mut command, 2, &["--resume", "standard input"]);
    assert_refused(&place, place.command().args(["-p", "a", "--out", "-", "--resume"]), 2, &["--resume", "stream"]);
}

#[test]
fn two_runs_do_not_write_the_same_file() {
    let place = workplace();
    let options = [&OPTIONS[..], &["--out", "e.npy"]].concat();
    let mut child = place.spawn(&options, Stdio::null(), Stdio::null());
    place.wait_for_rows("e.npy", 4, &mut child);
    let output = place.command().args(&options).arg("--resume").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("another run"), "{}", stderr(&output));
    child.kill().unwrap();
    child.wait().unwrap();
}
