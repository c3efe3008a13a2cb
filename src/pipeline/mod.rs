//! The whole story on a page: prompts to embeddings.
//!
//! A prompt is tokenized and encoded, its embedding is denoised from its own noise and brought back to CLIP's scale.
//! Source: diffusers 0.42 `pipelines/kandinsky2_2/pipeline_kandinsky2_2_prior.py`, whose numbers these are.

pub mod describe;
mod identity;
pub mod layout;
mod load;
mod memory;
mod negative;
mod text;

pub use load::LoadOptions;
pub use memory::Demand;

use crate::diffusion::guidance::Guidance;
use crate::diffusion::noise::BatchNoise;
use crate::diffusion::sampler::{Condition, chunk_len, sample};
use crate::diffusion::scheduler::{SchedulerClass, SchedulerConfig};
use crate::files::Folder;
use crate::nn::prior::{PriorConfig, PriorTransformer, TextCondition};
use crate::weights::lora::Lora;
use anyhow::{Context, Result, anyhow};
use layout::Layout;
use memory::Parameters;
use ndarray::Array2;
use negative::NegativeCache;
use std::cell::OnceCell;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};
use text::TextStage;

/// One row of the output. Nothing else than this and [`Settings`] decides its embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// What the embedding is to show.
    pub prompt: &'a str,
    /// What guidance leads away from; empty unless the user gave a negative prompt.
    pub negative_prompt: &'a str,
    /// Seeds the row's own noise.
    pub seed: u64,
}

/// What all rows of a run share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Number of denoising steps.
    pub steps: usize,
    /// Classifier-free guidance; off at 1 and below.
    pub guidance_scale: f64,
}

/// Hears how a run gets on.
pub trait Observer {
    /// A component is about to be loaded.
    fn loading(&mut self, _component: &str) {}
    /// The prompt of a row of the batch was too long and cut off; without a row, one that guidance leads away from. The
    /// text says which prompt and where.
    fn cut_off(&mut self, _row: Option<usize>, text: &str) {
        log::warn!("{text}");
    }
    /// A denoising step of a batch is done.
    fn step_done(&mut self) {}
    /// Whether to give up: asked before each stage and after each step. The batch then ends with an error.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// For those who do not want to hear.
impl Observer for () {}

/// Where the time of a run went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Reading configurations, vocabulary and weights, and packing the weights.
    pub load: Duration,
    /// Tokenizing prompts and encoding them with CLIP.
    pub text: Duration,
    /// The tokenizing alone, which is part of `text`.
    pub tokenize: Duration,
    /// The prior: prefill and denoising.
    pub prior: Duration,
}

/// A model. Its networks are loaded when they are first needed.
#[derive(Debug)]
pub struct Pipeline {
    layout: Layout,
    options: LoadOptions,
    text: TextStage,
    prior_config: PriorConfig,
    prior: Option<PriorTransformer>,
    loras: Vec<Lora>,
    scheduler: SchedulerConfig,
    parameters: OnceCell<Parameters>,
    negative: Option<NegativeCache>,
    timings: Timings,
}

impl std::ops::AddAssign for Timings {
    fn add_assign(&mut self, other: Self) {
        self.load += other.load;
        self.text += other.text;
        self.tokenize += other.tokenize;
        self.prior += other.prior;
    }
}

