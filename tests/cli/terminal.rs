//! Standard error that is a terminal.

use crate::common::{Workplace, model, wait};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command as Process, Stdio};

/// A terminal: the side that shows it, and the side that programs write to.
fn terminal() -> (File, File) {
    let screen: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    // A process that inherits it would keep the terminal.
    fcntl_setfd(&screen, FdFlags::CLOEXEC).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let name = ptsname(&screen, Vec::new()).unwrap();
    let programs = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (screen.into(), programs)
}

#[test]
fn a_terminal_that_vanishes_does_not_end_the_run() {
    let place = Workplace::new();
    let (mut screen, programs) = terminal();
    let mut command = Process::new(env!("CARGO_BIN_EXE_prior-embed"));
    command.arg("--model").arg(model()).args(["--steps", "3", "-f", "-", "--out", "-", "--format", "jsonl"]);
    command.current_dir(place.folder.path()).env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(programs).spawn().unwrap();
    // It holds the last copy of the terminal's other side, which would keep the terminal.
    drop(command);
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut answers = || output.read_line(&mut String::new()).unwrap();
    writeln!(input, "a red apple").unwrap();
    assert!(answers() > 0);
    assert!(screen.read(&mut [0; 4096]).unwrap() > 0, "something is shown");
    drop(screen);
    for _ in 0..5 {
        // Worth a warning.
        writeln!(input, "{}", "word ".repeat(1000)).unwrap();
        assert!(answers() > 0);
    }
    drop(input);
    assert_eq!((answers(), wait(child).status.code()), (0, Some(0)));
}

#[test]
fn the_column_is_told_on_a_terminal_and_elsewhere_on_demand() {
    let place = Workplace::new();
    std::fs::write(place.path("p.csv"), "caption;id\na red apple;1\n").unwrap();
    let command = |options: &[&str]| {
        let mut command = Process::new(env!("CARGO_BIN_EXE_prior-embed"));
        command.arg("--model").arg(model()).args(["--steps", "3", "--out", "e.npy", "--overwrite"]).args(options);
        command.current_dir(place.folder.path()).env("TERM", "xterm");
        command
    };
    let line = "prior-embed: the prompts of p.csv are in column \"caption\", and ';' separates the columns";
    for (options, told) in [(&["-f", "p.csv"][..], true), (&["-f", "p.csv", "-q"], false)] {
        let (mut screen, programs) = terminal();
        let mut command = command(options);
        let child = command.stdin(Stdio::null()).stderr(programs).spawn().unwrap();
        drop(command);
        let reader = std::thread::spawn(move || {
            let mut shown = Vec::new();
            // The other side going is an error on Linux.
            let _ = screen.read_to_end(&mut shown);
            String::from_utf8_lossy(&shown).into_owned()
        });
        assert_eq!(wait(child).status.code(), Some(0));
        let shown = reader.join().unwrap();
        assert_eq!(shown.contains(line), told, "{shown}");
    }
    for (options, told) in
        [(&["-f", "p.csv"][..], String::new()), (&["-f", "p.csv", "-v"], line.replace(": the", ": info: the"))]
    {
        let output = command(options).output().unwrap();
        let shown = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && shown.contains(&told) && told.is_empty() == shown.is_empty(), "{shown}");
        assert_eq!(shown.matches("caption").count(), usize::from(!told.is_empty()), "once: {shown}");
    }
}
