//! Euler's method with ancestral sampling: each step goes below the next noise level, and adds the noise that is missing
//! there (Katherine Crowson's k-diffusion, `sample_euler_ancestral`).
//!
//! Source: diffusers 0.42 `schedulers/scheduling_euler_ancestral_discrete.py`.

use crate::config::{Config, check_sizes};
use crate::diffusion::betas::{BetaSchedule, Betas, betas};
use crate::diffusion::levels::not_a_number;
use crate::diffusion::prediction::PredictionType;
use crate::diffusion::scheduler::{
    KEYS, Scheduler, SchedulerClass, SchedulerConfig, StepOutput, check_shapes, keys_that_count, max_steps, need_noise,
    parse,
};
use crate::diffusion::sigmas::{
    SigmaTable, check_schedule, check_steps, derivative, init_noise_sigma, original_sample, scale_model_input, sigma_at,
};
use crate::diffusion::spacing::{Spacing, TimestepSpacing, spacing};
use crate::json::Json;
use crate::{Error, Result};
use serde::Deserialize;
use tch::Tensor;

/// diffusers' `EulerAncestralDiscreteScheduler`.
pub const CLASS: SchedulerClass = SchedulerClass {
    class_name: "EulerAncestralDiscreteScheduler",
    name: "euler-ancestral",
    options: &[],
    parse: |text, origin, _| parse::<EulerAncestralConfig>(text, origin),
};

/// `scheduler_config.json` of an `EulerAncestralDiscreteScheduler`; names and defaults as in diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct EulerAncestralConfig {
    /// Timesteps the model was trained with.
    pub num_train_timesteps: i64,
    /// The first beta, for the schedules that have one.
    pub beta_start: f64,
    /// The last beta, likewise.
    pub beta_end: f64,
    /// How the betas grow.
    pub beta_schedule: BetaSchedule,
    /// The betas themselves, in place of a schedule.
    pub trained_betas: Option<Vec<f64>>,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Which of the training timesteps are run.
    pub timestep_spacing: TimestepSpacing,
    /// What is added to the timesteps of [`TimestepSpacing::Leading`].
    pub steps_offset: i64,
    /// Whether the betas are rescaled so that hardly anything of `x_0` is left at the last timestep (arXiv 2305.08891).
    pub rescale_betas_zero_snr: bool,
}

impl Default for EulerAncestralConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
        }
    }
}

impl Config for EulerAncestralConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = true;
    const IGNORED_KEYS: &'static [&'static str] = KEYS;

    fn part(whole: Json) -> Json {
        keys_that_count(whole)
    }

    fn validate(&self) -> Result<()> {
        check_sizes(&[("num_train_timesteps", self.num_train_timesteps)])?;
        self.betas().validate(&BetaSchedule::COMMON)?;
        if self.prediction_type == PredictionType::Sample {
            let reason = "is \"sample\", which this scheduler lacks, as in diffusers; it must be \"epsilon\" or \
                          \"v_prediction\"";
            return Err(Error::key("prediction_type", reason));
        }
        self.spacing().validate()
    }
}

impl EulerAncestralConfig {
    fn table(&self) -> SigmaTable {
        SigmaTable::new(&self.betas().positive_alphas_cumprod())
    }

    fn betas(&self) -> Betas<'_> {
        betas!(self)
    }

    fn spacing(&self) -> Spacing {
        spacing!(self)
    }
}

impl SchedulerConfig for EulerAncestralConfig {
    fn scheduler(&self, steps: usize) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(EulerAncestralScheduler::new(self, steps)?))
    }

    fn num_train_timesteps(&self) -> i64 {
        self.num_train_timesteps
    }

    fn max_steps(&self) -> usize {
        let table = self.table();
        max_steps(self.num_train_timesteps, |steps| EulerAncestralScheduler::of_table(self, &table, steps).is_ok())
    }

    fn prediction_type(&self) -> &str {
        self.prediction_type.name()
    }
}

/// diffusers' `EulerAncestralDiscreteScheduler`.
#[derive(Debug)]
pub struct EulerAncestralScheduler {
    prediction_type: PredictionType,
    timestep_spacing: TimestepSpacing,
    timesteps: Vec<f64>,
    /// σ at each step, and where the last one ends.
    sigmas: Vec<f32>,
}

impl EulerAncestralScheduler {
    /// # Errors
    /// [`Error::Option`] if so many steps are not possible.
    pub fn new(config: &EulerAncestralConfig, steps: usize) -> Result<Self> {
        check_steps(steps)?;
        Self::of_table(config, &config.table(), steps)
    }

    fn of_table(config: &EulerAncestralConfig, table: &SigmaTable, steps: usize) -> Result<Self> {
        let timesteps: Vec<f64> = config.spacing().fractional(steps).into_iter().map(f64::from).collect();
        let sigmas = timesteps.iter().map(|&timestep| table.at(timestep) as f32).chain([0.0]).collect::<Vec<_>>();
        check_schedule(steps, &timesteps, &sigmas)?;
        // Far apart, rounding errors leave the root of a number below zero.
        let is_nan = |pair: &[f32]| down_and_up(pair[0], pair[1]).0.is_nan();
        if let Some(step) = sigmas.windows(2).position(is_nan) {
            return Err(not_a_number(steps, timesteps[step]));
        }
        let EulerAncestralConfig { prediction_type, timestep_spacing, .. } = *config;
        Ok(Self { prediction_type, timestep_spacing, timesteps, sigmas })
    }
}

impl Scheduler for EulerAncestralScheduler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        init_noise_sigma(self.timestep_spacing, &self.sigmas)
    }

    fn scale_model_input(&self, step: usize, sample: &Tensor) -> Result<Tensor> {
        scale_model_input(sample, sigma_at(&self.sigmas, step)?)
    }

    fn noisy_steps(&self) -> usize {
        // The last draws noise too, of which it adds nothing.
        self.timesteps.len()
    }

    fn step(
        &mut self,
        step: usize,
        model_output: &Tensor,
        sample: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<StepOutput> {
        check_shapes(model_output, sample)?;
        let (sigma, next) = (sigma_at(&self.sigmas, step)?, sigma_at(&self.sigmas, step + 1)?);
        let pred_original_sample = original_sample(self.prediction_type, model_output, sample, sigma)?;
        let derivative = derivative(&pred_original_sample, sample, sigma)?;
        let (down, up) = down_and_up(sigma, next);
        let mean = sample.f_add(&derivative.f_mul_scalar(f64::from(down - sigma))?)?;
        let prev_sample = mean.f_add(&need_noise(step, noise)?.f_mul_scalar(f64::from(up))?)?;
        Ok(StepOutput { prev_sample, pred_original_sample })
    }
}

/// How far a step goes down, to below the next σ, and the standard deviation of the noise that takes it up to there.
fn down_and_up(sigma: f32, next: f32) -> (f32, f32) {
    let (variance, next_variance) = (sigma * sigma, next * next);
    let up = (next_variance * (variance - next_variance) / variance).sqrt();
    ((next_variance - up * up).sqrt(), up)
}
