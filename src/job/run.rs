//! The caller's part of a run: starts the workers, and writes what they compute, in order.

use super::batcher::{Batcher, Change, Source, State};
use super::first_pass::FirstPass;
use super::gate::Gate;
use super::options::RowOptions;
use super::plan::Plan;
use super::prompts::{Entries, edited, no_prompts};
use super::report::Report;
use super::stop::Stop;
use super::worker::{Computation, Computed, Embedded, Opener, Shared, work};
use super::{JobProgress, Outcome, Summary};
use crate::output::{Batch, EmbeddingWriter, Flow, Interrupted};
use crate::pipeline::{Pipeline, Timings};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often the caller looks up from waiting for results.
const TICK: Duration = Duration::from_millis(50);

/// How long workers may take to stop before the user is told what they are waiting for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Blocks for each worker that may be under way, or wait for their turn to be written.
const BLOCKS_PER_WORKER: usize = 3;

/// Bytes of text that may be read and not written yet, beside the block that is being read.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// A run with everything open.
pub(super) struct Run {
    /// What messages call the main output.
    pub(super) output: String,
    pub(super) entries: Entries,
    pub(super) interrupt: Arc<AtomicBool>,
    pub(super) options: RowOptions,
    pub(super) first_pass: Option<FirstPass>,
    pub(super) plan: Plan,
    pub(super) computation: Computation,
    pub(super) pipeline: Pipeline,
    pub(super) open: Opener,
    pub(super) writer: EmbeddingWriter,
    pub(super) report: Option<Report>,
    pub(super) progress: Arc<dyn JobProgress>,
    /// Rows that this run is to write, if that is known.
    pub(super) total: Option<u64>,
    /// Time that the first pass took.
    pub(super) read: Duration,
}

/// What the workers have computed so far, and what of it is written.
struct Written<'a> {
    writer: &'a mut EmbeddingWriter,
    shared: &'a Shared,
    /// Blocks that wait for one before them.
    waiting: BTreeMap<u64, Result<Embedded>>,
    blocks: u64,
    /// Of each worker.
    timings: Vec<Timings>,
    time: Duration,
}

impl Run {
    /// Computes and writes all rows, and completes the outputs. All threads have ended when this returns.
    ///
    /// # Errors
    /// Whatever goes wrong on the way.
    pub(super) fn run(mut self, stop: &Stop) -> Result<Summary> {
        let name = self.entries.name().to_string();
        let resumed = self.writer.rows_done();
        let batcher = Batcher {
            name: name.clone(),
            source: Source::new(self.entries, self.plan.is_live, &self.interrupt)?,
            options: self.options,
            blocks: self.plan.blocks,
            first_pass: self.first_pass,
            may_be_only: self.plan.may_be_only,
            done: resumed,
            report: self.report,
            progress: Arc::clone(&self.progress),
            state: State::default(),
        };
        let shared = Shared {
            batcher: Mutex::new(batcher),
            gate: Gate::new(self.plan.workers * BLOCKS_PER_WORKER, MAX_TEXT_BYTES),
            computation: self.computation,
            threads: self.plan.threads,
            open: self.open,
            progress: Arc::clone(&self.progress),
            cancel: self.interrupt,
        };
        let (workers, timings) = (self.plan.workers, vec![Timings::default(); self.plan.workers]);
        let (waiting, time) = (BTreeMap::new(), Duration::ZERO);
        let mut written = Written { writer: &mut self.writer, shared: &shared, waiting, blocks: 0, timings, time };
        let outcome = written.run(workers, self.pipeline, stop);
        let (timings, write) = (written.timings.into_iter().fold(Timings::default(), add), written.time);
        self.progress.end();
        let batcher = shared.batcher.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Batcher { report, state, source, .. } = batcher;
        // Joins the thread that reads ahead, if there is one.
        drop(source);
        let ending = Ending { name, output: self.output, may_resume: self.plan.may_resume, report, read: &state };
        let start = Instant::now();
        let ended = ending.end(self.writer, outcome?, &self.progress, stop)?;
        let Plan { batch_size, workers, memory, .. } = self.plan;
        Ok(Summary {
            outcome: ended.outcome,
            rows: ended.rows,
            resumed,
            total: self.total,
            skipped: ended.skipped,
            timings,
            read: self.read + state.read,
            write: write + start.elapsed(),
            workers,
            threads: self.plan.threads_each() * workers,
            batch_size,
            memory,
        })
    }
}

fn add(mut all: Timings, one: Timings) -> Timings {
    all += one;
    all
}

