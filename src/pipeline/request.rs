//! What is asked of a pipeline, and where its time went.

use std::time::Duration;

/// One row of the output. Its embedding depends on this and on [`Settings`] alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// The prompt.
    pub prompt: &'a str,
    /// The negative prompt; empty unless the user gave one.
    pub negative_prompt: &'a str,
    /// Seeds the row's own noise.
    pub seed: u64,
}

/// What all rows of a batch share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Number of denoising steps.
    pub steps: usize,
    /// Classifier-free guidance; off at 1 and below.
    pub guidance_scale: f64,
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
}

impl Settings {
    /// Those of a one-step prior, which has nothing to choose.
    pub const ONE_STEP: Self = Self { steps: 1, guidance_scale: 1.0 };
}

impl Default for Settings {
    /// Those of diffusers' Kandinsky 2.2 prior pipeline.
    fn default() -> Self {
        Self { steps: 25, guidance_scale: 4.0 }
    }
}

impl std::ops::AddAssign for Timings {
    fn add_assign(&mut self, other: Self) {
        self.load += other.load;
        self.text += other.text;
        self.tokenize += other.tokenize;
        self.prior += other.prior;
    }
}
