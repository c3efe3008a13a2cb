//! The scheduler of unCLIP's prior: DDPM with a cosine schedule that recomputes betas for the timesteps it skips.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_unclip.py`; formulas (6), (7) and (15) are those of DDPM
//! (arXiv 2006.11239).

use crate::config::{Config, check_sizes};
use crate::diffusion::betas::{alphas_cumprod, betas_for_alpha_bar, cosine};
use crate::diffusion::levels::{Levels, check_clip_sample_range, impossible_steps};
use crate::diffusion::scheduler::{
    KEYS, Scheduler, SchedulerClass, SchedulerConfig, StepOutput, keys_that_count, no_step, parse,
};
use crate::json::Json;
use crate::{Error, Result};
use serde::Deserialize;
use tch::Tensor;

/// diffusers' `UnCLIPScheduler`.
pub const CLASS: SchedulerClass = SchedulerClass {
    class_name: "UnCLIPScheduler",
    name: "unclip",
    options: &[],
    parse: |text, origin, _| parse::<UnclipConfig>(text, origin),
};

/// `scheduler_config.json` of an `UnCLIPScheduler`; names and defaults as in diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct UnclipConfig {
    /// Timesteps the model was trained with.
    pub num_train_timesteps: i64,
    /// The variance of the noise that a step adds.
    pub variance_type: VarianceType,
    /// Whether the predicted `x_0` is clipped.
    pub clip_sample: bool,
    /// Clipped to this and its negative; infinity means no clipping.
    pub clip_sample_range: f64,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// How the betas grow.
    pub beta_schedule: BetaSchedule,
}

impl Default for UnclipConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            variance_type: VarianceType::FixedSmallLog,
            clip_sample: true,
            clip_sample_range: 1.0,
            prediction_type: PredictionType::Epsilon,
            beta_schedule: BetaSchedule::SquaredcosCapV2,
        }
    }
}

/// The variance of the noise that a step adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// That of the posterior, computed through its logarithm.
    FixedSmallLog,
    /// The model predicts it, between that of the posterior and the step's beta.
    LearnedRange,
}

/// What the model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// `x_0`.
    Sample,
}

/// How the betas grow from timestep to timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum BetaSchedule {
    /// So that their cumulative product follows `cos²` (arXiv 2102.09672).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
}

impl Config for UnclipConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = true;
    const IGNORED_KEYS: &'static [&'static str] = KEYS;

    fn part(whole: Json) -> Json {
        keys_that_count(whole)
    }

    fn validate(&self) -> Result<()> {
        check_sizes(&[("num_train_timesteps", self.num_train_timesteps)])?;
        if self.clip_sample {
            check_clip_sample_range(self.clip_sample_range)?;
        }
        Ok(())
    }
}

impl SchedulerConfig for UnclipConfig {
    fn scheduler(&self, steps: usize) -> Result<Box<dyn Scheduler>> {
        let mut scheduler = UnclipScheduler::new(self)?;
        scheduler.set_timesteps(steps)?;
        Ok(Box::new(scheduler))
    }

    fn num_train_timesteps(&self) -> i64 {
        self.num_train_timesteps
    }

    fn max_steps(&self) -> usize {
        usize::try_from(self.num_train_timesteps).unwrap_or(0)
    }

    fn prediction_type(&self) -> &str {
        match self.prediction_type {
            PredictionType::Epsilon => "epsilon",
            PredictionType::Sample => "sample",
        }
    }

    fn needs_variance(&self) -> bool {
        self.variance_type == VarianceType::LearnedRange
    }

    fn adds_noise(&self) -> bool {
        true
    }
}

/// diffusers' `UnCLIPScheduler`.
#[derive(Debug)]
pub struct UnclipScheduler {
    variance_type: VarianceType,
    prediction_type: PredictionType,
    /// The range that the predicted `x_0` is clipped to, if it is.
    clip: Option<f64>,
    betas: Vec<f32>,
    alphas: Vec<f32>,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<f64>,
}

