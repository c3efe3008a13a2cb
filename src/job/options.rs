//! What applies to every row unless its prompt says otherwise.

use super::images::Images;
use super::prompts::Source;
use crate::diffusion::guidance::Guidance;
use crate::diffusion::noise::seed_of;
use crate::images::ImageProcessor;
use crate::nn::prior::PriorKind;
use crate::pipeline::{Conditions, NEGATIVE_SEED_OFFSET, NoisePlan, Prompt, Settings};
use crate::rows::{BadRow, PictureFile, PromptRecord, PromptRow};
use ndarray::Array2;
use std::sync::Arc;

/// What to do with a row that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// Fail the run.
    Fail,
    /// Report it and write zeros in its place, so that every other row keeps its number and its seed.
    Skip,
}

/// Where the seeds of rows come from that have none of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seeding {
    /// Row r of the whole run has the seed `seed + r`.
    Row,
    /// From the prompt: sample k of it has the seed that its text gives, plus k.
    Prompt,
    /// One generator draws for all rows at once.
    Call,
}

/// What a file holds.
#[derive(Debug, Clone)]
pub struct Given<T> {
    /// What messages call the file.
    pub name: String,
    /// A hash of the file.
    pub hash: String,
    /// What it holds.
    pub value: Arc<T>,
}

/// The defaults of a row, and the limits on what its prompt may set.
#[derive(Debug, Clone)]
pub struct RowOptions {
    /// The negative prompt.
    pub negative_prompt: Option<String>,
    /// What negative embeddings are of, in place of the negative prompt.
    pub decoder_negative_prompt: Option<String>,
    /// What stands in the place of prompts.
    pub conditions: Option<Given<Conditions>>,
    /// What rows start from in place of drawn noise, `(rows, dim)`.
    pub latents: Option<Given<Array2<f32>>>,
    /// What rows start from in place of pure noise.
    pub images: Option<Images>,
    /// What makes pixel values of pictures, which stand in the place of prompts.
    pub pictures: Option<Arc<ImageProcessor>>,
    /// Steps and guidance.
    pub settings: Settings,
    /// The seed.
    pub seed: u64,
    /// What it applies to.
    pub seeding: Seeding,
    /// Rows per prompt.
    pub samples: u64,
    /// Draws of each row, of which the best is kept.
    pub draws: u64,
    /// Whether to compute negative embeddings.
    pub wants_negative: bool,
    /// Whether to write text embeddings.
    pub wants_text: bool,
    /// Whether to write the draws' scores.
    pub wants_scores: bool,
    /// What to do with a row that cannot be used.
    pub on_error: OnError,
    /// The largest number of steps that the model supports.
    pub max_steps: usize,
    /// The kind of the model's prior: not every one takes all settings.
    pub kind: PriorKind,
}

impl RowOptions {
    /// Whether every row has a negative prompt.
    pub fn has_negative_prompt(&self) -> bool {
        self.negative_prompt.is_some() || self.conditions.as_ref().is_some_and(|given| given.value.has_negative())
    }

    /// Whether negative embeddings of all rows are made from prompts.
    pub fn has_negatives(&self) -> bool {
        self.has_negative_prompt() || self.decoder_negative_prompt.is_some()
    }

    /// Whether texts are encoded.
    pub fn has_texts(&self) -> bool {
        let Some(conditions) = &self.conditions else { return true };
        let is_guided = Guidance::new(self.settings.guidance_scale).is_on();
        let of_negatives = self.negative_prompt.is_some() || self.decoder_negative_prompt.is_some();
        is_guided && !conditions.value.has_negative() || self.wants_negative && of_negatives
    }

    /// Whether some rows need the embedding of a black image: the negative embedding of a row without a negative
    /// prompt.
    pub(super) fn needs_zero_embed(&self) -> bool {
        self.wants_negative && !self.has_negatives()
    }

    /// Checks a row of a source against the limits.
    ///
    /// # Errors
    /// Why its rows cannot be used.
    pub(super) fn check(&self, source: &Source, row: PromptRow) -> Result<PromptRecord, BadRow> {
        let (place, mut record) = match row {
            PromptRow::Prompt { place, record } => (place, record),
            PromptRow::Bad(row) => return Err(row),
        };
        if let Some(image) = &mut record.image {
            **image = image.within(&source.folder);
        }
        let bad = |reason: String| Err(BadRow { place, reason });
        if let Some(PictureFile { name, len: Err(reason), .. }) = record.picture.as_deref()
            && self.on_error == OnError::Fail
        {
            return bad(format!("{name} {reason}"));
        }
        let unused = match self.kind {
            PriorKind::Diffusion => &[][..],
            PriorKind::OneStep => {
                &[("steps", record.steps.is_some()), ("guidance_scale", record.guidance_scale.is_some())]
            }
            PriorKind::Sequence => &[("negative_prompt", record.negative_prompt.is_some())],
            PriorKind::Autoregressive => &[("steps", record.steps.is_some())],
        };
        if let Some((key, _)) = unused.iter().find(|(_, is_set)| *is_set) {
            return bad(format!("{key:?} is set, and {} takes none", self.kind.title()));
        }
        if let Some(steps) = record.steps.filter(|steps| *steps > self.max_steps) {
            return bad(format!("\"steps\" is {steps}, and this model takes 1 to {}", self.max_steps));
        }
        let samples = self.samples_of(Some(&record));
        let draws = samples.saturating_mul(self.draws);
        if let Some(seed) = record.seed.filter(|seed| seed.checked_add(draws - 1).is_none()) {
            return bad(format!("\"seed\" is {seed}, which leaves no seeds for {draws} rows below 2^64"));
        }
        if let Err(error) = self.images.as_ref().map_or(Ok(()), |images| images.check(&record)) {
            return bad(format!("\"image\": {error}"));
        }
        if record.noise.is_some() && samples > 1 {
            return bad(format!("it has noise of its own, which is for one row, and {samples} samples; give one"));
        }
        let settings = self.settings_of(&record);
        let own = [
            ("seed", record.seed.is_some()),
            ("noise", record.noise.is_some()),
            ("negative_prompt", record.negative_prompt.is_some()),
            ("steps", settings.steps != self.settings.steps),
            ("guidance_scale", settings.guidance_scale != self.settings.guidance_scale),
        ];
        if let Some((key, _)) = own.into_iter().find(|(_, is_own)| *is_own && self.seeding == Seeding::Call) {
            return bad(format!("it has {key:?} of its own, and --seed-layout call is one call for all rows"));
        }
        Ok(record)
    }

