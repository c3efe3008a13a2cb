//! Euler's method on the probability flow's differential equation: algorithm 2 of Karras et al. (arXiv 2206.00364)
//! without its second order and without its noise.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_euler_discrete.py`.

use crate::Result;
use crate::config::{Config, check_sizes};
use crate::diffusion::betas::{BetaSchedule, Betas, betas, linspace};
use crate::diffusion::prediction::PredictionType;
use crate::diffusion::scheduler::{
    KEYS, Scheduler, SchedulerClass, SchedulerConfig, StepOutput, check_shapes, keys_that_count, max_steps, parse,
};
use crate::diffusion::sigmas::{
    FinalSigmas, RespacingKeys, SigmaTable, check_schedule, check_steps, derivative, init_noise_sigma, original_sample,
    scale_model_input, sigma_at,
};
use crate::diffusion::spacing::{Spacing, TimestepSpacing, spacing};
use crate::json::Json;
use serde::Deserialize;
use tch::Tensor;

/// diffusers' `EulerDiscreteScheduler`.
pub const CLASS: SchedulerClass = SchedulerClass {
    class_name: "EulerDiscreteScheduler",
    name: "euler",
    options: &[],
    parse: |text, origin, _| parse::<EulerConfig>(text, origin),
};

/// `scheduler_config.json` of an `EulerDiscreteScheduler`; names and defaults as in diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct EulerConfig {
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
    /// Whether sigmas are those of the timesteps or even in their logarithm.
    pub interpolation_type: InterpolationType,
    /// Sigmas even in their seventh root.
    pub use_karras_sigmas: Option<bool>,
    /// Sigmas even in their logarithm.
    pub use_exponential_sigmas: Option<bool>,
    /// Sigmas along a beta distribution, which is refused.
    pub use_beta_sigmas: Option<bool>,
    /// The smallest of such sigmas.
    pub sigma_min: Option<f64>,
    /// The largest of such sigmas.
    pub sigma_max: Option<f64>,
    /// Which of the training timesteps are run.
    pub timestep_spacing: TimestepSpacing,
    /// What the model is told of the noise.
    pub timestep_type: TimestepType,
    /// What is added to the timesteps of [`TimestepSpacing::Leading`].
    pub steps_offset: i64,
    /// Whether the betas are rescaled so that hardly anything of `x_0` is left at the last timestep (arXiv 2305.08891).
    pub rescale_betas_zero_snr: bool,
    /// Where a run ends.
    pub final_sigmas_type: FinalSigmas,
}

/// How the sigmas of a run come from those of the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterpolationType {
    /// Those of the timesteps.
    Linear,
    /// At even distances in their logarithm.
    LogLinear,
}

/// What the model is told of the noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepType {
    /// The timestep.
    Discrete,
    /// A quarter of the logarithm of σ, if the model predicts the velocity.
    Continuous,
}

impl Default for EulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            interpolation_type: InterpolationType::Linear,
            use_karras_sigmas: Some(false),
            use_exponential_sigmas: Some(false),
            use_beta_sigmas: Some(false),
            sigma_min: None,
            sigma_max: None,
            timestep_spacing: TimestepSpacing::Linspace,
            timestep_type: TimestepType::Discrete,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            final_sigmas_type: FinalSigmas::Zero,
        }
    }
}

impl Config for EulerConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = true;
    const IGNORED_KEYS: &'static [&'static str] = KEYS;

    fn part(whole: Json) -> Json {
        keys_that_count(whole)
    }

    fn validate(&self) -> Result<()> {
        check_sizes(&[("num_train_timesteps", self.num_train_timesteps)])?;
        self.betas().validate(&BetaSchedule::COMMON)?;
        self.respacing().validate()?;
        self.spacing().validate()
    }
}

impl EulerConfig {
    fn table(&self) -> SigmaTable {
        SigmaTable::new(&self.betas().positive_alphas_cumprod())
    }

