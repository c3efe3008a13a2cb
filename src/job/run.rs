//! What the caller's thread does while the others work: it writes what they compute, in order.

use super::crew::Crew;
use super::reader::{Change, ReadSummary};
use super::report::Report;
use super::sizes::Sizes;
use super::source::{edited, no_prompts};
use super::stop::Stop;
use super::worker::{Computed, Embedded};
use super::{Outcome, Summary, Watcher};
use crate::output::{Batch, EmbeddingWriter, Flow, Interrupted};
use crate::pipeline::Timings;
use anyhow::{Result, anyhow, bail};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the caller looks up from waiting for results.
const TICK: Duration = Duration::from_millis(50);

/// How the part of a run that computes ended.
pub(super) struct End {
    pub(super) outcome: Outcome,
    timings: Timings,
    /// What was read, if it was read to its end.
    read: Option<ReadSummary>,
}

/// A run on its way.
pub(super) struct Run {
    /// What messages call the prompts.
    pub(super) name: String,
    /// What they call the main output.
    pub(super) output: String,
    pub(super) writer: EmbeddingWriter,
    pub(super) watcher: Arc<dyn Watcher>,
    pub(super) report: Option<Arc<Mutex<Report>>>,
    /// Rows that this run is to write, if that is known.
    pub(super) own: Option<u64>,
    pub(super) resumed: u64,
    pub(super) sizes: Sizes,
    pub(super) write: Duration,
}

impl Run {
    /// Writes what the workers compute, in order.
    pub(super) fn drive(&mut self, crew: Crew, stop: &Stop) -> Result<End> {
        let Crew { reader, results, permits } = crew;
        let mut timings = vec![Timings::default(); self.sizes.workers];
        let mut waiting = BTreeMap::new();
        let mut batches = 0;
        let outcome = loop {
            if let Some(signal) = stop.signal() {
                break Outcome::Stopped { signal, kept: self.sizes.may_resume };
            }
            self.watcher.tick();
            self.writer.sync_if_due()?;
            match results.recv_timeout(TICK) {
                Ok(Computed { number, worker, block, timings: its }) => {
                    timings[worker] = its;
                    waiting.insert(number, block);
                }
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) if !waiting.is_empty() => bail!("a batch was not computed"),
                Err(RecvTimeoutError::Disconnected) => break Outcome::Done,
            }
            let mut flow = Flow::Continue;
            while let Some(block) = waiting.remove(&batches) {
                flow = match self.write(&block?) {
                    // That there is a signal is seen at once.
                    Err(error) if error.is::<Interrupted>() => break,
                    flow => flow?,
                };
                batches += 1;
                self.watcher.written(self.writer.rows_done(), batches);
                if flow == Flow::ReaderGone {
                    break;
                }
                // Without workers there is nobody to permit anything.
                let _ = permits.send(());
            }
            if flow == Flow::ReaderGone {
                break Outcome::ReaderGone;
            }
        };
        let mut all = Timings::default();
        timings.into_iter().for_each(|its| all += its);
        // Those that are still at work are left alone: the process ends soon, and a pipe may never give another line.
        let read = match outcome {
            Outcome::Done => Some(reader.join().map_err(|_| anyhow!("the reading of {} broke off", self.name))?),
            _ => None,
        };
        Ok(End { outcome, timings: all, read })
    }

    fn write(&mut self, block: &Embedded) -> Result<Flow> {
        let start = Instant::now();
        let Embedded { rows, image, negative, .. } = block;
        let negative = negative.as_ref().map(|negative| negative.view());
        let flow = self.writer.write(&Batch { rows, image: Some(image.view()), negative });
        self.write += start.elapsed();
        flow
    }

    /// Completes the outputs, or leaves what is to be kept.
    pub(super) fn finish(mut self, end: End, first_pass: Duration, stop: &Stop) -> Result<Summary> {
        let start = Instant::now();
        let mut rows = self.writer.rows_done();
        let mut skipped = None;
        let mut outcome = end.outcome;
        match (outcome, &end.read) {
            (Outcome::Done, Some(read)) => {
                if read.change == Change::Edited {
                    self.discard_report();
                    self.writer.discard()?;
                    return Err(edited(&self.name));
                }
                if read.change == Change::Grown {
                    log::warn!("{} has grown since its rows were counted; the new ones are left out", self.name);
                } else if read.rows == 0 {
                    return Err(no_prompts(&self.name));
                }
                self.writer.set_total_rows(read.rows);
                self.watcher.completing(&self.output);
                let completed = complete(self.writer, self.report.as_deref());
                self.watcher.end();
                match (completed, stop.signal()) {
                    (Err(error), Some(signal)) if error.is::<Interrupted>() => {
                        outcome = Outcome::Stopped { signal, kept: self.sizes.may_resume };
                        rows = if self.sizes.may_resume { rows } else { 0 };
                    }
                    (completed, _) => skipped = completed?,
                }
            }
            (Outcome::Stopped { signal, kept }, _) => {
                outcome = Outcome::Stopped { signal, kept: kept && rows > 0 };
                if kept {
                    self.writer.sync()?;
                } else {
                    rows = 0;
                    self.writer.discard()?;
                }
            }
            _ => self.writer.discard()?,
        }
        let Sizes { batch_size, workers, threads, .. } = self.sizes;
        let threads = threads.unwrap_or_else(|| usize::try_from(tch::get_num_threads()).unwrap_or(1));
        Ok(Summary {
            outcome,
            rows,
            resumed: self.resumed,
            total: self.own,
            skipped,
            timings: end.timings,
            read: first_pass + end.read.map_or(Duration::ZERO, |read| read.read),
            write: self.write + start.elapsed(),
            workers,
            threads: threads * workers,
            batch_size,
        })
    }

    /// Gives up the report of a run that is not done: one that goes on writes it again.
    pub(super) fn discard_report(&self) {
        self.report.iter().for_each(|report| locked(report).discard());
    }
}

/// Completes the outputs and then the report on them. Gives the number of rows that are reported, if any are, and the
/// report.
fn complete(writer: EmbeddingWriter, report: Option<&Mutex<Report>>) -> Result<Option<(u64, PathBuf)>> {
    let Some(mut report) = report.map(locked) else {
        writer.finish()?;
        return Ok(None);
    };
    report.check()?;
    let count = writer.finish_and(|| report.publish())?;
    Ok((count > 0).then(|| (count, report.path().to_path_buf())))
}

fn locked(report: &Mutex<Report>) -> MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}
