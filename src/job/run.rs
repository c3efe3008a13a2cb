//! The caller's part of a run: starts the workers, and writes what they compute, in order.

use super::batcher::{Batcher, Change};
use super::plan::Plan;
use super::prompts::{edited, no_prompts};
use super::provenance::Provenance;
use super::report::lock;
use super::stop::Stop;
use super::summary::{Decoding, Outcome, Summary};
use super::worker::{Computed, Embedded, Shared, work};
use crate::output::{Batch, EmbeddingWriter, Flow, Interrupted};
use crate::pipeline::{Pipeline, Timings};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often the caller looks up from waiting for results.
const TICK: Duration = Duration::from_millis(50);

/// How long workers may take to stop before the user is told what the run waits for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A run with everything open.
pub(super) struct Run {
    /// What messages call the main output.
    pub(super) output: String,
    pub(super) shared: Shared,
    pub(super) pipeline: Pipeline,
    pub(super) plan: Plan,
    pub(super) writer: EmbeddingWriter,
    /// The provenance to write, and its text.
    pub(super) provenance: Option<(Provenance, Arc<str>)>,
    /// Rows that this run is to write, if that is known.
    pub(super) total: Option<u64>,
    /// Time that the first pass took.
    pub(super) read: Duration,
}

impl Run {
    /// Computes and writes all rows, and completes the outputs. All threads have ended when this returns.
    ///
    /// # Errors
    /// Whatever goes wrong on the way.
    pub(super) fn run(self, stop: &Stop) -> Result<Summary> {
        let Self { output, shared, pipeline, plan, mut writer, provenance, total, read } = self;
        let Plan { batch_size, workers, may_resume, memory, .. } = plan;
        let progress = Arc::clone(&shared.progress);
        let resumed = writer.rows_done();
        let mut written = Written::new(&mut writer, &shared, workers);
        let outcome = written.run(pipeline, stop);
        let (timings, write) = (total_of(&written.timings), written.time);
        progress.end();
        let pictures = shared.computation.pictures.as_ref();
        let decoding = pictures.map(|pictures| Decoding { threads: pictures.threads * workers, ..pictures.done() });
        // Its thread, if it has one, ends here also after an error.
        let mut batcher = shared.batcher.into_inner().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        let mut summary = Summary {
            outcome: outcome?,
            rows: writer.rows_done(),
            resumed,
            total,
            skipped: None,
            timings,
            read: read + batcher.position.read,
            decoding: decoding.unwrap_or_default(),
            write,
            workers,
            threads: plan.threads_each() * workers,
            batch_size,
            memory,
        };
        match summary.outcome {
            Outcome::Done => {
                match batcher.position.change.take() {
                    Some(Change::Edited(name)) => {
                        writer.discard()?;
                        return Err(edited(&name));
                    }
                    Some(Change::Grown(name)) => {
                        log::warn!("{name} has grown since its rows were counted; the new ones are left out");
                    }
                    _ if batcher.position.rows == 0 => return Err(no_prompts(&batcher.prompts.name())),
                    _ => {}
                }
                writer.set_total_rows(batcher.position.rows);
                progress.completing(&output);
                let completed = complete(writer, &mut batcher, provenance);
                progress.end();
                match (completed, stop.signal()) {
                    (Err(error), Some(signal)) if error.is::<Interrupted>() => summary.stop(signal, may_resume),
                    (completed, _) => summary.skipped = completed?,
                }
            }
            Outcome::Stopped { signal, .. } => {
                if may_resume { writer.sync() } else { writer.discard() }?;
                summary.stop(signal, may_resume);
            }
            _ => writer.discard()?,
        }
        summary.write += start.elapsed();
        Ok(summary)
    }
}

fn total_of(timings: &[Timings]) -> Timings {
    let mut total = Timings::default();
    timings.iter().for_each(|timings| total += *timings);
    total
}

impl Summary {
    fn stop(&mut self, signal: i32, may_resume: bool) {
        let kept = may_resume && self.rows > 0;
        self.outcome = Outcome::Stopped { signal, kept };
        self.rows = if kept { self.rows } else { 0 };
    }
}

