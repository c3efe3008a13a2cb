//! Computes blocks: each worker has a thread and a pipeline of its own.

use super::batcher::{Batcher, Block};
use super::decode::{Decoded, PictureDecoder};
use super::gate::Gate;
use super::options::RowOptions;
use super::progress::JobProgress;
use super::report::SharedReport;
use crate::diffusion::noise::NoiseSource;
use crate::error::Component;
use crate::output::{ArrayName, OutputRow};
use crate::pipeline::{Draws, Pipeline, Progress, Prompt, Purpose, Row, Settings, Timings, Truncation};
use crate::rows::{BadRow, GivenNoise};
use anyhow::{Result, anyhow};
use ndarray::{Array1, Array2};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Makes another pipeline of the same model.
pub type Opener = Arc<dyn Fn() -> Result<Pipeline> + Send + Sync>;

/// How to compute negative embeddings.
#[derive(Debug)]
pub(super) struct Negatives {
    /// That of a row without a negative prompt; not needed if every row has one.
    pub(super) zero: Option<Array1<f32>>,
}

/// How to compute a block.
#[derive(Debug)]
pub(super) struct Computation {
    pub(super) options: RowOptions,
    /// If negative embeddings are wanted.
    pub(super) negatives: Option<Negatives>,
    /// If there are pictures in the place of prompts.
    pub(super) pictures: Option<PictureDecoder>,
    /// Rows of the whole run, if they are known.
    pub(super) rows: Option<u64>,
    /// The embedding dimension.
    pub(super) dim: usize,
    /// The largest number of rows that are computed together.
    pub(super) batch_size: usize,
}

/// A block's embeddings.
#[derive(Debug, Default)]
pub(super) struct Embedded {
    pub(super) rows: Vec<OutputRow>,
    /// `(rows, dim)`.
    pub(super) image: Array2<f32>,
    /// `(rows, dim)`, if they are wanted.
    pub(super) negative: Option<Array2<f32>>,
    /// `(rows, dim)`, if they are wanted.
    pub(super) text: Option<Array2<f32>>,
    /// `(rows, draws)`, if they are wanted.
    pub(super) scores: Option<Array2<f32>>,
    /// Rows whose pictures cannot be used, which are zeros.
    pub(super) skipped: Vec<(u64, BadRow)>,
    /// Bytes of text of the block.
    pub(super) bytes: usize,
}

/// What a worker sends to the writer.
pub(super) struct Computed {
    /// The block's number, counted from 0.
    pub(super) number: u64,
    pub(super) worker: usize,
    pub(super) block: Result<Embedded>,
    /// Where the worker's time has gone so far.
    pub(super) timings: Timings,
}

/// What all workers share.
pub(super) struct Shared {
    pub(super) batcher: Mutex<Batcher>,
    /// Counts the blocks that are not written yet.
    pub(super) gate: Gate,
    pub(super) computation: Computation,
    /// CPU threads of each pipeline; libtorch's choice if not given.
    pub(super) threads: Option<usize>,
    pub(super) open: Opener,
    /// Where to report pictures that cannot be used, if not to `progress`.
    pub(super) report: Option<SharedReport>,
    pub(super) progress: Arc<dyn JobProgress>,
    /// Set when the run ends: whoever computes or waits for prompts stops.
    pub(super) cancel: Arc<AtomicBool>,
}

impl Shared {
    /// Ends the work of all workers: within a denoising step where one is under way.
    pub(super) fn close(&self) {
        self.cancel.store(true, Ordering::Relaxed);
        self.gate.close();
    }

    /// The next block and its number. `None` if there are no more, or the run ends.
    fn next_block(&self) -> Option<(u64, Result<Block>)> {
        let mut batcher = self.batcher.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.gate.enter() {
            return None;
        }
        let number = batcher.position.blocks;
        let block = caught(|| batcher.next_block().transpose()).transpose();
        match &block {
            Some(Ok(block)) => self.gate.add(block.bytes),
            Some(Err(_)) => batcher.end(),
            None => self.gate.leave(0),
        }
        block.map(|block| (number, block))
    }

