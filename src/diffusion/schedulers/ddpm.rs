//! DDPM (arXiv 2006.11239), the scheduler that Stable unCLIP's prior is saved with.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_ddpm.py`; formulas (7) and (15) are those of DDPM.

mod config;

pub use config::{DdpmConfig, VarianceType};

use crate::Result;
use crate::config::Config;
use crate::diffusion::levels::Levels;
use crate::diffusion::prediction::PredictionType;
use crate::diffusion::scheduler::{
    Scheduler, SchedulerClass, SchedulerConfig, StepOutput, check_shapes, need_noise, no_step, parse,
};
use tch::Tensor;

/// diffusers' `DDPMScheduler`.
pub const CLASS: SchedulerClass = SchedulerClass {
    class_name: "DDPMScheduler",
    name: "ddpm",
    options: &[],
    parse: |text, origin, _| parse::<DdpmConfig>(text, origin),
};

impl SchedulerConfig for DdpmConfig {
    fn scheduler(&self, steps: usize) -> Result<Box<dyn Scheduler>> {
        let mut scheduler = DdpmScheduler::new(self)?;
        scheduler.set_timesteps(steps)?;
        Ok(Box::new(scheduler))
    }

    fn num_train_timesteps(&self) -> i64 {
        self.num_train_timesteps
    }

    fn max_steps(&self) -> usize {
        self.spacing().max_steps()
    }

    fn prediction_type(&self) -> &str {
        self.prediction_type.name()
    }
}

/// diffusers' `DDPMScheduler`.
#[derive(Debug)]
pub struct DdpmScheduler {
    config: DdpmConfig,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<f64>,
}

impl DdpmScheduler {
    /// A scheduler that runs through all training timesteps until [`DdpmScheduler::set_timesteps`] is called.
    ///
    /// # Errors
    /// If a value of the configuration is wrong.
    pub fn new(config: &DdpmConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            alphas_cumprod: config.betas().alphas_cumprod(),
            timesteps: (0..config.num_train_timesteps).rev().map(|timestep| timestep as f64).collect(),
            config: config.clone(),
        })
    }

    /// `ᾱ_t` at each training timestep.
    #[cfg(test)]
    pub fn alphas_cumprod(&self) -> &[f32] {
        &self.alphas_cumprod
    }

    /// Chooses the timesteps of a run.
    ///
    /// # Errors
    /// [`Error::Option`] if there are no steps, more than training timesteps, or `steps_offset` leads beyond those.
    pub fn set_timesteps(&mut self, steps: usize) -> Result<()> {
        self.timesteps = self.config.spacing().whole(steps)?;
        Ok(())
    }

    /// The factor of the noise that a step adds: its standard deviation.
    ///
    /// # Errors
    /// If there is no such step.
    pub fn noise_scale(&self, step: usize) -> Result<f32> {
        let levels = self.levels(step)?;
        let small = levels.posterior_variance().max(1e-20);
        Ok(match self.config.variance_type {
            VarianceType::FixedSmall => small.sqrt(),
            VarianceType::FixedSmallLog => (0.5 * small.ln()).exp(),
            VarianceType::FixedLarge => levels.beta.sqrt(),
        })
    }

    /// The predicted `x_0`, `(rows, dim)`, before it is clipped.
    fn original_sample(&self, levels: &Levels, model_output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        match self.config.prediction_type {
            PredictionType::Epsilon => levels.original_from_noise(model_output, sample),
            PredictionType::Sample => Ok(model_output.shallow_clone()),
            PredictionType::VPrediction => levels.original_from_velocity(model_output, sample),
        }
    }

    fn levels(&self, step: usize) -> Result<Levels> {
        let level = |timestep: f64| self.alphas_cumprod.get(timestep as usize);
        let alpha_prod_t = self.timesteps.get(step).and_then(|&t| level(t));
        let alpha_prod_t = *alpha_prod_t.ok_or_else(|| no_step(step))?;
        // After the last timestep there is no noise left.
        let alpha_prod_t_prev = self.timesteps.get(step + 1).and_then(|&t| level(t)).copied().unwrap_or(1.0);
        let alpha = alpha_prod_t / alpha_prod_t_prev;
        Ok(Levels { alpha_prod_t, alpha_prod_t_prev, beta: 1.0 - alpha, alpha })
    }
}

impl Scheduler for DdpmScheduler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noisy_steps(&self) -> usize {
        self.timesteps.iter().filter(|&&timestep| timestep > 0.0).count()
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
        let levels = self.levels(step)?;

        // 2. The predicted x_0, formula (15).
        let mut pred_original_sample = self.original_sample(&levels, model_output, sample)?;

        // 3. Clipped, for stability.
        if self.config.clip_sample {
            let range = self.config.clip_sample_range;
            pred_original_sample = pred_original_sample.f_clamp(-range, range)?;
        }

        // 4. The mean of the posterior, formula (7).
        let mean = levels.posterior_mean(&pred_original_sample, sample)?;

        // 5. Noise.
        let prev_sample = if step < self.noisy_steps() {
            let noise = need_noise(step, noise)?;
            mean.f_add(&noise.f_mul_scalar(f64::from(self.noise_scale(step)?))?)?
        } else {
            mean
        };
        Ok(StepOutput { prev_sample, pred_original_sample })
    }
}