/// Ends the workers also where the writer fails.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Written<'_> {
    /// Starts the workers, writes what they compute, and waits for their end. The first gets the pipeline, the others open
    /// their own if there is work for them.
    fn run(&mut self, workers: usize, pipeline: Pipeline, stop: &Stop) -> Result<Outcome> {
        let shared = self.shared;
        let mut pipeline = Some(pipeline);
        thread::scope(|scope| {
            let closing = Closing(shared);
            let (sender, results) = channel();
            for worker in 0..workers {
                let (pipeline, sender) = (pipeline.take(), sender.clone());
                thread::Builder::new()
                    .name("embed-worker".into())
                    .spawn_scoped(scope, move || work(worker, pipeline, shared, &sender))
                    .context("cannot start a thread")?;
            }
            drop(sender);
            let outcome = self.write_all(&results, stop);
            drop(closing);
            self.await_workers(&results);
            outcome
        })
    }

    /// Writes all blocks in order, as they come.
    fn write_all(&mut self, results: &Receiver<Computed>, stop: &Stop) -> Result<Outcome> {
        loop {
            if let Some(signal) = stop.signal() {
                return Ok(Outcome::Stopped { signal, kept: false });
            }
            self.shared.progress.tick();
            self.writer.sync_if_due()?;
            match results.recv_timeout(TICK) {
                Ok(Computed { number, worker, block, timings }) => {
                    self.timings[worker] = timings;
                    self.waiting.insert(number, block);
                }
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) if !self.waiting.is_empty() => {
                    bail!("internal error: a batch was not computed")
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(Outcome::Done),
            }
            while let Some(block) = self.waiting.remove(&self.blocks) {
                match self.write(&block?) {
                    // The signal that interrupted it is noticed above.
                    Err(error) if error.is::<Interrupted>() => break,
                    Ok(Flow::ReaderGone) => return Ok(Outcome::ReaderGone),
                    Ok(Flow::GoOn) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    fn write(&mut self, block: &Embedded) -> Result<Flow> {
        let start = Instant::now();
        let Embedded { rows, image, negative, bytes } = block;
        let negative = negative.as_ref().map(|negative| negative.view());
        let flow = self.writer.write(&Batch { rows, image: Some(image.view()), negative });
        self.time += start.elapsed();
        if flow.is_ok() {
            self.shared.gate.leave(*bytes);
            self.blocks += 1;
            self.shared.progress.written(self.writer.rows_done(), self.blocks);
        }
        flow
    }

    /// Waits until no worker is left to send anything.
    fn await_workers(&mut self, results: &Receiver<Computed>) {
        let start = Instant::now();
        let mut was_told = false;
        loop {
            match results.recv_timeout(TICK) {
                Ok(Computed { worker, timings, .. }) => self.timings[worker] = timings,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !was_told && start.elapsed() >= PATIENCE {
                was_told = true;
                self.shared.progress.stopping();
            }
        }
    }
}

/// What is needed to complete the outputs, or to leave what should be kept.
struct Ending<'a> {
    /// What messages call the prompts.
    name: String,
    /// What they call the main output.
    output: String,
    may_resume: bool,
    report: Option<Report>,
    /// What was read.
    read: &'a State,
}

/// How a run ended.
struct Ended {
    outcome: Outcome,
    rows: u64,
    skipped: Option<(u64, PathBuf)>,
}

impl Ending<'_> {
    fn end(
        self,
        mut writer: EmbeddingWriter,
        outcome: Outcome,
        progress: &Arc<dyn JobProgress>,
        stop: &Stop,
    ) -> Result<Ended> {
        let rows = writer.rows_done();
        let stopped = |signal| {
            let kept = self.may_resume && rows > 0;
            let rows = if kept { rows } else { 0 };
            Ended { outcome: Outcome::Stopped { signal, kept }, rows, skipped: None }
        };
        match outcome {
            Outcome::Done => {}
            Outcome::Stopped { signal, .. } => {
                if self.may_resume { writer.sync() } else { writer.discard() }?;
                return Ok(stopped(signal));
            }
            _ => {
                writer.discard()?;
                return Ok(Ended { outcome, rows, skipped: None });
            }
        }
        match self.read.change {
            Some(Change::Edited) => {
                writer.discard()?;
                return Err(edited(&self.name));
            }
            Some(Change::Grown) => {
                log::warn!("{} has grown since its rows were counted; the new ones are left out", self.name);
            }
            _ if self.read.rows == 0 => return Err(no_prompts(&self.name)),
            _ => {}
        }
        writer.set_total_rows(self.read.rows);
        progress.completing(&self.output);
        let completed = complete(writer, self.report);
        progress.end();
        match (completed, stop.signal()) {
            (Err(error), Some(signal)) if error.is::<Interrupted>() => Ok(stopped(signal)),
            (completed, _) => Ok(Ended { outcome, rows, skipped: completed? }),
        }
    }
}

/// Completes the outputs, and then the report. Returns the number of rows that were reported, if any, and where.
fn complete(writer: EmbeddingWriter, report: Option<Report>) -> Result<Option<(u64, PathBuf)>> {
    let Some(mut report) = report else {
        writer.finish()?;
        return Ok(None);
    };
    report.check()?;
    let count = writer.finish_and(|| report.publish())?;
    Ok((count > 0).then(|| (count, report.path().to_path_buf())))
}
