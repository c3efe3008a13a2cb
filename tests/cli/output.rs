//! What goes to files and to standard output.

use crate::common::{Workplace, assert_done, assert_refused, largest, read_npy, read_npz, stderr, wait};
use ndarray_npy::NpzReader;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command as Process, Stdio};

#[test]
fn rows_are_prompts_times_samples() {
    let place = Workplace::new();
    let options = ["-p", "a red apple", "-p", "two cats", "--samples-per-prompt", "2", "--seed", "5"];
    assert_done(place.command().args(options).args(["--out", "all.npy"]));
    let all = read_npy(&fs::read(place.path("all.npy")).unwrap());
    assert_eq!(all.nrows(), 4);
    // The third row is the second prompt's first sample; alone, it has its seed.
    assert_done(place.command().args(["-p", "two cats", "--seed", "7", "--out", "one.npy"]));
    let one = read_npy(&fs::read(place.path("one.npy")).unwrap());
    for (left, right) in all.row(2).iter().zip(one.row(0)) {
        assert!((left - right).abs() < 1e-5 * largest(&all));
    }
    assert_ne!(all.row(0), all.row(1), "samples of a prompt differ");
}

#[test]
fn prompts_come_from_options_then_a_file_or_standard_input() {
    let place = Workplace::new();
    fs::write(place.path("captions.txt"), "\u{feff}two cats\r\n\r\na dog").unwrap();
    assert_done(place.command().args(["-p", "a red apple", "-f", "captions.txt", "--out", "file.npy"]));
    let file = fs::read(place.path("file.npy")).unwrap();
    assert_eq!(read_npy(&file).nrows(), 3);
    let mut command = place.command();
    command.args(["-p", "a red apple", "-f", "-", "--out", "stdin.npy"]).write_stdin("two cats\na dog\n");
    assert_done(&mut command);
    assert_eq!(fs::read(place.path("stdin.npy")).unwrap(), file);
}

#[test]
fn standard_output_carries_the_array_alone() {
    let place = Workplace::new();
    assert_done(place.command().args(["-p", "a red apple", "--out", "e.npy"]));
    let output = place.command().args(["-p", "a red apple", "--out", "-"]).output().unwrap();
    assert_eq!(output.stdout, fs::read(place.path("e.npy")).unwrap());
    assert_eq!(stderr(&output), "", "no bars where standard error is no terminal");
    let output = place.command().args(["-p", "a red apple", "--out", "-", "--format", "npz"]).output().unwrap();
    assert_eq!(read_npz(output.stdout, "image_embeds").nrows(), 1);
}

#[test]
fn npz_holds_both_embeddings() {
    let place = Workplace::new();
    let options = ["-p", "a red apple", "-p", "x", "-n", "blurry"];
    assert_done(place.command().args(options).args(["--out", "e.npz"]));
    assert_done(place.command().args(options).args(["--out", "e.npy", "--negative-out", "n.npy"]));
    let npz = fs::read(place.path("e.npz")).unwrap();
    assert_eq!(read_npz(npz.clone(), "image_embeds"), read_npy(&fs::read(place.path("e.npy")).unwrap()));
    assert_eq!(read_npz(npz, "negative_image_embeds"), read_npy(&fs::read(place.path("n.npy")).unwrap()));
    // The same file may be named twice, where one file holds both.
    assert_done(place.command().args(options).args(["--out", "same.npz", "--negative-out", "same.npz"]));
    assert_eq!(fs::read(place.path("same.npz")).unwrap(), fs::read(place.path("e.npz")).unwrap());
}

#[test]
fn npz_without_negative_embeddings_holds_the_others() {
    let place = Workplace::new();
    fs::remove_dir_all(place.copy_model().join("image_encoder")).unwrap();
    assert_done(place.bare().args(["-m", "model", "-p", "x", "--steps", "2", "--out", "e.npz"]));
    let npz = NpzReader::new(Cursor::new(fs::read(place.path("e.npz")).unwrap()));
    assert_eq!(npz.unwrap().names().unwrap(), ["image_embeds"]);
}