impl UnclipScheduler {
    /// A scheduler that runs through all training timesteps until [`UnclipScheduler::set_timesteps`] is called.
    ///
    /// # Errors
    /// If a value of the configuration is wrong.
    pub fn new(config: &UnclipConfig) -> Result<Self> {
        config.validate()?;
        let betas = betas_for_alpha_bar(config.num_train_timesteps, cosine);
        let alphas: Vec<f32> = betas.iter().map(|beta| 1.0 - beta).collect();
        Ok(Self {
            variance_type: config.variance_type,
            prediction_type: config.prediction_type,
            clip: config.clip_sample.then_some(config.clip_sample_range),
            alphas_cumprod: alphas_cumprod(&betas),
            timesteps: (0..config.num_train_timesteps).rev().map(|timestep| timestep as f64).collect(),
            betas,
            alphas,
        })
    }

    /// Spreads `steps` timesteps evenly from the last training timestep to 0.
    ///
    /// One step starts at the noisiest timestep and takes the predicted `x_0` (diffusers divides by zero there).
    ///
    /// # Errors
    /// [`Error::Option`] if there are no steps, or more than training timesteps.
    pub fn set_timesteps(&mut self, steps: usize) -> Result<()> {
        let train = self.betas.len();
        if !(1..=train).contains(&steps) {
            return Err(impossible_steps(steps, train));
        }
        let last = (train - 1) as f64;
        self.timesteps = match steps {
            1 => vec![last],
            _ => (0..steps).rev().map(|k| (k as f64 * (last / (steps - 1) as f64)).round_ties_even()).collect(),
        };
        Ok(())
    }

    /// The factor of the noise that a step from `t` to `prev_timestep` (`t - 1` if not given) adds.
    ///
    /// For `learned_range`, the logarithm of the variance, interpolated by `predicted_variance` (in -1 to 1, any
    /// shape).
    ///
    /// # Errors
    /// If a timestep is out of range, or `learned_range` has no prediction.
    pub fn variance(&self, t: i64, prev_timestep: Option<i64>, predicted_variance: Option<&Tensor>) -> Result<Tensor> {
        let levels = self.levels(t, prev_timestep)?;
        let variance = levels.posterior_variance();
        match self.variance_type {
            VarianceType::FixedSmallLog => Ok(Tensor::f_from_slice(&[(0.5 * variance.max(1e-20).ln()).exp()])?),
            VarianceType::LearnedRange => {
                let predicted = predicted_variance
                    .ok_or_else(|| Error::Internal("learned_range needs a predicted variance".into()))?;
                let (min_log, max_log) = (variance.ln(), levels.beta.ln());
                let fraction = predicted.f_add_scalar(1.0)?.f_div_scalar(2.0)?;
                let upper = fraction.f_mul_scalar(f64::from(max_log))?;
                let lower = fraction.f_neg()?.f_add_scalar(1.0)?.f_mul_scalar(f64::from(min_log))?;
                Ok(upper.f_add(&lower)?)
            }
        }
    }

    /// Takes the sample at `timestep` to `prev_timestep` (`timestep - 1` if not given; below 0 is the end).
    ///
    /// `model_output` is `(rows, dim)`, or `(rows, 2 · dim)` for `learned_range`; `sample` and `noise` are
    /// `(rows, dim)`. Noise is needed for `timestep > 0`.
    ///
    /// # Errors
    /// If a timestep is out of range, noise is missing, or shapes do not fit.
    pub fn step(
        &self,
        model_output: &Tensor,
        timestep: i64,
        sample: &Tensor,
        prev_timestep: Option<i64>,
        noise: Option<&Tensor>,
    ) -> Result<StepOutput> {
        let (model_output, predicted_variance) = self.split_output(model_output, sample)?;

        // 1. Noise levels.
        let levels = self.levels(timestep, prev_timestep)?;

        // 2. The predicted x_0, formula (15).
        let pred_original_sample = match self.prediction_type {
            PredictionType::Epsilon => levels.original_from_noise(&model_output, sample)?,
            PredictionType::Sample => model_output,
        };

        // 3. Clipped, for stability.
        let pred_original_sample = match self.clip {
            Some(range) => pred_original_sample.f_clamp(-range, range)?,
            None => pred_original_sample,
        };

        // 4. The mean of the posterior, formula (7).
        let mean = levels.posterior_mean(&pred_original_sample, sample)?;

        // 5. Noise.
        let prev_sample = if timestep > 0 {
            let noise = noise.ok_or_else(|| Error::Internal(format!("timestep {timestep} needs noise")))?;
            let variance = self.variance(timestep, prev_timestep, predicted_variance.as_ref())?;
            let factor = match self.variance_type {
                VarianceType::FixedSmallLog => variance.f_to_device(noise.device())?,
                VarianceType::LearnedRange => variance.f_mul_scalar(0.5)?.f_exp()?,
            };
            mean.f_add(&noise.f_mul(&factor)?)?
        } else {
            mean
        };
        Ok(StepOutput { prev_sample, pred_original_sample })
    }

