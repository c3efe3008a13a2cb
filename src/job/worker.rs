//! A worker: blocks of rows become embeddings, with a pipeline of its own.

use super::Watcher;
use super::budget::Held;
use super::feed::{Block, Feed};
use super::reader::Span;
use super::source::Rules;
use crate::error::Component;
use crate::output::{ArrayName, OutputRow};
use crate::pipeline::{Pipeline, Progress, Row, Settings, Timings, Truncation};
use anyhow::{Result, anyhow};
use ndarray::{Array1, Array2, s};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

/// How to make a pipeline.
pub type Opener = Arc<dyn Fn() -> Result<Pipeline> + Send + Sync>;

/// The embeddings that decoders take as negative.
#[derive(Debug)]
pub(super) struct Negatives {
    /// That of a row without a negative prompt. Not needed if all have one.
    pub(super) zero: Option<Array1<f32>>,
    /// A row's seed plus this is its negative's.
    pub(super) seed_offset: u64,
}

/// What all workers do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) rules: Rules,
    /// If they are wanted.
    pub(super) negatives: Option<Negatives>,
    /// Numbers in an embedding.
    pub(super) dim: usize,
    /// The most rows that are computed together.
    pub(super) batch_size: usize,
    /// CPU threads of a pipeline; libtorch's choice if not given.
    pub(super) threads: Option<usize>,
}

/// A block's embeddings.
#[derive(Debug)]
pub(super) struct Embedded {
    pub(super) rows: Vec<OutputRow>,
    /// `(rows, dim)`.
    pub(super) image: Array2<f32>,
    /// `(rows, dim)`, if they are wanted.
    pub(super) negative: Option<Array2<f32>>,
    /// What they are of, which counts as in memory until it is written.
    pub(super) _records: Vec<Arc<Held>>,
}

/// What a worker sends.
pub(super) struct Computed {
    /// The block's number.
    pub(super) number: u64,
    pub(super) worker: usize,
    pub(super) block: Result<Embedded>,
    /// Where all of the worker's time went so far.
    pub(super) timings: Timings,
}

/// A thread's work.
pub(super) struct Worker {
    /// Its number.
    pub(super) number: usize,
    pub(super) feed: Arc<Mutex<Feed>>,
    pub(super) plan: Arc<Plan>,
    pub(super) open: Opener,
    /// Opened when it is first needed.
    pub(super) pipeline: Option<Pipeline>,
    pub(super) watcher: Arc<dyn Watcher>,
    pub(super) results: SyncSender<Computed>,
}

impl Worker {
    /// Works until nothing is left to do, an error, or nobody takes the results any more.
    pub(super) fn run(mut self) {
        if let Some(threads) = self.plan.threads {
            // libtorch keeps this number for each of its callers.
            tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        }
        loop {
            let next = self.feed.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, block)) = next else { break };
            // Whoever writes must hear of this block, or would wait for it for ever.
            let computed = catch_unwind(AssertUnwindSafe(|| self.embed(&block?)));
            let block =
                computed.unwrap_or_else(|_| Err(anyhow!("the computation broke off; this is an error of the program")));
            let failed = block.is_err();
            let timings = self.pipeline.as_ref().map(Pipeline::timings).unwrap_or_default();
            let sent = self.results.send(Computed { number, worker: self.number, block, timings });
            if failed || sent.is_err() {
                break;
            }
        }
    }

    fn embed(&mut self, block: &Block) -> Result<Embedded> {
        let pipeline = match &mut self.pipeline {
            Some(pipeline) => pipeline,
            none => none.insert((self.open)()?),
        };
        self.plan.embed(pipeline, block, self.watcher.as_ref())
    }
}

/// A row to compute.
struct Task<'a> {
    row: Row<'a>,
    settings: Settings,
    array: ArrayName,
    place: usize,
}

