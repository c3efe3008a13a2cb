//! A run over any number of rows, in memory that does not grow with them.
//!
//! ```text
//! Prompts ─► Entries ─► Batcher ──Block──► worker: Pipeline ──Embedded──► EmbeddingWriter
//!            one row    64 rows            one thread each                the caller's thread, in order
//! ```
//!
//! - Files are read twice: [`first_pass`] counts their rows, checks and hashes them before anything is loaded, and the
//!   [`batcher`] reads them again block by block. A pipe is read once.
//! - Pictures are prompts of another kind: a worker reads, decodes and encodes those of its block. A worker that is alone
//!   has the next block decoded, in several threads, while it computes ([`decode`]).
//! - Workers take blocks from the batcher when they are free: it is an iterator behind a lock. Only a live stream (a pipe
//!   in, a pipe out) has a thread that reads ahead ([`read_ahead`]), so that the rows that are there need not wait for the
//!   next.
//! - A row's block, and its place in the block, depend on its number alone. So a run that resumes or computes a shard has
//!   the same batches as one that computes everything at once, and its rows are the same to the last bit.
//! - A [`gate`] bounds the blocks, and the bytes of text, that are read and not written yet.
//! - Whatever ends a run, done, an error, a closed pipe or a signal, all its threads have ended when [`Job::run`] returns.
//!   Workers stop after the denoising step that they are at, and reads from a pipe within 50 ms.

mod batcher;
mod decode;
mod first_pass;
mod gate;
mod images;
mod options;
mod pictures;
mod plan;
mod progress;
mod prompts;
mod provenance;
mod read_ahead;
mod report;
mod run;
mod stop;
mod summary;
#[cfg(test)]
mod tests;
mod worker;

pub use images::Images;
pub use options::{Given, OnError, RowOptions, Seeding};
pub use plan::ComputeOptions;
pub use progress::JobProgress;
pub use prompts::{Entries, Prompts, refused};
pub use provenance::Provenance;
pub use report::{IfExists, Report};
pub use stop::{Stop, signal_exit_code};
pub use summary::{Outcome, Summary};
pub use worker::Opener;

use crate::bad_input;
use crate::output::merge::{earlier_setting, finished};
use crate::output::{EmbeddingWriter, Interrupted, WriteOptions};
use crate::pipeline::Pipeline;
use anyhow::Result;
use batcher::{Batcher, Feed, Position};
use decode::{DecodingMemory, PictureDecoder};
use first_pass::FirstPass;
use gate::Gate;
use plan::{BATCH_SIZE, Plan};
use run::Run;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use worker::{Computation, Negatives, Shared};

/// Blocks for each worker that may be under way, or wait for their turn to be written.
const BLOCKS_PER_WORKER: usize = 3;

/// Bytes of text that may be read and not written yet, beside the block that is being read.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// A run.
pub struct Job {
    /// The prompts.
    pub prompts: Prompts,
    /// The same, opened.
    pub entries: Entries,
    /// What applies to every row.
    pub options: RowOptions,
    /// The model.
    pub pipeline: Pipeline,
    /// Makes more pipelines of the same model.
    pub open: Opener,
    /// How to compute, as far as the user says.
    pub compute: ComputeOptions,
    /// Where the embeddings go, and how. The caller fills in what only it knows of the fingerprint; the job adds the
    /// rest.
    pub write: WriteOptions,
    /// Where to report rows that cannot be used; if not given, they are passed to [`JobProgress::skipped`].
    pub report: Option<Report>,
    /// The provenance to write.
    pub provenance: Option<Provenance>,
}

