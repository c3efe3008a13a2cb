//! A run over any number of rows, in memory that does not grow with them.
//!
//! ```text
//! reader thread ──spans──► feed ──blocks──► workers, a pipeline each ──► the caller's thread ──► output
//! ```
//!
//! A row's block and place in it depend on its number alone. So a run that goes on after an end, or computes a share,
//! computes the same batches, and its rows are the same to the last bit. Blocks are written in order, whichever worker is
//! done first.

mod budget;
mod crew;
mod feed;
mod reader;
mod report;
mod run;
mod sizes;
mod source;
mod stop;
mod worker;

pub use report::{Old, Report};
pub use sizes::Wanted;
pub use source::{Entries, OnError, Rules, Source};
pub use stop::{Stop, exit_code};
pub use worker::Opener;

use crate::bad_input;
use crate::output::merge::{earlier_setting, finished};
use crate::output::{EmbeddingWriter, Interrupted, WriteOptions};
use crate::pipeline::{Pipeline, Timings};
use crate::rows::Notice;
use anyhow::Result;
use crew::Crew;
use reader::Reader;
use run::Run;
use sizes::{BATCH_SIZE, Sizes};
use source::Survey;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use worker::{Negatives, Plan};

/// What is added to a row's seed for its negative embedding where the number of rows is not known.
const SEED_OFFSET_OF_STREAMS: u64 = 1 << 63;

/// Hears how a run gets on.
pub trait Watcher: Send + Sync {
    /// All that could be refused was not. So many rows are to be written, if that is known, after those that an earlier
    /// run left.
    fn begin(&self, _rows: Option<u64>, _done: u64) {}
    /// A component is about to be loaded.
    fn loading(&self, _component: &str) {}
    /// Work for so many rows is done.
    fn computed(&self, _rows: f64) {}
    /// So many rows are written in all, in so many batches of this run.
    fn written(&self, _rows: u64, _batches: u64) {}
    /// The prompts of so many rows were too long, and cut off; of none where it is what they lead away from. The text says
    /// which prompt and where.
    fn cut_off(&self, _rows: u64, _text: &str) {}
    /// There is something to say of the file with the prompts.
    fn notice(&self, _notice: &Notice) {}
    /// So many rows are zeros because they could not be used, and the text says why.
    fn skipped(&self, _rows: u64, _text: &str) {}
    /// All rows are there, and the output is made of them.
    fn completing(&self, _output: &str) {}
    /// Some time has passed.
    fn tick(&self) {}
    /// Nothing more will come.
    fn end(&self) {}
}

/// For those who do not want to hear.
impl Watcher for () {}

/// A run.
pub struct Job {
    /// The prompts.
    pub source: Source,
    /// The same, opened.
    pub entries: Entries,
    /// What rows have.
    pub rules: Rules,
    /// The model.
    pub pipeline: Pipeline,
    /// Makes more pipelines of the same model.
    pub open: Opener,
    /// What the user says of how it is computed.
    pub wanted: Wanted,
    /// Where the embeddings go, and how. The fingerprint has what only the caller knows of; the rest is filled in.
    pub write: WriteOptions,
    /// Where rows that cannot be used are reported, if not on standard error.
    pub report: Option<Report>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is written.
    Done,
    /// An earlier run with the same settings had written everything.
    WasDone,
    /// Whoever read the output has closed it.
    ReaderGone,
    /// A signal asked to stop.
    Stopped {
        /// The signal.
        signal: i32,
        /// Whether what is written is kept for a run that goes on.
        kept: bool,
    },
}

/// What a run did.
#[derive(Debug)]
pub struct Summary {
    /// How it ended.
    pub outcome: Outcome,
    /// Rows of the output, those of an earlier run included.
    pub rows: u64,
    /// Rows that an earlier run left.
    pub resumed: u64,
    /// Rows that were to be written, if that was known.
    pub total: Option<u64>,
    /// Rows that are zeros because they could not be used, and the report that tells of them.
    pub skipped: Option<(u64, PathBuf)>,
    /// The time of all workers together.
    pub timings: Timings,
    /// Time spent reading prompts, in a thread of its own, and in the first pass over them.
    pub read: Duration,
    /// Time spent writing.
    pub write: Duration,
    /// Workers.
    pub workers: usize,
    /// CPU threads of all workers.
    pub threads: usize,
    /// Rows computed together.
    pub batch_size: usize,
}

impl Summary {
    /// Of a run that finds its rows written.
    fn of_finished(rows: u64, sizes: Sizes, read: Duration) -> Self {
        let (resumed, total, batch_size) = (rows, Some(rows), sizes.batch_size);
        Self { rows, resumed, total, batch_size, read, ..Self::of_nothing(Outcome::WasDone) }
    }

    /// Of a run that was asked to stop while its rows were counted: what an earlier one left is still there.
    fn before_the_first_row(stop: &Stop) -> Self {
        Self::of_nothing(Outcome::Stopped { signal: stop.signal().unwrap_or_default(), kept: true })
    }

