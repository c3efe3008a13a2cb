//! Runs that end early and are resumed.

use crate::common::{Workplace, assert_done, assert_refused, kill_after_rows, prompts, send_signal, stderr, wait};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Small batches, for many moments to stop at, and enough steps to notice them.
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
fn a_killed_run_resumes_to_the_same_bytes() {
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
    // It is finished and has no record: there is nothing to resume.
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
fn a_run_is_not_resumed_with_other_instructions() {
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
fn a_finished_run_is_not_an_error() {
    for (form, out) in [("--out", "e.npy"), ("--out", "e.parquet"), ("--out-dir", "e")] {
        let place = workplace();
        let command = |more: &[&str]| {
            let mut command = place.command();
            command.args(OPTIONS).args([form, out, "--steps", "3", "--resume"]).args(more);
            command
        };
        assert_eq!(assert_done(&mut command(&[])), "");
        let (names, bytes) = (place.names(), contents(&place.path(out)));
        let note = assert_done(&mut command(&["--stats", "s.json"]));
        assert!(note.contains("already there, complete") && note.lines().count() == 1, "{note}");
        fs::remove_file(place.path("s.json")).unwrap();
        let others = [
            (["--steps", "4"], "--steps was 3, is 4"),
            (["--out-dtype", "f16"], "--out-dtype was f32, is f16"),
            (["--shard", "1/1"], "there already"),
        ];
        for (more, word) in others.iter().filter(|_| out == "e.npy") {
            assert_refused(&place, &mut command(more), 2, &[out, word, "--overwrite"]);
        }
        let prompts = fs::read_to_string(place.path("p.jsonl")).unwrap();
        fs::write(place.path("p.jsonl"), prompts.replace("rain", "snow")).unwrap();
        assert_refused(&place, &mut command(&[]), 2, &[out, "the prompts' hash", "--overwrite"]);
        fs::write(place.path("p.jsonl"), prompts).unwrap();
        assert_eq!((place.names(), contents(&place.path(out))), (names, bytes), "nothing changes");
        // A changed byte, and a truncated output.
        let file = if form == "--out" { out } else { "e/img_emb/img_emb_0000.npy" };
        let whole = fs::read(place.path(file)).unwrap();
        let mut changed = whole.clone();
        let place_of_number = whole.len() / 2;
        changed[place_of_number] ^= 1;
        for wrong in [&changed, &whole[..whole.len() - 30]] {
            fs::write(place.path(file), wrong).unwrap();
            assert_refused(&place, &mut command(&[]), 2, &[out, "there already, and not as this run wrote it"]);
        }
        fs::write(place.path(file), &whole).unwrap();
        assert_done(&mut command(&[]));
        // A stale record is not in the way of a new output, and is replaced.
        let remove = |path: &Path| if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        remove(&place.path(out)).unwrap();
        assert_done(&mut command(&["--seed", "4"]));
        assert!(assert_done(&mut command(&["--seed", "4"])).contains("already there, complete"));
        assert_refused(&place, &mut command(&[]), 2, &["--seed was 4, is 3"]);
    }
}

#[test]
fn a_run_resumes_with_its_own_batch_size() {
    let place = workplace();
    let options = ["-f", "p.jsonl", "--seed", "3", "--steps", "200", "--out", "e.npy", "--resume"];
    assert_done(place.command().args(&options[..6]).args(["--batch-size", "4", "--out", "whole.npy"]));
    kill_after_rows(&place, &[&options[..], &["--batch-size", "4"]].concat(), 8);
    // Another size is refused if it is asked for, and not chosen by free memory.
    assert_refused(&place, place.command().args(options).args(["--batch-size", "8"]), 2, &["--batch-size was 4, is 8"]);
    for _ in 0..2 {
        assert_done(place.command().args(options));
        assert!(fs::read(place.path("e.npy")).unwrap() == fs::read(place.path("whole.npy")).unwrap());
    }
}

#[test]
fn a_signal_stops_the_run_and_tells_how_to_resume() {
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
    // It handles signals once its hidden folder exists.
    place.wait_until(|| place.path(".e.npy.prior-embed").exists());
    send_signal(&child, "TERM");
    let output = wait(child);
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[test]
fn a_signal_ends_a_run_with_a_stalled_reader() {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), "a cat\n".repeat(5000)).unwrap();
    for format in ["npy", "npz"] {
        let options = ["-f", "p.txt", "--batch-size", "500", "--steps", "1", "--out", "-", "--format", format];
        let mut child = place.spawn(&options, Stdio::null(), Stdio::piped());
        // The first bytes are there; the rest fills the pipe.
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        send_signal(&child, "TERM");
        // Open, and not read.
        let stdout = child.stdout.take();
        let output = wait(child);
        assert_eq!(output.status.code(), Some(143), "{format}: {}", stderr(&output));
        assert!(stderr(&output).contains("nothing is kept"), "{}", stderr(&output));
        drop(stdout);
    }
}

/// Whether a process handles Ctrl-C.
fn catches_interrupt(child: &std::process::Child) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
    u64::from_str_radix(caught, 16).unwrap() & 2 != 0
}