impl Job {
    /// Runs the job until it is done or `stop` is raised. All threads that it starts have ended when it returns.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] for what the user can fix, and whatever goes wrong on the way. Rows that are written
    /// by then are kept for a run that resumes, if their prompts can be read again.
    pub fn run(self, progress: Arc<dyn JobProgress>, stop: &Stop) -> Result<Summary> {
        match self.prepare(&progress, stop) {
            Ok(Prepared::Run(run)) => run.run(stop),
            Ok(Prepared::Finished(summary)) => Ok(*summary),
            // What an earlier run kept is still there.
            Err(error) if error.is::<Interrupted>() => {
                let outcome = Outcome::Stopped { signal: stop.signal().unwrap_or_default(), kept: true };
                Ok(Summary { outcome, ..Summary::default() })
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the prompts once if they can be read twice, makes a plan, and opens the outputs.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] for what the user can fix; [`Interrupted`] if `stop` is raised.
    fn prepare(mut self, progress: &Arc<dyn JobProgress>, stop: &Stop) -> Result<Prepared> {
        let start = Instant::now();
        self.check_rereading()?;
        let is_stream = self.prompts.is_stream();
        self.write.interrupt = stop.flag();
        self.entries.report_to(progress);
        let (first_pass, entries) = if is_stream {
            (None, self.entries)
        } else {
            (Some(FirstPass::over(&self.prompts, self.entries, &self.options, stop)?), self.prompts.open()?)
        };
        let read = start.elapsed();
        let rows = first_pass.as_ref().map(|first_pass| first_pass.rows);
        if let (Some(rows), Some(latents)) = (rows, &self.options.latents) {
            let checked = self.options.noise(Some(rows)).check(self.options.has_negatives());
            checked.map_err(|reason| bad_input!("--latents {:?} {reason}", latents.name))?;
        }
        // A batch size that free memory decided for the first rows holds for those that follow.
        let earlier = || earlier_setting(&self.write, BATCH_SIZE)?.parse().ok().filter(|rows| *rows > 0);
        self.compute.batch_size = self.compute.batch_size.or_else(earlier);
        let plan = Plan::new(&self.pipeline, &self.options, first_pass.as_ref(), &self.write, self.compute)?;
        if let Some(first_pass) = first_pass.as_ref().filter(|_| plan.may_resume) {
            plan.add_to(&mut self.write.fingerprint, &self.pipeline, &self.options, first_pass)?;
            for (name, commit) in &self.prompts.datasets {
                self.write.fingerprint.push(&format!("the commit of {name}"), commit);
            }
        }
        (self.write.dim, self.write.total_rows) = (Some(self.pipeline.embedding_dim()), rows);
        self.write.row_shape = self.pipeline.row_shape();
        // The prompts of a pipe do not come again. A single batch is computed again as quickly as it is resumed.
        self.write.keep = !is_stream;
        self.write.restart = plan.is_single;
        let mut provenance = None;
        if let (Some(asked), Some(first_pass)) = (self.provenance, &first_pass) {
            let text = asked.text(&self.pipeline, &self.options, &self.prompts, first_pass, self.write.shard)?;
            self.write.provenance = Some(Arc::clone(&text));
            provenance = Some((asked, text));
        }
        if let Some(rows) = finished(&self.write)? {
            if let Some((provenance, text)) = provenance {
                provenance.write(&text)?;
            }
            let (outcome, total, batch_size) = (Outcome::WasDone, Some(rows), plan.batch_size);
            let summary = Summary { outcome, rows, resumed: rows, total, batch_size, read, ..Summary::default() };
            return Ok(Prepared::Finished(Box::new(summary)));
        }
        let output = self.write.outputs.first().map(|output| output.path.display().to_string()).unwrap_or_default();
        let writer = EmbeddingWriter::open(self.write)?;
        let computation = computation(self.options.clone(), &mut self.pipeline, rows, plan)?;
        let total = rows.map(|rows| plan.blocks.own_rows(rows));
        progress.begin(total, writer.rows_done());
        if let (Some(report), Some(dir)) = (&mut self.report, writer.dir()?) {
            report.make_in(dir);
            if self.options.pictures.is_some() && writer.rows_done() > 0 {
                report.keep_lines()?;
            }
        }
        let report = self.report.map(|report| Arc::new(Mutex::new(report)));
        let interrupt = Arc::clone(&self.prompts.read.interrupt);
        let batcher = Batcher {
            feed: Feed::new(entries, plan.is_live, &interrupt)?,
            prompts: self.prompts,
            options: self.options,
            blocks: plan.blocks,
            first_pass,
            may_be_only: plan.may_be_only,
            done: writer.rows_done(),
            report: report.clone(),
            progress: Arc::clone(progress),
            position: Position::default(),
        };
        let shared = Shared {
            batcher: Mutex::new(batcher),
            gate: Gate::new(plan.workers * BLOCKS_PER_WORKER, MAX_TEXT_BYTES),
            computation,
            threads: plan.threads,
            open: self.open,
            report,
            progress: Arc::clone(progress),
            cancel: interrupt,
        };
        Ok(Prepared::Run(Box::new(Run {
            output,
            shared,
            pipeline: self.pipeline,
            plan,
            writer,
            provenance,
            total,
            read,
        })))
    }

    /// Refuses options that need prompts which can be read twice.
    fn check_rereading(&self) -> Result<()> {
        let Some(name) = self.prompts.stream_name() else { return Ok(()) };
        let what = if self.options.pictures.is_some() { "paths" } else { "prompts" };
        match &self.write {
            write if write.resume => {
                Err(bad_input!("--resume needs {what} that can be read again, and {name} cannot; write them to a file"))
            }
            _ if self.provenance.is_some() => Err(bad_input!(
                "--provenance needs {what} that can be hashed first, and {name} cannot; write them to a file"
            )),
            _ if self.options.latents.is_some() => Err(bad_input!(
                "--latents needs prompts that can be counted first, and {name} cannot; write them to a file"
            )),
            _ if self.options.seeding == Seeding::Call => Err(bad_input!(
                "--seed-layout call needs prompts that can be counted first, and {name} cannot; write them to a file"
            )),
            write if write.shard.is_some() => Err(bad_input!(
                "--shard needs {what} that can be read again, since every run counts them \
                 all, and {name} cannot; write them to a file"
            )),
            _ => Ok(()),
        }
    }
}

/// What comes of preparing a run.
enum Prepared {
    /// There is work to do.
    Run(Box<Run>),
    /// An earlier run has done it.
    Finished(Box<Summary>),
}

/// How to compute blocks, with the embedding of a black image if rows need it.
fn computation(options: RowOptions, pipeline: &mut Pipeline, rows: Option<u64>, plan: Plan) -> Result<Computation> {
    if let Some(threads) = plan.threads {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
    let zero = if options.needs_zero_embed() { pipeline.zero_embed()? } else { None };
    let pictures = match &options.pictures {
        None => None,
        Some(processor) => Some(PictureDecoder {
            processor: Arc::clone(processor),
            size: pipeline.image_size()?,
            threads: plan.decoding_threads(),
            memory: DecodingMemory::default(),
            done: Mutex::default(),
        }),
    };
    Ok(Computation {
        pictures,
        negatives: options.wants_negative.then_some(Negatives { zero }),
        rows,
        options,
        dim: pipeline.embedding_dim(),
        batch_size: plan.batch_size,
    })
}