    /// Of a run that did nothing.
    fn of_nothing(outcome: Outcome) -> Self {
        Self {
            outcome,
            rows: 0,
            resumed: 0,
            total: None,
            skipped: None,
            timings: Timings::default(),
            read: Duration::ZERO,
            write: Duration::ZERO,
            workers: 0,
            threads: 0,
            batch_size: 0,
        }
    }
}

impl Job {
    /// Runs the job until it is done or `stop` asks to stop.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] for what the user can mend, and whatever goes wrong on the way. What is written by then
    /// is kept for a run that goes on.
    pub fn run(mut self, watcher: Arc<dyn Watcher>, stop: &Stop) -> Result<Summary> {
        let start = Instant::now();
        self.check_rereading()?;
        let name = self.entries.name().to_string();
        let is_stream = self.source.is_stream();
        self.write.interrupt = stop.flag();
        let (survey, entries) = if is_stream {
            (None, self.entries)
        } else {
            let survey = Survey::of(&mut self.entries, &self.rules, stop);
            self.entries.take_notices().iter().for_each(|notice| watcher.notice(notice));
            match survey {
                Err(error) if error.is::<Interrupted>() => return Ok(Summary::before_the_first_row(stop)),
                survey => (Some(survey?), self.source.open()?),
            }
        };
        let first_pass = start.elapsed();
        let total = survey.as_ref().map(|survey| survey.rows);
        // What was chosen by the memory that was free then decides the rows that are to follow.
        let earlier = || earlier_setting(&self.write, BATCH_SIZE)?.parse().ok().filter(|rows| *rows > 0);
        self.wanted.batch_size = self.wanted.batch_size.or_else(earlier);
        let sizes = Sizes::plan(&self.pipeline, &self.rules, survey.as_ref(), &self.write, self.wanted)?;
        if let Some(survey) = survey.as_ref().filter(|_| sizes.may_resume) {
            sizes.add_to(&mut self.write.fingerprint, &self.pipeline, &self.rules, survey)?;
        }
        (self.write.dim, self.write.total_rows) = (Some(self.pipeline.embedding_dim()), total);
        // What came from a pipe will not come again. What a single batch left is made again as quickly.
        self.write.keep = !is_stream;
        self.write.restart = sizes.is_single;
        match finished(&self.write) {
            Err(error) if error.is::<Interrupted>() => return Ok(Summary::before_the_first_row(stop)),
            done => {
                if let Some(rows) = done? {
                    return Ok(Summary::of_finished(rows, sizes, first_pass));
                }
            }
        }
        let output = self.write.outputs.first().map(|output| output.path.display().to_string()).unwrap_or_default();
        let writer = match EmbeddingWriter::open(self.write) {
            Err(error) if error.is::<Interrupted>() => return Ok(Summary::before_the_first_row(stop)),
            writer => writer?,
        };
        let resumed = writer.rows_done();
        let plan = plan(self.rules, &mut self.pipeline, total, sizes)?;
        let own = total.map(|total| sizes.blocks.own_rows(total));
        watcher.begin(own, resumed);
        if let (Some(report), Some(dir)) = (&mut self.report, writer.dir()?) {
            report.make_in(dir);
        }
        let report = self.report.map(|report| Arc::new(Mutex::new(report)));
        let blocks = sizes.blocks;
        let (rules, reports) = (plan.rules.clone(), report.clone());
        let watches = Arc::clone(&watcher);
        let reader = |spans, budget| Reader {
            entries,
            rules,
            blocks,
            done: resumed,
            report: reports,
            survey,
            budget,
            watcher: watches,
            spans,
        };
        let crew = Crew::start(reader, plan, sizes, self.pipeline, self.open, &watcher)?;
        let write = Duration::ZERO;
        let mut run = Run { name, output, writer, watcher, report, own, resumed, sizes, write };
        let ended = run.drive(crew, stop);
        run.watcher.end();
        let end = match ended {
            Ok(end) if end.outcome == Outcome::Done => end,
            ended => {
                run.discard_report();
                ended?
            }
        };
        run.finish(end, first_pass, stop)
    }

    /// Refuses what needs prompts that can be read twice where they come from a pipe.
    fn check_rereading(&self) -> Result<()> {
        let name = self.entries.name();
        match &self.write {
            _ if !self.source.is_stream() => Ok(()),
            write if write.resume => Err(bad_input!(
                "--resume needs prompts that can be read again, and {name} cannot; write them into a file"
            )),
            write if write.shard.is_some() => Err(bad_input!(
                "--shard needs prompts that can be read again, since every run counts them all, and {name} cannot; write them into a file"
            )),
            _ => Ok(()),
        }
    }
}

/// What the workers do.
fn plan(rules: Rules, pipeline: &mut Pipeline, total: Option<u64>, sizes: Sizes) -> Result<Plan> {
    if let Some(threads) = sizes.threads {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
    let zero = if rules.needs_zero_embed() { pipeline.zero_embed()? } else { None };
    let seed_offset = total.unwrap_or(SEED_OFFSET_OF_STREAMS);
    Ok(Plan {
        negatives: rules.wants_negative.then_some(Negatives { zero, seed_offset }),
        rules,
        dim: pipeline.embedding_dim(),
        batch_size: sizes.batch_size,
        threads: sizes.threads,
    })
}