    /// Whether a prompt's rows can share a batch with those of a prompt without settings of its own.
    pub(super) fn is_plain(&self, record: &PromptRecord) -> bool {
        let has_steps = record.steps.is_none_or(|steps| steps == self.settings.steps);
        let has_scale = record.guidance_scale.is_none_or(|scale| scale == self.settings.guidance_scale);
        let adds_negative = self.needs_zero_embed() && record.negative_prompt.is_some();
        let has_image = |images: &Images| images.has(record) == images.given.is_some();
        has_steps && has_scale && !adds_negative && self.images.as_ref().is_none_or(has_image)
    }

    /// The number of rows of a prompt. One that cannot be used has as many as a prompt without settings of its own.
    pub(super) fn samples_of(&self, record: Option<&PromptRecord>) -> u64 {
        record.and_then(|record| record.samples).map_or(self.samples, |samples| samples as u64).max(1)
    }

    /// The seed of the first draw of a row, which is the `sample`-th of its prompt. Those of the others follow it, and
    /// then those of the next row: they are the seeds of `draws` times as many rows.
    pub(super) fn seed_of(&self, record: Option<&PromptRecord>, row: u64, sample: u64) -> u64 {
        if self.pictures.is_some() {
            // Nothing is drawn.
            return 0;
        }
        let (row, sample) = (row.wrapping_mul(self.draws), sample.wrapping_mul(self.draws));
        match (record.and_then(|record| record.seed), self.seeding) {
            (Some(seed), _) => seed.wrapping_add(sample),
            (None, Seeding::Row) => self.seed.wrapping_add(row),
            (None, Seeding::Prompt) => seed_of(record.map_or("", |record| &*record.prompt)).wrapping_add(sample),
            (None, Seeding::Call) => self.seed,
        }
    }

    /// The seed of a row's `draw`-th draw, of which the first has the seed `first`.
    pub(super) fn seed_of_draw(&self, first: u64, draw: u64) -> u64 {
        if self.seeding == Seeding::Call { first } else { first.wrapping_add(draw) }
    }

    /// The noise of a run of so many rows, if they are known: that of all their draws.
    pub(super) fn noise(&self, rows: Option<u64>) -> NoisePlan<'_> {
        let rows = rows.map(|rows| rows.saturating_mul(self.draws));
        let known = rows.filter(|_| self.seeding != Seeding::Prompt);
        let rows = rows.map_or(usize::MAX, |rows| usize::try_from(rows).unwrap_or(usize::MAX));
        let rows_each = if self.has_negative_prompt() { 2 } else { 1 };
        NoisePlan {
            rows,
            negative_offset: known.unwrap_or(NEGATIVE_SEED_OFFSET),
            call_rows: (self.seeding == Seeding::Call).then(|| rows.saturating_mul(rows_each)),
            latents: self.latents.as_ref().map(|given| &*given.value),
        }
    }

    /// Steps and guidance of a prompt.
    pub(super) fn settings_of(&self, record: &PromptRecord) -> Settings {
        Settings {
            steps: record.steps.unwrap_or(self.settings.steps),
            guidance_scale: record.guidance_scale.unwrap_or(self.settings.guidance_scale),
            strength: self.images.as_ref().filter(|images| images.has(record)).map(|images| images.strength),
            ..self.settings
        }
    }

    /// The prompt, or what stands in its place.
    pub(super) fn prompt_of<'a>(&'a self, record: &'a PromptRecord) -> Prompt<&'a str> {
        record.condition.map_or(Prompt::Text(&*record.prompt), Prompt::Condition)
    }

    /// The negative prompt of a prompt, if it has one.
    pub(super) fn negative_prompt_of<'a>(&'a self, record: &'a PromptRecord) -> Option<Prompt<&'a str>> {
        let text = record.negative_prompt.as_deref().or(self.negative_prompt.as_deref());
        text.map(Prompt::Text).or_else(|| self.conditions.as_ref()?.value.negative_prompt(record.condition?))
    }
}
