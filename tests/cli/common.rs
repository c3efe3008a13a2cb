//! A temporary folder with a small model, and the binary run in it.

#[path = "worker.rs"]
mod worker;

use assert_cmd::Command;
use ndarray::Array2;
use ndarray_npy::{NpzReader, ReadNpyExt};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// `tests/fixtures`.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A small model with everything in it.
pub fn model() -> PathBuf {
    fixtures().join("pipelines/kandinsky22")
}

/// A picture of the fixtures.
pub fn picture(name: &str) -> PathBuf {
    fixtures().join("images").join(name)
}

/// A folder to write in, and a copy of the model to break.
pub struct Workplace {
    pub folder: TempDir,
}

impl Workplace {
    pub fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    /// With a copy of a model of the fixtures, at `model`.
    pub fn with_model(fixture: &str) -> (Self, PathBuf) {
        let place = Self::new();
        let model = place.copy(&fixtures().join(fixture), "model");
        (place, model)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The array in a `.npy` file of the workplace.
    pub fn npy(&self, name: &str) -> Array2<f32> {
        read_npy(&std::fs::read(self.path(name)).unwrap())
    }

    /// A copy of the model, at `model` in the workplace.
    pub fn copy_model(&self) -> PathBuf {
        self.copy(&model(), "model")
    }

    /// A copy of a folder, under a name in the workplace.
    pub fn copy(&self, folder: &Path, name: &str) -> PathBuf {
        let target = self.path(name);
        copy_folder(folder, &target);
        target
    }

    /// The binary, with the workplace as its current folder and no options yet.
    pub fn bare(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prior-embed"));
        command.current_dir(self.folder.path()).env_remove("RUST_BACKTRACE");
        command
    }

    /// The binary with the small model and few steps.
    pub fn command(&self) -> Command {
        let mut command = self.bare();
        command.arg("--model").arg(model()).args(["--steps", "3"]);
        command
    }

    /// The embeddings of a run of `model` in the workplace.
    pub fn embed(&self, options: &[&str]) -> Array2<f32> {
        assert_done(self.bare().args(["-m", "model", "--out", "e.npy", "--overwrite"]).args(options));
        self.npy("e.npy")
    }

    /// Starts the binary with the small model and few steps, to be talked to while it runs.
    pub fn spawn(&self, options: &[&str], input: Stdio, output: Stdio) -> Child {
        let mut command = Process::new(env!("CARGO_BIN_EXE_prior-embed"));
        command.arg("--model").arg(model()).args(["--steps", "3"]).args(options).current_dir(self.folder.path());
        command.stdin(input).stdout(output).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until something is so.
    pub fn wait_until(&self, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(120), "it does not happen; there is {:?}", self.names());
            sleep(Duration::from_millis(2));
        }
    }

    /// Waits until a run that writes `out` has so many rows safe, or has ended.
    pub fn wait_for_rows(&self, out: &str, rows: u64, child: &mut Child) {
        let beside = self.path(&format!(".{out}.prior-embed/journal.jsonl"));
        let inside = self.path(out).join(".prior-embed/journal.jsonl");
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            let journal = std::fs::read_to_string(&beside).or_else(|_| std::fs::read_to_string(&inside));
            let lines = journal.unwrap_or_default();
            let safe = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let safe = safe.filter_map(|line| find_rows(&line)).max().unwrap_or(0);
            if safe >= rows {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "no rows come; there is {:?}", self.names());
            sleep(Duration::from_millis(1));
        }
    }

    /// The names in the workplace, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = self.folder.path().read_dir().unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Sets a key of a JSON file.
pub fn edit_json(path: &Path, key: &str, value: serde_json::Value) {
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

/// The array in a `.npy` file.
pub fn read_npy(bytes: &[u8]) -> Array2<f32> {
    Array2::read_npy(bytes).unwrap()
}

/// An array in a `.npz` file.
pub fn read_npz(bytes: Vec<u8>, name: &str) -> Array2<f32> {
    NpzReader::new(Cursor::new(bytes)).unwrap().by_name(name).unwrap()
}

/// The largest magnitude in an array.
pub fn largest(values: &Array2<f32>) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// How far apart two arrays are, of the second one's largest magnitude.
pub fn off(left: &Array2<f32>, right: &Array2<f32>) -> f32 {
    assert_eq!(left.dim(), right.dim());
    largest(&(left - right)) / largest(right)
}

/// The least cosine between a row and the row in the same place.
pub fn lowest_cosine(left: &Array2<f32>, right: &Array2<f32>) -> f32 {
    let norm = |row: ndarray::ArrayView1<f32>| row.dot(&row).sqrt();
    let cosines = left.rows().into_iter().zip(right.rows()).map(|(a, b)| a.dot(&b) / norm(a) / norm(b));
    cosines.fold(1.0, f32::min)
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Asserts that the run failed with `code`, one line that contains all of `words`, and no new file.
pub fn assert_refused(workplace: &Workplace, command: &mut Command, code: i32, words: &[&str]) {
    let before = workplace.names();
    // What fails while it runs may leave threads behind.
    let output = (code == 2).then(|| worker::run(command)).flatten().unwrap_or_else(|| command.output().unwrap());
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(message.lines().count(), 1, "not one line: {message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    assert!(output.stdout.is_empty(), "something is on standard output");
    assert_eq!(workplace.names(), before, "files were left behind");
}

/// Asserts that the run succeeded, and gives what it printed on standard error.
pub fn assert_done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{message}");
    message
}

/// The number of rows in a line of a journal, at whatever depth.
fn find_rows(line: &serde_json::Value) -> Option<u64> {
    let object = line.as_object()?;
    object.get("rows").and_then(serde_json::Value::as_u64).or_else(|| object.values().find_map(find_rows))
}

/// Starts a run and ends it, as a power cut would, when it has so many rows of its output safe.
pub fn kill_after_rows(place: &Workplace, options: &[&str], rows: u64) {
    let out = options.iter().position(|option| option.starts_with("--out")).map(|place| options[place + 1]).unwrap();
    let mut child = place.spawn(options, Stdio::null(), Stdio::null());
    place.wait_for_rows(out, rows, &mut child);
    assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be killed");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Sends a signal by its name, as `kill` has it.
pub fn send_signal(child: &Child, signal: &str) {
    let sent = Process::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
}

/// Waits for the end of a run that is expected to end.
pub fn wait(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("the run does not end");
        }
        sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// A prompt for each number, no two of which are equal.
pub fn prompts(number: usize) -> String {
    let things = ["a red apple", "two cats", "rain", "a house by the sea", "an old clock"];
    format!("{} number {number}", things[number % things.len()])
}