#[test]
fn negative_embeddings_may_be_left_out() {
    let place = Workplace::new();
    let run =
        |options: &[&str]| assert_done(place.command().args(["-p", "a", "-n", "rain", "--no-negative"]).args(options));
    assert_eq!(run(&["--out", "e.npz"]), "");
    let mut npz = NpzReader::new(Cursor::new(fs::read(place.path("e.npz")).unwrap())).unwrap();
    assert_eq!(npz.names().unwrap(), ["image_embeds"]);
    let both = place.command().args(["-p", "a", "-n", "rain", "--out", "-", "--format", "npz"]).output().unwrap();
    let alone = read_npz(fs::read(place.path("e.npz")).unwrap(), "image_embeds");
    assert_eq!(alone, read_npz(both.stdout, "image_embeds"));
    assert!(run(&["--out", "e.npy"]).contains("--no-negative has no effect"));
    let mut command = place.command();
    command.args(["-p", "a", "--no-negative", "--negative-out", "n.npy", "--out", "f.npy"]);
    assert_refused(&place, &mut command, 2, &["--no-negative", "--negative-out"]);
}

#[test]
fn a_black_image_is_the_negative_of_every_row() {
    let place = Workplace::new();
    assert_done(place.command().args(["-p", "a", "-p", "b", "--out", "e.npy", "--negative-out", "n.npy"]));
    let negative = read_npy(&fs::read(place.path("n.npy")).unwrap());
    assert_eq!(negative.nrows(), 2);
    assert_eq!(negative.row(0), negative.row(1));
}

#[test]
fn new_files_have_the_permissions_of_any_new_file() {
    let place = Workplace::new();
    fs::write(place.path("other"), "").unwrap();
    assert_done(place.command().args(["-p", "x", "--out", "e.npy"]));
    let mode = |name| fs::metadata(place.path(name)).unwrap().permissions().mode();
    assert_eq!(mode("e.npy"), mode("other"));
}

#[test]
fn a_link_is_followed() {
    let place = Workplace::new();
    fs::create_dir(place.path("elsewhere")).unwrap();
    fs::write(place.path("elsewhere/e.npy"), "old").unwrap();
    std::os::unix::fs::symlink("elsewhere/e.npy", place.path("link.npy")).unwrap();
    assert_done(place.command().args(["-p", "x", "--out", "link.npy", "--overwrite"]));
    assert!(fs::symlink_metadata(place.path("link.npy")).unwrap().is_symlink());
    assert_eq!(read_npy(&fs::read(place.path("elsewhere/e.npy")).unwrap()).nrows(), 1);
}

#[test]
fn a_link_to_a_missing_file_is_followed() {
    for (option, name) in [("--out", "link.npy"), ("--out-dir", "link"), ("--stats", "link.json")] {
        let place = Workplace::new();
        fs::create_dir(place.path("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere/there", place.path(name)).unwrap();
        let out: &[&str] = if option == "--stats" { &["--out", "e.npy"] } else { &[] };
        let overwrite: &[&str] = if option == "--out-dir" { &[] } else { &["--overwrite"] };
        for more in [&[], overwrite] {
            let mut command = place.command();
            assert_done(command.args(["-p", "x", option, name]).args(out).args(more));
            assert!(fs::symlink_metadata(place.path(name)).unwrap().is_symlink());
            assert!(fs::symlink_metadata(place.path("elsewhere/there")).is_ok_and(|there| !there.is_symlink()));
            if overwrite.is_empty() {
                break;
            }
            // And now it is there.
            let mut again = place.command();
            assert_refused(&place, again.args(["-p", "x", option, name]).args(out), 2, &["there already"]);
        }
        assert!(place.names().iter().all(|name| !name.starts_with('.')), "{:?}", place.names());
    }
}

#[test]
fn a_replaced_file_keeps_its_permissions() {
    let place = Workplace::new();
    for name in ["e.npy", "s.json", "e.npy.errors.jsonl"] {
        fs::write(place.path(name), "old").unwrap();
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o664)).unwrap();
    }
    fs::write(place.path("p.jsonl"), "{\"prompt\": 3}\n{\"prompt\": \"a\"}\n").unwrap();
    let mut command = place.command();
    command.args(["-f", "p.jsonl", "--on-error", "skip", "--out", "e.npy", "--stats", "s.json", "--overwrite"]);
    assert_done(&mut command);
    for name in ["e.npy", "s.json", "e.npy.errors.jsonl"] {
        assert_eq!(fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o777, 0o664, "{name}");
        assert_ne!(fs::read(place.path(name)).unwrap(), b"old");
    }
}

