//! DDIM (arXiv 2010.02502): DDPM's process with a share η of its noise; with none, a step is deterministic.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_ddim.py`; formulas (12) and (16) are those of DDIM.

use crate::config::{Config, check_sizes};
use crate::diffusion::betas::{BetaSchedule, Betas, betas};
use crate::diffusion::levels::{Levels, check_clip_sample_range, check_no_thresholding, not_a_number};
use crate::diffusion::prediction::PredictionType;
use crate::diffusion::scheduler::{
    KEYS, Scheduler, SchedulerClass, SchedulerConfig, StepOutput, check_shapes, keys_that_count, max_steps, need_noise,
    no_step,
};
use crate::diffusion::spacing::{Spacing, TimestepSpacing, spacing};
use crate::json::Json;
use crate::{Error, Result, config};
use serde::Deserialize;
use tch::Tensor;

/// diffusers' `DDIMScheduler`.
pub const CLASS: SchedulerClass = SchedulerClass {
    class_name: "DDIMScheduler",
    name: "ddim",
    options: &["eta"],
    parse: |text, origin, options| {
        let config = DdimConfig { eta: options.eta.unwrap_or(0.0), ..config::parse(text, origin)? };
        if !(0.0..=1.0).contains(&config.eta) {
            let reason = format!("it is {}, and must be between 0 and 1", config.eta);
            return Err(Error::Option { option: "eta", reason });
        }
        Ok(Box::new(config))
    },
};

/// `scheduler_config.json` of a `DDIMScheduler`; names and defaults as in diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct DdimConfig {
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
    /// Whether the predicted `x_0` is clipped.
    pub clip_sample: bool,
    /// Clipped to this and its negative; infinity means no clipping.
    pub clip_sample_range: f64,
    /// Whether the last step leaves no noise, or as much as the first training timestep has.
    pub set_alpha_to_one: bool,
    /// What is added to the timesteps of [`TimestepSpacing::Leading`].
    pub steps_offset: i64,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Dynamic thresholding, which is refused.
    pub thresholding: bool,
    /// Of the thresholding.
    pub dynamic_thresholding_ratio: f64,
    /// Of the thresholding.
    pub sample_max_value: f64,
    /// Which of the training timesteps are run.
    pub timestep_spacing: TimestepSpacing,
    /// Whether the betas are rescaled so that nothing of `x_0` is left at the last timestep (arXiv 2305.08891).
    pub rescale_betas_zero_snr: bool,
    /// The share of DDPM's noise that a step adds, 0 to 1: no key, but an argument of `step`.
    #[serde(skip)]
    pub eta: f64,
}

impl Default for DdimConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            clip_sample: true,
            clip_sample_range: 1.0,
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            timestep_spacing: TimestepSpacing::Leading,
            rescale_betas_zero_snr: false,
            eta: 0.0,
        }
    }
}

impl Config for DdimConfig {
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
        check_no_thresholding(self.thresholding)?;
        self.betas().validate(&BetaSchedule::COMMON)?;
        self.spacing().validate()
    }
}

impl DdimConfig {
    fn betas(&self) -> Betas<'_> {
        betas!(self)
    }

    fn spacing(&self) -> Spacing {
        spacing!(self)
    }
}

impl SchedulerConfig for DdimConfig {
    fn scheduler(&self, steps: usize) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(DdimScheduler::new(self, steps)?))
    }

    fn num_train_timesteps(&self) -> i64 {
        self.num_train_timesteps
    }

    fn max_steps(&self) -> usize {
        let alphas_cumprod = self.betas().alphas_cumprod();
        max_steps(self.num_train_timesteps, |steps| DdimScheduler::of_levels(self, &alphas_cumprod, steps).is_ok())
    }

    fn prediction_type(&self) -> &str {
        self.prediction_type.name()
    }
}

/// diffusers' `DDIMScheduler`.
#[derive(Debug)]
pub struct DdimScheduler {
    prediction_type: PredictionType,
    /// The range that the predicted `x_0` is clipped to, if it is.
    clip: Option<f64>,
    eta: f64,
    timesteps: Vec<f64>,
    levels: Vec<Levels>,
}