    /// The forward process: `√ᾱ_t · x_0 + √(1 - ᾱ_t) · noise`, one timestep a row.
    ///
    /// `original_samples` and `noise` are `(rows, …)`, `timesteps` is `(rows)`, int64.
    ///
    /// # Errors
    /// If a timestep is out of range or shapes do not fit.
    pub fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        let cumprod = Tensor::f_from_slice(&self.alphas_cumprod)?;
        let level = cumprod.f_to_kind(original_samples.kind())?.f_to_device(original_samples.device())?;
        let level = level.f_index_select(0, &timesteps.f_to_device(original_samples.device())?)?;
        let mut shape = vec![1; original_samples.dim()];
        if let Some(rows) = shape.first_mut() {
            *rows = -1;
        }
        let level = level.f_reshape(shape)?;
        let signal = level.f_sqrt()?.f_mul(original_samples)?;
        let rest = level.f_neg()?.f_add_scalar(1.0)?.f_sqrt()?.f_mul(noise)?;
        Ok(signal.f_add(&rest)?)
    }

    /// Splits `(rows, 2 · dim)` into a prediction and a variance where the model predicts both.
    fn split_output(&self, model_output: &Tensor, sample: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let (_, width) = model_output.size2()?;
        let (_, dim) = sample.size2()?;
        if self.variance_type == VarianceType::LearnedRange && width == 2 * dim {
            return Ok((model_output.f_narrow(1, 0, dim)?, Some(model_output.f_narrow(1, dim, dim)?)));
        }
        if width != dim {
            return Err(Error::Internal(format!("the model's output is {width} wide and the sample {dim}")));
        }
        Ok((model_output.shallow_clone(), None))
    }

    fn levels(&self, t: i64, prev_timestep: Option<i64>) -> Result<Levels> {
        let prev = prev_timestep.unwrap_or(t - 1);
        let index = usize::try_from(t).ok().filter(|&index| index < self.betas.len() && prev < t);
        let index = index.ok_or_else(|| Error::Internal(format!("no step leads from timestep {t} to {prev}")))?;
        let alpha_prod_t = self.alphas_cumprod[index];
        let alpha_prod_t_prev = usize::try_from(prev).map_or(1.0, |prev| self.alphas_cumprod[prev]);
        let (beta, alpha) = if prev == t - 1 {
            (self.betas[index], self.alphas[index])
        } else {
            let beta = 1.0 - alpha_prod_t / alpha_prod_t_prev;
            (beta, 1.0 - beta)
        };
        Ok(Levels { alpha_prod_t, alpha_prod_t_prev, beta, alpha })
    }
}

impl Scheduler for UnclipScheduler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noisy_steps(&self) -> usize {
        self.timesteps.iter().filter(|&&timestep| timestep > 0.0).count()
    }

    fn add_noise(&self, step: usize, sample: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let timestep = self.timesteps.get(step).ok_or_else(|| no_step(step))?;
        UnclipScheduler::add_noise(self, sample, noise, &Tensor::f_from_slice(&[*timestep as i64])?)
    }

    fn step(
        &mut self,
        step: usize,
        model_output: &Tensor,
        sample: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<StepOutput> {
        let timestep_of = |step: usize| self.timesteps.get(step).map(|&timestep| timestep as i64);
        let timestep = timestep_of(step).ok_or_else(|| no_step(step))?;
        // After the last timestep there is no noise left.
        let prev_timestep = timestep_of(step + 1).unwrap_or(-1);
        UnclipScheduler::step(self, model_output, timestep, sample, Some(prev_timestep), noise)
    }
}
