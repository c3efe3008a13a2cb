//! Runs that are refused, in processes that stay: a process of its own for each would load libtorch, which takes most of
//! its time.
//!
//! A worker is this test program again, with [`serves_runs`] as its only test. It calls what `main` of the program calls.

use assert_cmd::Command;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command as Process, ExitStatus, Output};
use std::sync::Mutex;

/// The first reply of a worker.
const READY: &str = "ready";

/// Set in a worker.
const IS_WORKER: &str = "PRIOR_EMBED_TEST_WORKER";

/// Workers that have nothing to do.
static IDLE: Mutex<Vec<Worker>> = Mutex::new(Vec::new());

/// A process that runs what it is sent, until its standard input ends.
struct Worker {
    process: Child,
    requests: BufReader<UnixStream>,
    stdout: File,
    stderr: File,
}

impl Worker {
    fn start() -> Self {
        let (here, there) = UnixStream::pair().unwrap();
        let [stdout, stderr] = [(); 2].map(|()| tempfile::tempfile().unwrap());
        let (_, module) = module_path!().split_once("::").unwrap();
        let process = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::serves_runs"), "--nocapture"])
            .env(IS_WORKER, "1")
            .env_remove("RUST_BACKTRACE")
            .stdin(OwnedFd::from(there))
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap())
            .spawn()
            .unwrap();
        let mut worker = Self { process, requests: BufReader::new(here), stdout, stderr };
        // What the test harness prints comes before this.
        assert_eq!(worker.reply(), READY, "no worker has started");
        worker
    }

    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.requests.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }

    fn run(&mut self, request: &Value) -> Output {
        let starts = [&mut self.stdout, &mut self.stderr].map(|file| file.seek(SeekFrom::End(0)).unwrap());
        writeln!(self.requests.get_mut(), "{request}").unwrap();
        let code = self.reply();
        let [stdout, stderr] = [(&mut self.stdout, starts[0]), (&mut self.stderr, starts[1])].map(|(file, start)| {
            let mut printed = Vec::new();
            file.seek(SeekFrom::Start(start)).unwrap();
            file.read_to_end(&mut printed).unwrap();
            printed
        });
        let code: i32 = code.parse().unwrap_or_else(|_| {
            let (ended, told) = (self.process.try_wait(), String::from_utf8_lossy(&stderr));
            panic!("{request}: the worker ended ({ended:?}): {told}")
        });
        Output { status: ExitStatus::from_raw(code << 8), stdout, stderr }
    }
}

/// Runs a command of the program in a worker, unless it reads standard input or has an environment of its own.
pub fn run(command: &Command) -> Option<Output> {
    let is_plain = |argument: &&str| *argument != "-" && !argument.starts_with("/dev/");
    let arguments: Option<Vec<&str>> = command.get_args().map(|argument| argument.to_str().filter(is_plain)).collect();
    let has_variables = command.get_envs().any(|(_, value)| value.is_some());
    if command.get_program() != env!("CARGO_BIN_EXE_prior-embed") || has_variables {
        return None;
    }
    let request = json!({"folder": command.get_current_dir()?, "arguments": arguments?});
    let idle = IDLE.lock().unwrap().pop();
    let mut worker = idle.unwrap_or_else(Worker::start);
    let output = worker.run(&request);
    IDLE.lock().unwrap().push(worker);
    Some(output)
}

/// What a worker does. In any other process there is nothing to serve.
#[test]
fn serves_runs() {
    if std::env::var_os(IS_WORKER).is_none() {
        return;
    }
    let mut replies = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let requests = BufReader::new(replies.try_clone().unwrap());
    writeln!(replies, "{READY}").unwrap();
    for request in requests.lines() {
        let request: Value = serde_json::from_str(&request.unwrap()).unwrap();
        std::env::set_current_dir(request["folder"].as_str().unwrap()).unwrap();
        let arguments = request["arguments"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
        let code = prior_embed::cli::run(["prior-embed"].into_iter().chain(arguments).map(Into::into));
        writeln!(replies, "{code}").unwrap();
    }
}

/// A worker refuses as the program does, one time after another.
#[test]
fn a_worker_is_the_program() {
    let place = super::Workplace::new();
    for arguments in [
        &["-p", "x", "-o", "e.npy", "--steps", "0"][..],
        &["-p", "x", "-o", "e.npy", "-m", "none"],
        &["--nonsense"],
        &["-p", "x", "-o", "e.npy", "--sde"],
        &["info", "none"],
        &["-p", "x", "-o", "e.npy", "--sde"],
    ] {
        let mut command = place.bare();
        command.args(arguments);
        let (own, expected) = (run(&command).unwrap(), command.output().unwrap());
        assert_eq!(own, expected, "{arguments:?}");
        assert_eq!(own.status.code(), Some(2));
    }
    assert!(run(place.bare().args(["-f", "-"])).is_none() && run(place.bare().env("A", "b")).is_none());
}