    /// The same with the pixel values of pictures.
    fn next_decoded(&self) -> Option<Numbered> {
        let (number, block) = self.next_block()?;
        let decode = |block| match &self.computation.pictures {
            Some(pictures) => caught(|| Ok(pictures.decode(block, &self.cancel))),
            None => Ok(Decoded::without_pictures(block)),
        };
        Some((number, block.and_then(decode)))
    }
}

/// A block to compute, and its number.
type Numbered = (u64, Result<Decoded>);

/// A worker's part of a run: computes blocks until there are no more, one fails, or the run ends. The pipeline is
/// opened when it is first needed if it is not given.
pub(super) fn work(worker: usize, pipeline: Option<Pipeline>, shared: &Shared, results: &Sender<Computed>) {
    if let Some(threads) = shared.threads {
        // libtorch keeps this number for each thread that calls it.
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
    // With pictures, the next block is decoded while this one is computed; but pipelines that run side by side, each on a
    // thread of its own, decode for themselves.
    if shared.computation.pictures.as_ref().is_none_or(|pictures| pictures.threads == 1) {
        return compute(worker, pipeline, shared, results, &|| shared.next_decoded());
    }
    thread::scope(|scope| {
        let (sender, decoded) = sync_channel::<Numbered>(1);
        let decode = move || {
            while let Some(block) = shared.next_decoded() {
                if sender.send(block).is_err() {
                    break;
                }
            }
        };
        match thread::Builder::new().name("decode-ahead".into()).spawn_scoped(scope, decode) {
            // Dropped at the end, so that a thread which waits to send ends.
            Ok(_) => compute(worker, pipeline, shared, results, &move || decoded.recv().ok()),
            Err(_) => compute(worker, pipeline, shared, results, &|| shared.next_decoded()),
        }
    });
}

fn compute(
    worker: usize,
    mut pipeline: Option<Pipeline>,
    shared: &Shared,
    results: &Sender<Computed>,
    next: &dyn Fn() -> Option<Numbered>,
) {
    while let Some((number, block)) = next() {
        // The writer must get a result for every block: it waits for them in order.
        let block = caught(|| {
            let pipeline = match &mut pipeline {
                Some(pipeline) => pipeline,
                none => none.insert((shared.open)()?),
            };
            shared.computation.embed(pipeline, block?, &*shared.progress, &shared.cancel)
        });
        let failed = block.is_err();
        let timings = pipeline.as_ref().map(Pipeline::timings).unwrap_or_default();
        let sent = results.send(Computed { number, worker, block, timings });
        if failed || sent.is_err() {
            break;
        }
    }
}

/// Turns a panic into an error.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let result = catch_unwind(AssertUnwindSafe(work));
    result.unwrap_or_else(|_| Err(anyhow!("internal error: a worker panicked")))
}

/// Embeddings to compute with the same settings, and where each goes.
struct Group<'a> {
    settings: Settings,
    rows: Vec<Row<'a>>,
    targets: Vec<Target>,
}

/// Where an embedding goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    array: ArrayName,
    /// The place in the block.
    place: usize,
    /// Which of the row's draws it is.
    draw: usize,
}

