//! Runs of the program itself.

use crate::cases::Outcome;
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// The program in a folder.
pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prior-embed"));
    command.current_dir(folder).env_remove("RUST_BACKTRACE");
    command
}

/// How a run ends that is to leave at most a line on standard error.
pub fn outcome(command: &mut Command) -> Outcome {
    let path = command.get_current_dir().unwrap().join("stderr");
    let mut child = command.arg("--quiet").stderr(File::create(&path).unwrap()).spawn().unwrap();
    let mut bytes = None;
    let status = loop {
        bytes = crate::memory::peak(child.id()).max(bytes);
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => std::thread::sleep(std::time::Duration::from_millis(2)),
        }
    };
    let line = std::fs::read_to_string(path).unwrap();
    match status.code() {
        _ if bytes > Some(MAX_BYTES) => Outcome::Panicked(format!("took {bytes:?} bytes of memory")),
        Some(0) => Outcome::Used,
        // A panic's.
        Some(101) | None => Outcome::Panicked(format!("{status}: {line}")),
        Some(code) => Outcome::Refused { code: code as u8, line },
    }
}

/// The memory of a run on small files: libtorch, the model, and buffers.
const MAX_BYTES: u64 = 1 << 30;
