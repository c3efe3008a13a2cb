//! DDPM (arXiv 2006.11239), the scheduler that Stable unCLIP's prior is saved with.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_ddpm.py`; formulas (7) and (15) are those of DDPM.

mod config;

#[cfg(test)]
pub use config::TimestepSpacing;
pub use config::{BetaSchedule, DdpmConfig, PredictionType, VarianceType};

use crate::config::{Config, parse};
use crate::diffusion::betas::{
    alphas_cumprod, betas_for_alpha_bar, cosine, laplace, linspace, rescale_zero_terminal_snr, sigmoid,
};
use crate::diffusion::levels::{Levels, impossible_steps};
use crate::diffusion::scheduler::{Scheduler, SchedulerClass, SchedulerConfig, StepOutput};
use crate::{Error, Result};
use tch::Tensor;

/// diffusers' `DDPMScheduler`.
pub const CLASS: SchedulerClass = SchedulerClass {
    class_name: "DDPMScheduler",
    name: "ddpm",
    parse: |text, origin| Ok(Box::new(parse::<DdpmConfig>(text, origin)?)),
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
        self.max_steps()
    }

    fn prediction_type(&self) -> &str {
        match self.prediction_type {
            PredictionType::Epsilon => "epsilon",
            PredictionType::Sample => "sample",
            PredictionType::VPrediction => "v_prediction",
        }
    }
}

/// diffusers' `DDPMScheduler`.
#[derive(Debug)]
pub struct DdpmScheduler {
    config: DdpmConfig,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<i64>,
}

impl DdpmScheduler {
    /// A scheduler that runs through all training timesteps until [`DdpmScheduler::set_timesteps`] is called.
    ///
    /// # Errors
    /// If a value of the configuration is wrong.
    pub fn new(config: &DdpmConfig) -> Result<Self> {
        config.validate()?;
        let mut betas = betas(config);
        if config.rescale_betas_zero_snr {
            betas = rescale_zero_terminal_snr(&betas);
        }
        Ok(Self {
            alphas_cumprod: alphas_cumprod(&betas),
            timesteps: (0..config.num_train_timesteps).rev().collect(),
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
    /// Of [`TimestepSpacing::Trailing`], a rounding error makes diffusers run one more timestep, -1, for 62 of the 1000
    /// step counts; here there are as many timesteps as steps.
    ///
    /// # Errors
    /// [`Error::Option`] if there are no steps, more than training timesteps, or `steps_offset` leads beyond those.
    pub fn set_timesteps(&mut self, steps: usize) -> Result<()> {
        let train = self.alphas_cumprod.len();
        if !(1..=train).contains(&steps) {
            return Err(impossible_steps(steps, train));
        }
        let first = self.config.first_timestep(steps);
        if first >= train as i64 {
            let (offset, last) = (self.config.steps_offset, train - 1);
            let reason = format!(
                "{steps} steps are not possible: with the scheduler's steps_offset of {offset} they start at timestep \
                 {first}, and the last is {last}; take fewer"
            );
            return Err(Error::Option { option: "steps", reason });
        }
        self.timesteps = self.config.spread(steps);
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
            PredictionType::VPrediction => {
                let signal = sample.f_mul_scalar(f64::from(levels.alpha_prod_t.sqrt()))?;
                let velocity = model_output.f_mul_scalar(f64::from(levels.beta_prod_t().sqrt()))?;
                Ok(signal.f_sub(&velocity)?)
            }
        }
    }

    fn levels(&self, step: usize) -> Result<Levels> {
        let level = |timestep: i64| usize::try_from(timestep).ok().and_then(|index| self.alphas_cumprod.get(index));
        let alpha_prod_t = self.timesteps.get(step).and_then(|&t| level(t));
        let alpha_prod_t = *alpha_prod_t.ok_or_else(|| Error::Internal(format!("the scheduler has no step {step}")))?;
        // After the last timestep there is no noise left.
        let alpha_prod_t_prev = self.timesteps.get(step + 1).and_then(|&t| level(t)).copied().unwrap_or(1.0);
        let alpha = alpha_prod_t / alpha_prod_t_prev;
        Ok(Levels { alpha_prod_t, alpha_prod_t_prev, beta: 1.0 - alpha, alpha })
    }
}

impl Scheduler for DdpmScheduler {
    fn timesteps(&self) -> &[i64] {
        &self.timesteps
    }

    fn step(&self, step: usize, model_output: &Tensor, sample: &Tensor, noise: Option<&Tensor>) -> Result<StepOutput> {
        if model_output.size() != sample.size() {
            return Err(Error::Internal("the model's output and the sample differ in shape".into()));
        }

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
            let noise = noise.ok_or_else(|| Error::Internal(format!("step {step} needs noise")))?;
            mean.f_add(&noise.f_mul_scalar(f64::from(self.noise_scale(step)?))?)?
        } else {
            mean
        };
        Ok(StepOutput { prev_sample, pred_original_sample })
    }
}

/// The betas of a configuration, one a training timestep.
fn betas(config: &DdpmConfig) -> Vec<f32> {
    let steps = config.num_train_timesteps;
    let DdpmConfig { beta_start: start, beta_end: end, .. } = *config;
    if let Some(betas) = &config.trained_betas {
        return betas.iter().map(|&beta| beta as f32).collect();
    }
    match config.beta_schedule {
        BetaSchedule::Linear => linspace(start as f32, end as f32, steps),
        BetaSchedule::ScaledLinear => {
            linspace(start.sqrt() as f32, end.sqrt() as f32, steps).into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredcosCapV2 => betas_for_alpha_bar(steps, cosine),
        BetaSchedule::Laplace => betas_for_alpha_bar(steps, laplace),
        BetaSchedule::Sigmoid => {
            let (scale, offset) = ((end - start) as f32, start as f32);
            linspace(-6.0, 6.0, steps).into_iter().map(|x| sigmoid(x) * scale + offset).collect()
        }
    }
}