#[test]
fn skipped_rows_of_a_missing_output_are_not_reported() {
    let place = Workplace::new();
    let options = ["-f", "-", "--format-in", "jsonl", "--on-error", "skip", "--out", "e.npy"];
    let mut child = place.spawn(&options, Stdio::piped(), Stdio::null());
    place.wait_until(|| place.path(".e.npy.prior-embed").exists());
    // It appears while the run waits for its prompts.
    fs::write(place.path("e.npy"), "precious").unwrap();
    child.stdin.take().unwrap().write_all(b"{\"prompt\": 3}\n{\"prompt\": \"a\"}\n").unwrap();
    let output = wait(child);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("appeared"), "{}", stderr(&output));
    assert_eq!(place.names(), ["e.npy"]);
}

#[test]
fn a_reader_that_closes_early_is_a_quiet_end() {
    let place = Workplace::new();
    let mut child = Process::new(env!("CARGO_BIN_EXE_prior-embed"))
        .arg("--model")
        .arg(crate::common::model())
        .args(["--steps", "2", "--samples-per-prompt", "4000", "--batch-size", "4000", "-p", "x", "--out", "-"])
        .current_dir(place.folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut start = [0; 6];
    child.stdout.take().unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"\x93NUMPY");
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn a_row_does_not_depend_on_the_number_of_workers() {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), (0..40).map(|number| format!("cat number {number}\n")).collect::<String>()).unwrap();
    let run = |threads: &str| {
        let mut command = place.command();
        command.args(["-f", "p.txt", "--batch-size", "3", "--threads", threads, "--out", "e.npz", "--overwrite"]);
        assert_done(&mut command);
        fs::read(place.path("e.npz")).unwrap()
    };
    assert!(run("1") == run("2"), "the bytes differ");
}

#[test]
fn standard_error_may_be_closed() {
    let place = Workplace::new();
    std::fs::write(place.path("p.txt"), format!("{}\n", "very long ".repeat(100))).unwrap();
    let binary = format!("{:?} --steps 2 -m {:?}", env!("CARGO_BIN_EXE_prior-embed"), crate::common::model());
    let code = |script: &str| {
        let mut command = Process::new("bash");
        command.args(["-c", script]).current_dir(place.folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().code()
    };
    // A full device, a closed descriptor, and a pipe without a reader.
    for stderr in ["2>/dev/full", "2>&-", "2> >(exec 0<&-)"] {
        let wait = "sleep 0.2;";
        // A warning, an error, and a wrong usage.
        let done = format!("exec {stderr}; {wait} {binary} -f p.txt --out e.npy --overwrite");
        assert_eq!(code(&done), Some(0), "{stderr}");
        assert_eq!(code(&format!("exec {stderr}; {wait} {binary} -f none.txt --out e.npy")), Some(2), "{stderr}");
        assert_eq!(code(&format!("exec {stderr}; {wait} {binary} --no-such-option")), Some(2), "{stderr}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let place = Workplace::new();
    let help = place.bare().arg("--help").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    for option in ["--prompt", "--out", "--model", "--negative-out", "--guidance-scale", "--resume", "--shard", "merge"]
    {
        assert!(text.contains(option), "{option} is not in the help");
    }
    assert!(help.status.success());
    let version = place.bare().arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(version.stdout).unwrap().trim(), concat!("prior-embed ", env!("CARGO_PKG_VERSION")));
}
