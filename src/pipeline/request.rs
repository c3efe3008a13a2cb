//! What is asked of a pipeline, and where its time went.

use super::progress::shorten;
use crate::diffusion::noise::NoiseSource;
use std::fmt;
use std::time::Duration;

/// A prompt: a text, or what stands in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prompt<T> {
    /// A text, to be encoded.
    Text(T),
    /// A row of the [`super::Conditions`] that the pipeline holds.
    Condition(usize),
}

impl<'a> Prompt<&'a str> {
    /// The text, if it is one.
    pub(crate) fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Condition(_) => None,
        }
    }

    pub(super) fn into_owned(self) -> Prompt<String> {
        match self {
            Self::Text(text) => Prompt::Text(text.to_string()),
            Self::Condition(row) => Prompt::Condition(row),
        }
    }
}

impl fmt::Display for Prompt<&str> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Text(text) => write!(formatter, "{:?}", shorten(text)),
            Self::Condition(row) => write!(formatter, "condition {row}"),
        }
    }
}

/// One row of the output. Its embedding depends on this and on [`Settings`] alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row<'a> {
    /// The prompt.
    pub prompt: Prompt<&'a str>,
    /// The negative prompt; empty unless the user gave one.
    pub negative_prompt: Prompt<&'a str>,
    /// Where the row's noise comes from.
    pub noise: NoiseSource<'a>,
    /// The image embedding that it starts from, `(dim)`, if [`Settings::strength`] says how far.
    pub image: Option<&'a [f32]>,
}

#[cfg(test)]
impl<'a> Row<'a> {
    /// A row of texts, with a generator of its own.
    pub fn new(prompt: &'a str, negative_prompt: &'a str, seed: u64) -> Self {
        Self {
            prompt: Prompt::Text(prompt),
            negative_prompt: Prompt::Text(negative_prompt),
            noise: seed.into(),
            image: None,
        }
    }
}

/// What all rows of a batch share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Number of denoising steps.
    pub steps: usize,
    /// Classifier-free guidance; off at 1 and below.
    pub guidance_scale: f64,
    /// What logits are divided by before a token is drawn, in an autoregressive prior: at 0 it is the likeliest.
    pub temperature: f64,
    /// How much of the schedule is run if rows start from image embeddings, 0 to 1; from noise alone if not given.
    pub strength: Option<f64>,
}

/// Where the time of a run went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Reading configurations, vocabulary and weights, and packing the weights.
    pub load: Duration,
    /// Tokenizing prompts and encoding them with CLIP.
    pub text: Duration,
    /// Tokenizing alone, a part of `text`.
    pub tokenize: Duration,
    /// The prior: prefill and denoising.
    pub prior: Duration,
    /// Encoding pictures with CLIP.
    pub image: Duration,
}

impl Settings {
    /// Those of a one-step prior, which has nothing to choose.
    pub const ONE_STEP: Self = Self { steps: 1, guidance_scale: 1.0, temperature: 1.0, strength: None };

    /// Those of a run from noise alone.
    pub fn new(steps: usize, guidance_scale: f64) -> Self {
        Self { steps, guidance_scale, temperature: 1.0, strength: None }
    }
}

impl Default for Settings {
    /// Those of diffusers' Kandinsky 2.2 prior pipeline.
    fn default() -> Self {
        Self::new(25, 4.0)
    }
}

impl std::ops::AddAssign for Timings {
    fn add_assign(&mut self, other: Self) {
        self.load += other.load;
        self.text += other.text;
        self.tokenize += other.tokenize;
        self.prior += other.prior;
        self.image += other.image;
    }
}