#[test]
fn a_signal_ends_the_counting_of_prompts() {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), "a cat on a mat\n".repeat(6_000_000)).unwrap();
    let child = place.spawn(&["-f", "p.txt", "--out", "e.npy"], Stdio::null(), Stdio::null());
    // It handles signals by now, and counts for much longer than this takes.
    place.wait_until(|| catches_interrupt(&child));
    send_signal(&child, "INT");
    let output = wait(child);
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("while the prompts were counted"), "{}", stderr(&output));
    assert_eq!(place.names(), ["p.txt"]);
}

#[test]
fn a_file_that_grows_is_written_as_it_was_and_one_that_is_edited_is_not() {
    let place = workplace();
    let lines = fs::read_to_string(place.path("p.jsonl")).unwrap();
    assert_done(place.command().args(OPTIONS).args(["--out", "whole.npy"]));
    let run = |change: &dyn Fn()| {
        let options = [&OPTIONS[..], &["--out", "e.npy"]].concat();
        let mut child = place.spawn(&options, Stdio::null(), Stdio::null());
        // It has counted the rows, and reads the file to its end again.
        place.wait_for_rows("e.npy", 4, &mut child);
        change();
        wait(child)
    };
    // The second pass reads ahead: a short file is read by now, and only a longer one can be seen to change.
    let long = lines.clone() + &format!("{{\"prompt\": \"{}\", \"steps\": 1}}\n", "x ".repeat(1 << 20)).repeat(60);
    fs::write(place.path("p.jsonl"), &long).unwrap();
    let output = run(&|| {
        let mut file = fs::File::options().append(true).open(place.path("p.jsonl")).unwrap();
        file.write_all(b"{\"prompt\": \"one more\"}\n").unwrap();
    });
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("has grown"), "{}", stderr(&output));
    let (grown, whole) = (fs::read(place.path("e.npy")).unwrap(), fs::read(place.path("whole.npy")).unwrap());
    assert_eq!(grown[128..whole.len()], whole[128..]);
    fs::remove_file(place.path("e.npy")).unwrap();
    let output = run(&|| {
        // In place, beyond what the run has read.
        let mut file = fs::File::options().write(true).open(place.path("p.jsonl")).unwrap();
        file.seek(SeekFrom::End(-100)).unwrap();
        file.write_all(b"y y").unwrap();
    });
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("was edited while it was read"), "{}", stderr(&output));
    assert_eq!(place.names(), ["p.jsonl", "whole.npy"]);
}

#[test]
fn a_full_disk_keeps_the_rows_before_it() {
    let place = workplace();
    let embed = |out: &str| {
        let mut command = place.command();
        command.args(OPTIONS).args(["--out", out]);
        command
    };
    assert_done(&mut embed("whole.npy"));
    let size = fs::metadata(place.path("whole.npy")).unwrap().len();
    // The largest file that is allowed; a write beyond it is an error.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", size / 2 / 1024);
    let program = embed("e.npy");
    let mut limited = assert_cmd::Command::new("bash");
    limited.current_dir(place.folder.path()).args(["-c", &script, "bash"]).arg(program.get_program());
    let output = limited.args(program.get_args()).output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.lines().count() == 1 && message.contains("rows are kept, and --resume continues"), "{message}");
    assert!(!message.contains(" 0 rows are kept") && message.contains("ulimit -f"), "{message}");
    assert_done(embed("e.npy").arg("--resume"));
    assert!(fs::read(place.path("e.npy")).unwrap() == fs::read(place.path("whole.npy")).unwrap());
}

#[test]
fn a_pipe_cannot_be_resumed() {
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