    fn betas(&self) -> Betas<'_> {
        betas!(self)
    }

    fn spacing(&self) -> Spacing {
        spacing!(self)
    }

    fn respacing(&self) -> RespacingKeys {
        RespacingKeys {
            use_karras_sigmas: self.use_karras_sigmas == Some(true),
            use_lu_lambdas: false,
            use_exponential_sigmas: self.use_exponential_sigmas == Some(true),
            use_beta_sigmas: self.use_beta_sigmas == Some(true),
            sigma_min: self.sigma_min,
            sigma_max: self.sigma_max,
        }
    }
}

impl SchedulerConfig for EulerConfig {
    fn scheduler(&self, steps: usize) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(EulerScheduler::new(self, steps)?))
    }

    fn num_train_timesteps(&self) -> i64 {
        self.num_train_timesteps
    }

    fn max_steps(&self) -> usize {
        let table = self.table();
        max_steps(self.num_train_timesteps, |steps| EulerScheduler::of_table(self, &table, steps).is_ok())
    }

    fn prediction_type(&self) -> &str {
        self.prediction_type.name()
    }
}

/// diffusers' `EulerDiscreteScheduler`.
#[derive(Debug)]
pub struct EulerScheduler {
    prediction_type: PredictionType,
    timestep_spacing: TimestepSpacing,
    timesteps: Vec<f64>,
    /// σ at each step, and where the last one ends.
    sigmas: Vec<f32>,
}

impl EulerScheduler {
    /// # Errors
    /// [`crate::Error::Option`] if so many steps are not possible.
    pub fn new(config: &EulerConfig, steps: usize) -> Result<Self> {
        check_steps(steps)?;
        Self::of_table(config, &config.table(), steps)
    }

    fn of_table(config: &EulerConfig, table: &SigmaTable, steps: usize) -> Result<Self> {
        let mut timesteps: Vec<f64> = config.spacing().fractional(steps).into_iter().map(f64::from).collect();
        let mut sigmas: Vec<f64> = match config.interpolation_type {
            InterpolationType::Linear => timesteps.iter().map(|&timestep| table.at(timestep)).collect(),
            InterpolationType::LogLinear => {
                let (largest, smallest) = table.log_range();
                let logs = linspace(largest, smallest, steps as i64 + 1);
                logs.into_iter().map(|log| f64::from(f64::from(log).exp() as f32)).collect()
            }
        };
        if let (Some(respacing), Some(&first), Some(&last)) =
            (config.respacing().respacing(), sigmas.first(), sigmas.last())
        {
            sigmas = config.respacing().sigmas(respacing, (first, last), table, steps);
            timesteps = sigmas.iter().map(|&sigma| f64::from(table.timestep_of(sigma) as f32)).collect();
        }
        sigmas.push(match config.final_sigmas_type {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => f64::from(table.first()),
        });
        let sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        if (config.timestep_type, config.prediction_type) == (TimestepType::Continuous, PredictionType::VPrediction) {
            let steps = &sigmas[..sigmas.len() - 1];
            timesteps = steps.iter().map(|&sigma| f64::from(0.25 * f64::from(sigma).ln() as f32)).collect();
        }
        check_schedule(steps, &timesteps, &sigmas)?;
        let EulerConfig { prediction_type, timestep_spacing, .. } = *config;
        Ok(Self { prediction_type, timestep_spacing, timesteps, sigmas })
    }
}

impl Scheduler for EulerScheduler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        init_noise_sigma(self.timestep_spacing, &self.sigmas)
    }

    fn scale_model_input(&self, step: usize, sample: &Tensor) -> Result<Tensor> {
        scale_model_input(sample, sigma_at(&self.sigmas, step)?)
    }

    fn step(&mut self, step: usize, model_output: &Tensor, sample: &Tensor, _: Option<&Tensor>) -> Result<StepOutput> {
        check_shapes(model_output, sample)?;
        let (sigma, next) = (sigma_at(&self.sigmas, step)?, sigma_at(&self.sigmas, step + 1)?);
        let pred_original_sample = original_sample(self.prediction_type, model_output, sample, sigma)?;
        let derivative = derivative(&pred_original_sample, sample, sigma)?;
        let prev_sample = sample.f_add(&derivative.f_mul_scalar(f64::from(next - sigma))?)?;
        Ok(StepOutput { prev_sample, pred_original_sample })
    }
}