impl Plan {
    /// The embeddings of the rows of a block.
    fn embed(&self, pipeline: &mut Pipeline, block: &Block, watcher: &dyn Watcher) -> Result<Embedded> {
        let spans = block.spans.as_slice();
        let rows: Vec<OutputRow> = spans.iter().flat_map(|span| self.output_rows(span)).collect();
        let mut image = Array2::zeros((rows.len(), self.dim));
        let mut negative = self.negatives.as_ref().map(|_| image.clone());
        let tasks = self.tasks(spans, &rows);
        if let (Some(negative), Some(zero)) = (&mut negative, self.negatives.as_ref().and_then(|all| all.zero.as_ref()))
        {
            // Rows with a negative prompt get theirs below.
            for task in tasks.iter().filter(|task| task.array == ArrayName::Image) {
                negative.row_mut(task.place).assign(zero);
            }
        }
        let batches = self.batches(&tasks);
        for batch in &batches {
            let batch_rows: Vec<Row> = batch.iter().map(|task| task.row).collect();
            let settings = batch[0].settings;
            // The rows of an output are done when all that is computed for them is.
            let share = (batch.len() * rows.len()) as f64 / tasks.len() as f64;
            let mut meter = Meter { watcher, batch, rows_per_step: share / settings.steps as f64 };
            pipeline.keep_text_encoder(!(block.is_only && batches.len() == 1));
            let embeds = pipeline.embed(&batch_rows, &settings, &mut meter)?;
            for (task, embed) in batch.iter().zip(embeds.rows()) {
                let target = match task.array {
                    ArrayName::Image => Some(&mut image),
                    ArrayName::Negative => negative.as_mut(),
                };
                if let Some(target) = target {
                    target.slice_mut(s![task.place, ..]).assign(&embed);
                }
            }
        }
        let records = spans.iter().filter_map(|span| span.record.clone()).collect();
        Ok(Embedded { rows, image, negative, _records: records })
    }

    fn output_rows<'a>(&'a self, span: &'a Span) -> impl Iterator<Item = OutputRow> + 'a {
        let record = span.record.as_deref().map(Deref::deref);
        span.rows.clone().zip(span.first_sample..).map(move |(row, sample)| {
            let own_seed = record.and_then(|record| record.seed);
            OutputRow {
                row,
                id: record.and_then(|record| record.id.clone()),
                prompt: record.map_or_else(|| "".into(), |record| Arc::clone(&record.prompt)),
                seed: own_seed.map_or_else(|| self.rules.seed.wrapping_add(row), |seed| seed.wrapping_add(sample)),
            }
        })
    }

    /// What has to be computed: image embeddings, then the negative ones of rows with a negative prompt, as diffusers
    /// makes them: embeddings of that prompt, led away from itself.
    fn tasks<'a>(&'a self, spans: &'a [Span], rows: &'a [OutputRow]) -> Vec<Task<'a>> {
        let records = spans.iter().flat_map(|span| span.rows.clone().map(move |_| span.record.as_deref()));
        let mut images = Vec::with_capacity(rows.len());
        let mut negatives = Vec::new();
        for (place, (record, output)) in records.zip(rows).enumerate() {
            let Some(record) = record else { continue };
            let settings = Settings {
                steps: record.steps.unwrap_or(self.rules.settings.steps),
                guidance_scale: record.guidance_scale.unwrap_or(self.rules.settings.guidance_scale),
            };
            let own = record.negative_prompt.as_deref().or(self.rules.negative_prompt.as_deref());
            let negative_prompt = own.unwrap_or_default();
            let row = Row { prompt: &record.prompt, negative_prompt, seed: output.seed };
            images.push(Task { row, settings, array: ArrayName::Image, place });
            if let (Some(prompt), Some(all)) = (own, &self.negatives) {
                let seed = output.seed.wrapping_add(all.seed_offset);
                let row = Row { prompt, negative_prompt, seed };
                negatives.push(Task { row, settings, array: ArrayName::Negative, place });
            }
        }
        images.append(&mut negatives);
        images
    }

    /// The tasks that are computed together: of the same settings, and not too many.
    fn batches<'a>(&self, tasks: &'a [Task<'a>]) -> Vec<Vec<&'a Task<'a>>> {
        let mut groups: Vec<Vec<&Task>> = Vec::new();
        for task in tasks {
            match groups.iter_mut().find(|group| group[0].settings == task.settings) {
                Some(group) => group.push(task),
                None => groups.push(vec![task]),
            }
        }
        groups.iter().flat_map(|group| group.chunks(self.batch_size).map(<[_]>::to_vec)).collect()
    }
}

