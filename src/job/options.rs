//! What applies to every row unless its prompt says otherwise.

use crate::nn::prior::PriorKind;
use crate::pipeline::Settings;
use crate::rows::{BadRow, PromptRecord, PromptRow};

/// What to do with a row that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// Fail the run.
    Fail,
    /// Report it and write zeros in its place, so that every other row keeps its number and its seed.
    Skip,
}

/// The defaults of a row, and the limits on what its prompt may set.
#[derive(Debug, Clone)]
pub struct RowOptions {
    /// The negative prompt.
    pub negative_prompt: Option<String>,
    /// Steps and guidance.
    pub settings: Settings,
    /// Row r of the whole run has the seed `seed + r`.
    pub seed: u64,
    /// Rows per prompt.
    pub samples: u64,
    /// Whether to compute negative embeddings.
    pub wants_negative: bool,
    /// What to do with a row that cannot be used.
    pub on_error: OnError,
    /// The largest number of steps that the model supports.
    pub max_steps: usize,
    /// The kind of the model's prior: not every one takes all settings.
    pub kind: PriorKind,
}

impl RowOptions {
    /// Whether some rows need the embedding of a black image: the negative embedding of a row without a negative
    /// prompt.
    pub(super) fn needs_zero_embed(&self) -> bool {
        self.wants_negative && self.negative_prompt.is_none()
    }

    /// Checks an entry against the limits.
    ///
    /// # Errors
    /// Why its rows cannot be used.
    pub(super) fn check(&self, entry: PromptRow) -> Result<PromptRecord, BadRow> {
        let (place, record) = match entry {
            PromptRow::Prompt { place, record } => (place, record),
            PromptRow::Bad(row) => return Err(row),
        };
        let bad = |reason: String| Err(BadRow { place, reason });
        let unused = match self.kind {
            PriorKind::Diffusion => &[][..],
            PriorKind::OneStep => {
                &[("steps", record.steps.is_some()), ("guidance_scale", record.guidance_scale.is_some())]
            }
            PriorKind::Sequence => &[("negative_prompt", record.negative_prompt.is_some())],
        };
        if let Some((key, _)) = unused.iter().find(|(_, is_set)| *is_set) {
            return bad(format!("{key:?} is set, and {} takes none", self.kind.title()));
        }
        if let Some(steps) = record.steps.filter(|steps| *steps > self.max_steps) {
            return bad(format!("\"steps\" is {steps}, and this model takes 1 to {}", self.max_steps));
        }
        let samples = self.samples_of(Some(&record));
        if let Some(seed) = record.seed.filter(|seed| seed.checked_add(samples - 1).is_none()) {
            return bad(format!("\"seed\" is {seed}, which leaves no seeds for {samples} rows below 2^64"));
        }
        Ok(record)
    }

    /// Whether a prompt's rows can share a batch with those of a prompt without settings of its own.
    pub(super) fn is_plain(&self, record: &PromptRecord) -> bool {
        let has_steps = record.steps.is_none_or(|steps| steps == self.settings.steps);
        let has_scale = record.guidance_scale.is_none_or(|scale| scale == self.settings.guidance_scale);
        let adds_negative = self.wants_negative && self.negative_prompt.is_none() && record.negative_prompt.is_some();
        has_steps && has_scale && !adds_negative
    }

    /// The number of rows of a prompt. One that cannot be used has as many as a prompt without settings of its own.
    pub(super) fn samples_of(&self, record: Option<&PromptRecord>) -> u64 {
        record.and_then(|record| record.samples).map_or(self.samples, |samples| samples as u64).max(1)
    }

    /// Steps and guidance of a prompt.
    pub(super) fn settings_of(&self, record: &PromptRecord) -> Settings {
        Settings {
            steps: record.steps.unwrap_or(self.settings.steps),
            guidance_scale: record.guidance_scale.unwrap_or(self.settings.guidance_scale),
        }
    }

    /// The negative prompt of a prompt, if it has one.
    pub(super) fn negative_prompt_of<'a>(&'a self, record: &'a PromptRecord) -> Option<&'a str> {
        record.negative_prompt.as_deref().or(self.negative_prompt.as_deref())
    }
}
