//! What others put where an output goes is left alone, and does not block.

use crate::common::{Workplace, assert_done, assert_refused, send_signal, stderr, wait};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::os::unix::fs::{lchown, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

fn make_pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// Puts something in a place.
type Plant = fn(&Path);

#[test]
fn a_hidden_folder_that_is_not_ours_is_left_alone() {
    let kinds: [(&str, Plant); 5] = [
        ("not a folder", |path| symlink("precious", path).unwrap()),
        ("not a folder", |path| symlink("none", path).unwrap()),
        ("not a regular file", |path| {
            fs::create_dir(path).unwrap();
            symlink("../precious/notes", path.join("journal.jsonl")).unwrap();
        }),
        ("not a regular file", |path| {
            fs::create_dir(path).unwrap();
            ["lock", "journal.jsonl"].iter().for_each(|name| make_pipe(&path.join(name)));
        }),
        ("this program did not make it", |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("image_embeds"), "precious").unwrap();
        }),
    ];
    for (words, plant) in kinds {
        for is_strangers in [false, true] {
            let place = Workplace::new();
            fs::create_dir(place.path("precious")).unwrap();
            fs::write(place.path("precious/notes"), "precious").unwrap();
            let hidden = place.path(".e.npy.prior-embed");
            plant(&hidden);
            // Only root can give files away.
            let _ = is_strangers && lchown(&hidden, Some(65534), Some(65534)).is_ok();
            for options in [[].as_slice(), &["--resume"], &["--overwrite"]] {
                let mut command = place.command();
                let command =
                    command.args(["-p", "a", "--out", "e.npy"]).args(options).timeout(Duration::from_secs(60));
                let words = if is_strangers { "is in the way" } else { words };
                assert_refused(&place, command, 2, &[words, "move it away"]);
            }
            assert_eq!(fs::read(place.path("precious/notes")).unwrap(), b"precious");
            assert_eq!(fs::read_dir(place.path("precious")).unwrap().count(), 1);
            assert!(
                fs::read(hidden.join("image_embeds")).is_ok_and(|bytes| bytes == b"precious")
                    == words.contains("did not make")
            );
        }
    }
}

#[test]
fn a_users_own_folder_in_the_output_stays() {
    let place = Workplace::new();
    fs::create_dir_all(place.path("out/.prior-embed/below")).unwrap();
    fs::write(place.path("out/.prior-embed/notes"), "precious").unwrap();
    for options in [[].as_slice(), &["--resume"], &["--overwrite"]] {
        let mut command = place.command();
        assert_refused(&place, command.args(["-p", "a", "--out-dir", "out"]).args(options), 2, &["is in the way"]);
    }
    assert_eq!(fs::read(place.path("out/.prior-embed/notes")).unwrap(), b"precious");
    assert!(place.path("out/.prior-embed/below").is_dir());
}

#[test]
fn the_first_signal_ends_the_wait_for_a_reader() {
    let place = Workplace::new();
    make_pipe(&place.path("pipe.npy"));
    let child = place.spawn(&["-p", "a", "--out", "pipe.npy"], Stdio::null(), Stdio::null());
    place.wait_until(|| {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_string();
        u64::from_str_radix(&caught, 16).unwrap() & 1 << 14 != 0
    });
    // It waits by now, or is about to.
    std::thread::sleep(Duration::from_millis(300));
    send_signal(&child, "TERM");
    let output = wait(child);
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    // With a reader it is written.
    let mut reader = std::process::Command::new("cat");
    let reader = reader.arg(place.path("pipe.npy")).stdout(Stdio::piped()).spawn().unwrap();
    assert_done(place.command().args(["-p", "a", "--out", "pipe.npy"]));
    assert!(wait(reader).stdout.starts_with(b"\x93NUMPY"));
}