impl Pipeline {
    /// The image embeddings of a batch of rows, `(rows, embedding_dim)`.
    ///
    /// If the run has no other batch (`is_only`), the text encoder's memory is freed before the prior needs it, and what
    /// guidance leads away from shares the prompts' passes. Otherwise that has passes of its own, so that a batch's numbers
    /// are the same to the last bit whichever batch came first.
    ///
    /// Of no rows, an array of none; no network is loaded for it.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the number of steps does not fit the model, or a network's weights do not fit its
    /// configuration; an error if an embedding is not finite, which names the weights that are not, or memory runs out.
    pub fn embed(
        &mut self,
        rows: &[Row],
        settings: &Settings,
        is_only: bool,
        observer: &mut dyn Observer,
    ) -> Result<Array2<f32>> {
        let scheduler = self.scheduler.scheduler(settings.steps)?;
        if rows.is_empty() {
            return Ok(Array2::zeros((0, self.embedding_dim())));
        }
        let guidance = Guidance::new(settings.guidance_scale);
        let (prompts, prompt_of_row) = distinct(rows.iter().map(|row| row.prompt));
        let (negative_prompts, negative_of_row) = distinct(rows.iter().map(|row| row.negative_prompt));

        let needs_negative =
            guidance.is_on() && !NegativeCache::serves(&self.negative, &negative_prompts, scheduler.timesteps());
        let (beside, apart): (&[&str], &[&str]) = match (needs_negative, is_only) {
            (false, _) => (&[], &[]),
            (true, true) => (&negative_prompts, &[]),
            (true, false) => (&[], &negative_prompts),
        };

        // Text, and then the prior: with a single batch the two never share the memory.
        check_cancelled(observer)?;
        self.load_text_encoder(observer)?;
        check_cancelled(observer)?;
        let mut cut_off = |place: usize, text: &str| {
            let rows = prompt_of_row.iter().enumerate().filter(|(_, prompt)| **prompt == place);
            rows.for_each(|(row, _)| observer.cut_off(Some(row), text));
            if place >= prompts.len() {
                observer.cut_off(None, text);
            }
        };
        let text = self.encode(&[&prompts, beside].concat(), &mut cut_off)?;
        let text_apart = if apart.is_empty() {
            None
        } else {
            Some(self.encode(apart, &mut |_, text| observer.cut_off(None, text))?)
        };
        if is_only {
            self.text.release();
        }
        check_cancelled(observer)?;
        self.load_prior(observer)?;
        check_cancelled(observer)?;

        let start = Instant::now();
        let prior = self.prior.as_ref().context("the prior is not loaded")?;
        let first_timesteps = |prompts: usize| &scheduler.timesteps()[..chunk_len(prompts).min(settings.steps)];
        let all_timesteps = |prompts: usize| std::iter::repeat_n(first_timesteps(prompts), prompts);
        let timesteps: Vec<&[i64]> = all_timesteps(prompts.len()).chain(all_timesteps(beside.len())).collect();
        let (prefix, timestep_cache) = prior.prefill(&text, &timesteps)?;
        if needs_negative {
            let (prefix, timestep_cache) = match &text_apart {
                Some(text) => prior.prefill(text, &all_timesteps(apart.len()).collect::<Vec<_>>())?,
                None => (prefix.tail(prompts.len())?, timestep_cache.tail(prompts.len())?),
            };
            self.negative = Some(NegativeCache {
                prompts: negative_prompts.iter().map(|prompt| prompt.to_string()).collect(),
                timesteps: scheduler.timesteps().to_vec(),
                prefix,
                timestep_cache,
            });
        }
        let conditional = Condition { prefix: &prefix, prompts: &prompt_of_row, timesteps: &timestep_cache };
        let unconditional = self.negative.as_ref().map(|negative| negative.condition(&negative_of_row));
        let seeds: Vec<u64> = rows.iter().map(|row| row.seed).collect();
        let noise = BatchNoise::draw(&seeds, self.prior_config.embedding_dim, scheduler.noisy_steps(), prior.device())?;
        let mut after_step = || {
            observer.step_done();
            check_cancelled(observer)
        };
        let embeds = sample(prior, &*scheduler, guidance, conditional, unconditional, &noise, &mut after_step)?;
        let embeds = to_rows(&embeds)?;
        self.timings.prior += start.elapsed();

        match embeds.rows().into_iter().position(|row| row.iter().any(|value| !value.is_finite())) {
            Some(row) => {
                let what = format!("the embedding of {:?}", text::shorten(rows[row].prompt));
                Err(self.explain_non_finite(&what, &[&self.layout.text_encoder, &self.layout.prior]))
            }
            None => Ok(embeds),
        }
    }

