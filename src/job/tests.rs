//! Whole runs of a small model.

use super::first_pass::tests::options;
use super::*;
use crate::output::{Arrays, Output, OutputFormat};
use crate::weights::checkpoint::Placement;
use crate::weights::precision::Precision;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tch::Device;
use tempfile::TempDir;

fn opener() -> Opener {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines/kandinsky22");
    let load = Placement { device: Device::Cpu, precision: Precision::F32 };
    Arc::new(move || Ok(Pipeline::open(&model, load)?))
}

/// A job that writes `out` in `folder`, of batches of 4 rows unless free memory decides, with 3 workers.
fn job(folder: &TempDir, prompts: &str, out: &str, format: OutputFormat) -> Job {
    let open = opener();
    let prompts = Prompts { files: [folder.path().join(prompts).into()].into(), ..Prompts::default() };
    let output = Output { path: folder.path().join(out), format, arrays: Arrays::IMAGE };
    Job {
        entries: prompts.open().unwrap(),
        prompts,
        options: RowOptions {
            samples: 1,
            settings: crate::pipeline::Settings { steps: 2, ..options().settings },
            ..options()
        },
        pipeline: open().unwrap(),
        open,
        compute: ComputeOptions { batch_size: Some(4), threads: Some(3), free_memory: None },
        write: WriteOptions::new(vec![output]),
        report: None,
        provenance: None,
    }
}

fn folder(lines: usize) -> TempDir {
    let folder = TempDir::new().unwrap();
    let lines: String = (0..lines).map(|number| format!("cat number {number}\n")).collect();
    fs::write(folder.path().join("p.txt"), lines).unwrap();
    folder
}

/// Raises a signal once so many rows are written.
struct StopAfter {
    rows: u64,
    stop: Stop,
}

impl JobProgress for StopAfter {
    fn written(&self, rows: u64, _batches: u64) {
        if rows >= self.rows {
            self.stop.raise(15);
        }
    }
}

/// Runs that start threads, one at a time: their threads can be told by name, and not whose they are.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads of this process that a job has started.
#[cfg(target_os = "linux")]
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("embed-worker") || name.starts_with("embed-reader")).count()
}