/// Tells how the computing of a batch gets on.
struct Meter<'a> {
    watcher: &'a dyn Watcher,
    batch: &'a [&'a Task<'a>],
    rows_per_step: f64,
}

impl Progress for Meter<'_> {
    fn loading(&mut self, component: Component) {
        self.watcher.loading(component.name());
    }

    fn truncated(&mut self, truncation: &Truncation) {
        let images = truncation.rows.iter().filter(|row| self.batch[**row].array == ArrayName::Image);
        self.watcher.cut_off(images.count() as u64, &truncation.to_string());
    }

    fn step(&mut self, _done: usize, _total: usize) {
        self.watcher.computed(self.rows_per_step);
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::super::source::tests::rules;
    use super::*;
    use crate::rows::PromptRecord;

    fn plan(batch_size: usize, wants_negative: bool) -> Plan {
        let negatives = wants_negative.then_some(Negatives { zero: None, seed_offset: 100 });
        Plan { rules: rules(), negatives, dim: 2, batch_size, threads: None }
    }

    fn spans() -> Vec<Span> {
        let record = |prompt: &str| PromptRecord { prompt: prompt.into(), ..PromptRecord::default() };
        let own = PromptRecord {
            seed: Some(7),
            steps: Some(3),
            negative_prompt: Some("n".into()),
            id: Some("i".into()),
            ..record("own")
        };
        let span = |record: Option<PromptRecord>, rows, first_sample| Span {
            record: record.map(|record| Budget::new(1 << 20).hold(record)),
            rows,
            first_sample,
        };
        vec![span(Some(record("a")), 4..6, 1), span(None, 6..7, 0), span(Some(own), 7..9, 1)]
    }

    #[test]
    fn a_row_has_the_seed_of_its_number_or_of_its_own() {
        let (plan, spans) = (plan(64, false), spans());
        let rows: Vec<OutputRow> = spans.iter().flat_map(|span| plan.output_rows(span)).collect();
        let seeds: Vec<(u64, u64)> = rows.iter().map(|row| (row.row, row.seed)).collect();
        assert_eq!(seeds, [(4, 14), (5, 15), (6, 16), (7, 8), (8, 9)]);
        assert_eq!((rows[3].id.as_deref(), &*rows[3].prompt, &*rows[2].prompt), (Some("i"), "own", ""));
    }

    #[test]
    fn rows_of_the_same_settings_are_computed_together_and_not_too_many() {
        let spans = spans();
        let batches = |batch_size, wants_negative| -> Vec<Vec<(usize, u64, bool)>> {
            let plan = plan(batch_size, wants_negative);
            let rows: Vec<OutputRow> = spans.iter().flat_map(|span| plan.output_rows(span)).collect();
            let tasks = plan.tasks(&spans, &rows);
            let batches = plan.batches(&tasks);
            let told = |task: &&Task| (task.place, task.row.seed, task.array == ArrayName::Negative);
            batches.iter().map(|batch| batch.iter().map(told).collect()).collect()
        };
        let images = [(0, 14, false), (1, 15, false), (3, 8, false), (4, 9, false)];
        assert_eq!(batches(64, false), [images[..2].to_vec(), images[2..].to_vec()]);
        assert_eq!(batches(1, false).concat(), images);
        let own = [(3, 8, false), (4, 9, false), (3, 108, true), (4, 109, true)];
        assert_eq!(batches(3, true), [images[..2].to_vec(), own[..3].to_vec(), own[3..].to_vec()]);
    }
}