    /// Tokenizes and encodes prompts; `cut_off` hears of those that are too long.
    fn encode(&mut self, prompts: &[&str], cut_off: &mut dyn FnMut(usize, &str)) -> Result<TextCondition> {
        let start = Instant::now();
        let encodings = self.text.tokenize(prompts, cut_off)?;
        self.timings.tokenize += start.elapsed();
        let text = self.text.encode(&encodings)?;
        self.timings.text += start.elapsed();
        Ok(text)
    }

    /// Where the time went so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Checks that the model can do so many denoising steps.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if it cannot.
    pub fn check_steps(&self, steps: usize) -> Result<()> {
        self.scheduler.scheduler(steps).map(drop)
    }

    /// The most denoising steps that the model can do.
    pub fn most_steps(&self) -> usize {
        self.scheduler.most_steps()
    }

    /// The scheduler that the model ships.
    pub fn scheduler_class(&self) -> SchedulerClass {
        self.scheduler.class()
    }

    /// Numbers in an embedding.
    pub fn embedding_dim(&self) -> usize {
        usize::try_from(self.prior_config.embedding_dim).unwrap_or(0)
    }

    /// Why `what` has a NaN or an infinity, as far as the weights of `components` tell.
    fn explain_non_finite(&self, what: &str, components: &[&Folder]) -> anyhow::Error {
        let names = load::non_finite_tensors(components).unwrap_or_default();
        if names.is_empty() {
            return anyhow!("{what} is not finite (NaN or infinity); try --dtype f32");
        }
        let (folder, names) = (&self.layout.folder, crate::error::some_of(&names));
        anyhow!("{what} is not finite: {folder} has NaN or infinity in {names}; fetch the model again")
    }
}

fn check_cancelled(observer: &dyn Observer) -> Result<()> {
    if observer.is_cancelled() { Err(anyhow!("cancelled")) } else { Ok(()) }
}

/// The different texts in the order of their first occurrence, and which of them each is.
fn distinct<'a>(texts: impl Iterator<Item = &'a str>) -> (Vec<&'a str>, Vec<usize>) {
    let mut places = std::collections::HashMap::new();
    let mut different = Vec::new();
    let of_each = texts.map(|text| {
        *places.entry(text).or_insert_with(|| {
            different.push(text);
            different.len() - 1
        })
    });
    let of_each = of_each.collect();
    (different, of_each)
}

/// `(rows, dim)` float32 on any device to an array.
fn to_rows(embeds: &Tensor) -> Result<Array2<f32>> {
    let (rows, dim) = embeds.size2()?;
    let mut values = vec![0.0; (rows * dim) as usize];
    let len = values.len();
    embeds.f_to_kind(Kind::Float)?.f_to_device(tch::Device::Cpu)?.f_contiguous()?.f_copy_data(&mut values, len)?;
    Ok(Array2::from_shape_vec((rows as usize, dim as usize), values)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::precision::Precision;
    use std::path::Path;
    use tch::Device;

    #[test]
    fn no_rows_have_no_embeddings() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines/kandinsky22");
        let options = LoadOptions { device: Device::Cpu, precision: Precision::F32 };
        let mut pipeline = Pipeline::open(&model, options).unwrap();
        for guidance_scale in [1.0, 4.0] {
            for is_only in [false, true] {
                let settings = Settings { steps: 3, guidance_scale };
                let embeds = pipeline.embed(&[], &settings, is_only, &mut ()).unwrap();
                assert_eq!(embeds.dim(), (0, pipeline.embedding_dim()));
            }
        }
        assert!(pipeline.text.encoder.is_none() && pipeline.prior.is_none(), "a network was loaded");
        let too_many = Settings { steps: 1001, guidance_scale: 4.0 };
        assert!(pipeline.embed(&[], &too_many, true, &mut ()).is_err());
    }
}