impl DdimScheduler {
    /// # Errors
    /// [`Error::Option`] if the model cannot do so many steps.
    pub fn new(config: &DdimConfig, steps: usize) -> Result<Self> {
        Self::of_levels(config, &config.betas().alphas_cumprod(), steps)
    }

    fn of_levels(config: &DdimConfig, alphas_cumprod: &[f32], steps: usize) -> Result<Self> {
        let timesteps = config.spacing().whole(steps)?;
        let last = if config.set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        // Not always the next of the timesteps: they may lie unevenly.
        let distance = config.num_train_timesteps / steps as i64;
        let levels = timesteps.iter().map(|&timestep| {
            let prev_timestep = usize::try_from(timestep as i64 - distance);
            let alpha_prod_t = alphas_cumprod[timestep as usize];
            let alpha_prod_t_prev = prev_timestep.map_or(last, |prev| alphas_cumprod[prev]);
            let alpha = alpha_prod_t / alpha_prod_t_prev;
            Levels { alpha_prod_t, alpha_prod_t_prev, beta: 1.0 - alpha, alpha }
        });
        let scheduler = Self {
            prediction_type: config.prediction_type,
            clip: config.clip_sample.then_some(config.clip_sample_range),
            eta: config.eta,
            levels: levels.collect(),
            timesteps,
        };
        match scheduler.levels.iter().position(|levels| scheduler.direction(levels).is_nan()) {
            Some(step) => Err(not_a_number(steps, scheduler.timesteps[step])),
            None => Ok(scheduler),
        }
    }

    /// The standard deviation of the noise that a step adds, formula (16).
    fn noise_scale(&self, levels: &Levels) -> f32 {
        self.eta as f32 * levels.posterior_variance().sqrt()
    }

    /// The factor of the predicted noise in the next sample.
    fn direction(&self, levels: &Levels) -> f32 {
        let scale = self.noise_scale(levels);
        (1.0 - levels.alpha_prod_t_prev - scale * scale).sqrt()
    }
}

impl Scheduler for DdimScheduler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noisy_steps(&self) -> usize {
        if self.eta > 0.0 { self.timesteps.len() } else { 0 }
    }

    fn step(
        &mut self,
        step: usize,
        model_output: &Tensor,
        sample: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<StepOutput> {
        check_shapes(model_output, sample)?;

        // 1. Noise levels.
        let levels = self.levels.get(step).ok_or_else(|| no_step(step))?;
        let signal = f64::from(levels.alpha_prod_t.sqrt());
        let deviation = f64::from(levels.beta_prod_t().sqrt());

        // 2. The predicted x_0 and the predicted noise.
        let (pred_original_sample, pred_epsilon) = match self.prediction_type {
            PredictionType::Epsilon => {
                (levels.original_from_noise(model_output, sample)?, model_output.shallow_clone())
            }
            PredictionType::Sample => {
                let noise_part = sample.f_sub(&model_output.f_mul_scalar(signal)?)?;
                (model_output.shallow_clone(), noise_part.f_div_scalar(deviation)?)
            }
            PredictionType::VPrediction => {
                let epsilon = model_output.f_mul_scalar(signal)?.f_add(&sample.f_mul_scalar(deviation)?)?;
                (levels.original_from_velocity(model_output, sample)?, epsilon)
            }
        };

        // 3. Clipped, for stability; the predicted noise stays as it is.
        let pred_original_sample = match self.clip {
            Some(range) => pred_original_sample.f_clamp(-range, range)?,
            None => pred_original_sample,
        };

        // 4. Formula (12): x_0, the direction to x_t, and noise.
        let direction = pred_epsilon.f_mul_scalar(f64::from(self.direction(levels)))?;
        let original = pred_original_sample.f_mul_scalar(f64::from(levels.alpha_prod_t_prev.sqrt()))?;
        let mean = original.f_add(&direction)?;
        let prev_sample = if step < self.noisy_steps() {
            let scale = f64::from(self.noise_scale(levels));
            mean.f_add(&need_noise(step, noise)?.f_mul_scalar(scale)?)?
        } else {
            mean
        };
        Ok(StepOutput { prev_sample, pred_original_sample })
    }
}