impl Computation {
    /// Computes the embeddings of a block.
    fn embed(
        &self,
        pipeline: &mut Pipeline,
        decoded: Decoded,
        progress: &dyn JobProgress,
        cancel: &AtomicBool,
    ) -> Result<Embedded> {
        if let Some(pictures) = &self.pictures {
            return self.encode_pictures(pictures, pipeline, decoded, progress, cancel);
        }
        let block = decoded.block;
        let mut image = Array2::zeros((block.rows.len(), self.dim));
        let mut negative = self.negatives.as_ref().map(|_| image.clone());
        let mut text = self.options.wants_text.then(|| image.clone());
        let mut draws = self.scores_draws().then(|| Draws::new(block.rows.len(), self.options.draws as usize));
        if let (Some(negative), Some(zero)) = (&mut negative, self.negatives.as_ref().and_then(|all| all.zero.as_ref()))
        {
            // Rows with a negative prompt get theirs below.
            let used = block.prompts.iter().enumerate().filter(|(_, prompt)| prompt.is_some());
            used.for_each(|(place, _)| negative.row_mut(place).assign(zero));
        }
        let images = match &self.options.images {
            Some(images) => images.embeds(&block.prompts, pipeline)?,
            None => vec![None; block.prompts.len()],
        };
        let groups = self.groups(&block, &images);
        let count: usize = groups.iter().map(|group| group.rows.len()).sum();
        let batches: usize = groups.iter().map(|group| group.rows.len().div_ceil(self.batch_size)).sum();
        for Group { settings, rows, targets } in &groups {
            for (rows, targets) in rows.chunks(self.batch_size).zip(targets.chunks(self.batch_size)) {
                // A row of the output is done when all that is computed for it is.
                let share = (rows.len() * block.rows.len()) as f64 / count as f64;
                let rows_per_step = share / pipeline.passes(settings)? as f64;
                let mut batch_progress = BatchProgress { progress, cancel, targets, rows_per_step };
                pipeline.keep_text_encoder(!(block.is_only && batches == 1));
                let embeds = pipeline.embed(rows, settings, &mut batch_progress)?;
                for (Target { array, place, draw }, (embed, of_text)) in
                    targets.iter().copied().zip(embeds.image.rows().into_iter().zip(embeds.text.rows()))
                {
                    if array == ArrayName::Negative {
                        negative.iter_mut().for_each(|negative| negative.row_mut(place).assign(&embed));
                    } else if draws.as_mut().is_none_or(|draws| draws.add(place, draw, embed, of_text)) {
                        image.row_mut(place).assign(&embed);
                        text.iter_mut().for_each(|text| text.row_mut(place).assign(&of_text));
                    }
                }
            }
        }
        let mut rows = block.rows;
        if let Some(draws) = &draws {
            let kept = rows.iter_mut().zip(draws.best());
            kept.for_each(|(row, draw)| row.seed = self.options.seed_of_draw(row.seed, *draw as u64));
        }
        let scores = draws.map(Draws::into_scores).filter(|_| self.options.wants_scores);
        Ok(Embedded { image, negative, text, scores, skipped: Vec::new(), bytes: block.bytes, rows })
    }

    /// Whether a row's draws are scored.
    fn scores_draws(&self) -> bool {
        self.options.draws > 1 || self.options.wants_scores
    }

    /// What to compute, grouped by settings: the draws of image embeddings, then the negative ones of rows with a negative
    /// prompt, each from the noise of its row's first draw.
    /// These are embeddings of that prompt under guidance away from itself, or of the decoder's own negative prompt
    /// under guidance away from the negative prompt, as in diffusers. `images` has the embedding that each row of the block
    /// starts from, if it is not noise alone.
    fn groups<'a>(&'a self, block: &'a Block, images: &'a [Option<Array1<f32>>]) -> Vec<Group<'a>> {
        let (mut groups, noise): (Vec<Group>, _) = (Vec::new(), self.options.noise(self.rows));
        let of_decoder = self.options.decoder_negative_prompt.as_deref().map(Prompt::Text);
        for array in [ArrayName::Image, ArrayName::Negative] {
            for (place, (output, record)) in block.rows.iter().zip(&block.prompts).enumerate() {
                let Some(record) = record else { continue };
                let own = self.options.negative_prompt_of(record);
                let (prompt, purpose) = match (array, of_decoder, own) {
                    (ArrayName::Image, ..) => (self.options.prompt_of(record), Purpose::Image),
                    _ if self.negatives.is_none() => continue,
                    (_, Some(prompt), _) => (prompt, Purpose::DecoderNegative),
                    (_, None, Some(prompt)) => (prompt, Purpose::Negative),
                    (_, None, None) => continue,
                };
                let draws = if array == ArrayName::Image { self.options.draws } else { 1 };
                let first = output.row.saturating_mul(self.options.draws);
                let row_of = |draw: u64| Row {
                    prompt,
                    negative_prompt: own.unwrap_or(Prompt::Text("")),
                    noise: with_own(
                        noise.source(
                            usize::try_from(first.saturating_add(draw)).unwrap_or(usize::MAX),
                            self.options.seed_of_draw(output.seed, draw),
                            purpose,
                        ),
                        record.noise.as_deref(),
                        purpose,
                    ),
                    image: images[place].as_ref().and_then(|image| image.as_slice()),
                };
                let settings = self.options.settings_of(record);
                let place_of_group = groups.iter().position(|group| group.settings == settings);
                let place_of_group = place_of_group.unwrap_or_else(|| {
                    groups.push(Group { settings, rows: Vec::new(), targets: Vec::new() });
                    groups.len() - 1
                });
                let group = &mut groups[place_of_group];
                group.rows.extend((0..draws).map(row_of));
                group.targets.extend((0..draws).map(|draw| Target { array, place, draw: draw as usize }));
            }
        }
        groups
    }
}