/// Asserts that a job's threads have ended. The system may list a thread for a moment after it was joined.
#[cfg(target_os = "linux")]
fn assert_no_threads(ending: &str) {
    let start = Instant::now();
    while threads() > 0 {
        assert!(start.elapsed() < Duration::from_millis(500), "{ending}: {} threads are left", threads());
        thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_leaves_no_thread_behind_however_it_ends() {
    let _alone = alone();
    let most = Arc::new(AtomicU64::new(0));
    struct Count(Arc<AtomicU64>);
    impl JobProgress for Count {
        fn computed(&self, _rows: f64) {
            self.0.fetch_max(threads() as u64, Ordering::Relaxed);
        }
    }
    let folder = folder(40);
    let done = job(&folder, "p.txt", "done.npy", OutputFormat::Npy);
    let summary = done.run(Arc::new(Count(Arc::clone(&most))), &Stop::default()).unwrap();
    assert_eq!((summary.outcome, summary.rows, summary.workers), (Outcome::Done, 40, 3));
    assert!(most.load(Ordering::Relaxed) > 1, "the threads cannot be told by name");
    assert_no_threads("done");

    let mut failing = job(&folder, "p.txt", "failing.npy", OutputFormat::Npy);
    failing.open = Arc::new(|| Err(anyhow::anyhow!("no second pipeline")));
    let error = failing.run(Arc::new(()), &Stop::default()).unwrap_err();
    assert_eq!(error.to_string(), "no second pipeline");
    assert_no_threads("a worker failed");

    let mut panicking = job(&folder, "p.txt", "panicking.npy", OutputFormat::Npy);
    panicking.open = Arc::new(|| panic!("on purpose"));
    let error = panicking.run(Arc::new(()), &Stop::default()).unwrap_err();
    assert!(error.to_string().contains("internal error"), "{error}");
    assert_no_threads("a worker panicked");

    let stop = Stop::default();
    let progress = StopAfter { rows: 8, stop: stop.clone() };
    let stopped = job(&folder, "p.txt", "stopped.npy", OutputFormat::Npy);
    let summary = stopped.run(Arc::new(progress), &stop).unwrap();
    assert_eq!(summary.outcome, Outcome::Stopped { signal: 15, kept: true });
    assert_no_threads("a signal");

    let pipe = folder.path().join("out");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = thread::spawn(move || File::open(pipe).unwrap().read_exact(&mut [0; 6]).unwrap());
    let gone = job(&folder, "p.txt", "out", OutputFormat::JsonLines);
    assert_eq!(gone.run(Arc::new(()), &Stop::default()).unwrap().outcome, Outcome::ReaderGone);
    reader.join().unwrap();
    assert_no_threads("a closed pipe");
}

/// A live stream has a reader besides the workers, and both wait for prompts that do not come.
#[cfg(target_os = "linux")]
#[test]
fn a_run_that_waits_for_prompts_leaves_no_thread_behind_when_a_signal_ends_it() {
    let _alone = alone();
    let folder = folder(0);
    let [prompts, out] = ["in", "out"].map(|name| folder.path().join(name));
    assert!(std::process::Command::new("mkfifo").args([&prompts, &out]).status().unwrap().success());
    // Open for reading too, so that opening it does not wait for the other end.
    let mut writer = File::options().read(true).write(true).open(prompts).unwrap();
    let mut reader = File::options().read(true).write(true).open(out).unwrap();
    for out in ["out", "e.npy"] {
        let stop = Stop::default();
        let job = job(&folder, "in", out, OutputFormat::JsonLines);
        let raised = stop.clone();
        let run = thread::spawn(move || job.run(Arc::new(()), &raised).unwrap().outcome);
        if out == "out" {
            writer.write_all(b"a cat\n").unwrap();
            reader.read_exact(&mut [0; 6]).unwrap();
            // The row may be there before the last of them has started.
            let start = Instant::now();
            while threads() != 4 {
                assert!(start.elapsed() < Duration::from_secs(20), "{} threads", threads());
                thread::sleep(Duration::from_millis(1));
            }
        } else {
            thread::sleep(Duration::from_millis(200));
        }
        stop.raise(2);
        assert_eq!(run.join().unwrap(), Outcome::Stopped { signal: 2, kept: false });
        assert_no_threads(out);
    }
}

/// The batch size that free memory decided for the first rows holds for the others, however much is free by then.
#[test]
fn a_run_resumes_with_another_amount_of_free_memory() {
    let _alone = alone();
    let folder = folder(40);
    let run = |out: &str, free_memory: Option<u64>, stop_after: u64, resume: bool| {
        let stop = Stop::default();
        let mut job = job(&folder, "p.txt", out, OutputFormat::Npy);
        job.compute = ComputeOptions { batch_size: None, threads: Some(1), free_memory };
        (job.write.resume, job.write.keep) = (resume, true);
        let summary = job.run(Arc::new(StopAfter { rows: stop_after, stop: stop.clone() }), &stop).unwrap();
        (summary.outcome, summary.batch_size, summary.rows)
    };
    // What a batch of 5 rows takes, and a little more.
    let pipeline = opener()().unwrap();
    let demand = crate::pipeline::Demand { rows: 40, is_uniform: true, zero_embed: false, free_memory: None };
    let little = pipeline.needed_bytes(demand, 5, 1).unwrap() + 1;
    assert!(little < pipeline.needed_bytes(demand, 6, 1).unwrap());

    assert_eq!(run("whole.npy", Some(little), u64::MAX, false), (Outcome::Done, 5, 40));
    let (outcome, batch_size, rows) = run("e.npy", Some(little), 10, false);
    assert_eq!((outcome, batch_size), (Outcome::Stopped { signal: 15, kept: true }, 5));
    assert!((10..40).contains(&rows), "{rows}");
    assert_eq!(run("e.npy", Some(u64::MAX), u64::MAX, true), (Outcome::Done, 5, 40));
    let [whole, resumed] = ["whole.npy", "e.npy"].map(|name| fs::read(folder.path().join(name)).unwrap());
    assert!(whole == resumed);
    // With that much memory, and nothing to resume, the batch is larger.
    assert_eq!(run("other.npy", Some(u64::MAX), u64::MAX, false), (Outcome::Done, 40, 40));
}