/// Completes the outputs, and then the provenance and the report. Returns the number of rows that were reported, if any,
/// and where.
fn complete(
    writer: EmbeddingWriter,
    batcher: &mut Batcher,
    provenance: Option<(Provenance, Arc<str>)>,
) -> Result<Option<(u64, PathBuf)>> {
    let mut report = batcher.report.as_ref().map(|report| lock(report));
    if let Some(report) = &mut report {
        report.check()?;
    }
    writer.finish_and(|| {
        if let Some((provenance, text)) = provenance {
            provenance.write(&text)?;
        }
        let Some(report) = &mut report else { return Ok(None) };
        let count = report.publish()?;
        Ok((count > 0).then(|| (count, report.path().to_path_buf())))
    })
}

/// What the workers have computed, and how much of it is written.
struct Written<'a> {
    writer: &'a mut EmbeddingWriter,
    shared: &'a Shared,
    /// Blocks that wait for one before them.
    waiting: BTreeMap<u64, Result<Embedded>>,
    /// Blocks that are written.
    blocks: u64,
    /// Of each worker.
    timings: Vec<Timings>,
    /// Time spent writing.
    time: Duration,
}

/// Ends the workers, also where the writer fails.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<'a> Written<'a> {
    fn new(writer: &'a mut EmbeddingWriter, shared: &'a Shared, workers: usize) -> Self {
        let (waiting, timings) = (BTreeMap::new(), vec![Timings::default(); workers]);
        Self { writer, shared, waiting, blocks: 0, timings, time: Duration::ZERO }
    }

    /// Starts the workers, writes what they compute, and waits for their end. The first gets the pipeline, the others
    /// open their own if there is work for them.
    fn run(&mut self, pipeline: Pipeline, stop: &Stop) -> Result<Outcome> {
        let shared = self.shared;
        let mut pipeline = Some(pipeline);
        thread::scope(|scope| {
            let closing = Closing(shared);
            let (sender, results) = channel();
            for worker in 0..self.timings.len() {
                let (pipeline, sender) = (pipeline.take(), sender.clone());
                let work = move || work(worker, pipeline, shared, &sender);
                let thread = thread::Builder::new().name("embed-worker".into());
                thread.spawn_scoped(scope, work).context("cannot start a thread")?;
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
            if self.writer.has_lost_reader() {
                return Ok(Outcome::ReaderGone);
            }
            self.shared.progress.tick();
            self.writer.sync_if_due()?;
            match results.recv_timeout(TICK) {
                Ok(Computed { number, worker, block, timings }) => {
                    self.timings[worker] = timings;
                    self.waiting.insert(number, block);
                }
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) if self.waiting.is_empty() => return Ok(Outcome::Done),
                Err(RecvTimeoutError::Disconnected) => bail!("internal error: a batch was not computed"),
            }
            while let Some(block) = self.waiting.remove(&self.blocks) {
                match self.write(&block?) {
                    Ok(Flow::Continue) => {}
                    Ok(Flow::ReaderGone) => return Ok(Outcome::ReaderGone),
                    // The signal that interrupted it is noticed above.
                    Err(error) if error.is::<Interrupted>() => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    fn write(&mut self, block: &Embedded) -> Result<Flow> {
        let start = Instant::now();
        let Embedded { rows, image, negative, text, scores, skipped, bytes } = block;
        for (row, bad) in skipped {
            match &self.shared.report {
                // Before the row is safe, so that a run which resumes need not look at it again.
                Some(report) => lock(report).add(*row, 1, None, bad)?,
                None => self.shared.progress.skipped(1, &format!("{bad}; row {row} is zeros")),
            }
        }
        if let (Some(report), false) = (&self.shared.report, skipped.is_empty()) {
            lock(report).flush()?;
        }
        let [negative, text, scores] = [negative, text, scores].map(|array| array.as_ref().map(|array| array.view()));
        let flow = self.writer.write(&Batch { rows, image: Some(image.view()), negative, text, scores })?;
        self.time += start.elapsed();
        self.shared.gate.leave(*bytes);
        self.blocks += 1;
        self.shared.progress.written(self.writer.rows_done(), self.blocks);
        Ok(flow)
    }

    /// Waits until no worker is left to send anything.
    fn await_workers(&mut self, results: &Receiver<Computed>) {
        let mut was_told = false;
        let start = Instant::now();
        loop {
            match results.recv_timeout(TICK) {
                Ok(Computed { worker, timings, .. }) => self.timings[worker] = timings,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if start.elapsed() >= PATIENCE && !std::mem::replace(&mut was_told, true) {
                self.shared.progress.stopping();
            }
        }
    }
}