/// The noise of a row that may bring its own.
fn with_own<'a>(source: NoiseSource<'a>, own: Option<&'a GivenNoise>, purpose: Purpose) -> NoiseSource<'a> {
    let Some(own) = own else { return source };
    match purpose {
        Purpose::Image => NoiseSource { given: own.image.as_deref().or(source.given), ..source },
        Purpose::Negative | Purpose::DecoderNegative => NoiseSource {
            seed: own.negative_seed.unwrap_or(source.seed),
            given: own.negative.as_deref().or(source.given),
            ..source
        },
    }
}

/// Passes a batch's events on.
pub(super) struct BatchProgress<'a> {
    pub(super) progress: &'a dyn JobProgress,
    pub(super) cancel: &'a AtomicBool,
    pub(super) targets: &'a [Target],
    pub(super) rows_per_step: f64,
}

impl Progress for BatchProgress<'_> {
    fn loading(&mut self, component: Component) {
        self.progress.loading(component.name());
    }

    fn truncated(&mut self, truncation: &Truncation) {
        let is_row = |target: &Target| target.array == ArrayName::Image && target.draw == 0;
        let images = truncation.rows.iter().filter(|row| is_row(&self.targets[**row]));
        self.progress.truncated(images.count() as u64, &truncation.to_string());
    }

    fn step(&mut self, _done: usize, _total: usize) {
        self.progress.computed(self.rows_per_step);
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::first_pass::tests::options;
    use super::*;
    use crate::rows::PromptRecord;

    fn computation(batch_size: usize, wants_negative: bool) -> Computation {
        let negatives = wants_negative.then_some(Negatives { zero: None });
        Computation { options: options(), negatives, pictures: None, rows: Some(100), dim: 2, batch_size }
    }

    /// Two rows of a prompt, one that cannot be used, and two of a prompt with settings of its own.
    fn block() -> Block {
        let plain = Arc::new(PromptRecord { prompt: "a".into(), ..PromptRecord::default() });
        let own = PromptRecord { prompt: "own".into(), steps: Some(3), ..PromptRecord::default() };
        let own = Arc::new(PromptRecord { negative_prompt: Some("n".into()), ..own });
        let prompts = vec![Some(Arc::clone(&plain)), Some(plain), None, Some(Arc::clone(&own)), Some(own)];
        let row = |row| OutputRow { row, id: None, prompt: "".into(), seed: row + 10 };
        Block { rows: (4..9).map(row).collect(), prompts, ..Block::default() }
    }

    #[test]
    fn rows_of_the_same_settings_are_computed_together() {
        let block = block();
        let groups = |wants_negative| -> Vec<Vec<(usize, u64, bool)>> {
            let computation = computation(64, wants_negative);
            let of_group = |group: &Group| {
                let rows = group.rows.iter().zip(&group.targets);
                rows.map(|(row, target)| (target.place, row.noise.seed, target.array == ArrayName::Negative)).collect()
            };
            computation.groups(&block, &vec![None; block.rows.len()]).iter().map(of_group).collect()
        };
        let plain = vec![(0, 14, false), (1, 15, false)];
        let own = [(3, 17, false), (4, 18, false), (3, 117, true), (4, 118, true)];
        assert_eq!(groups(false), [plain.clone(), own[..2].to_vec()]);
        assert_eq!(groups(true), [plain, own.to_vec()]);
    }
}
