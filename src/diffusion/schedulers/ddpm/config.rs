//! The configuration of DDPM, and the timesteps that follow from it.

use crate::config::{Config, check_float, check_sizes};
use crate::diffusion::levels::check_clip_sample_range;
use crate::{Error, Result};
use serde::Deserialize;

/// `scheduler_config.json` of a `DDPMScheduler`; names and defaults as in diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct DdpmConfig {
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
    /// The variance of the noise that a step adds.
    pub variance_type: VarianceType,
    /// Whether the predicted `x_0` is clipped.
    pub clip_sample: bool,
    /// Clipped to this and its negative; infinity means no clipping.
    pub clip_sample_range: f64,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Dynamic thresholding (arXiv 2205.11487) in place of clipping. It is for images; with embeddings diffusers fails,
    /// so it is refused here.
    pub thresholding: bool,
    /// Of the thresholding.
    pub dynamic_thresholding_ratio: f64,
    /// Of the thresholding.
    pub sample_max_value: f64,
    /// Which of the training timesteps are run.
    pub timestep_spacing: TimestepSpacing,
    /// What is added to the timesteps of [`TimestepSpacing::Leading`].
    pub steps_offset: i64,
    /// Whether the betas are rescaled so that nothing of `x_0` is left at the last timestep (arXiv 2305.08891).
    pub rescale_betas_zero_snr: bool,
}

impl Default for DdpmConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            variance_type: VarianceType::FixedSmall,
            clip_sample: true,
            clip_sample_range: 1.0,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
        }
    }
}

/// How the betas grow from timestep to timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Their roots evenly.
    ScaledLinear,
    /// So that their cumulative product follows `cos²` (arXiv 2102.09672).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
    /// So that it follows Laplace's distribution (arXiv 2407.03297).
    Laplace,
    /// Along a sigmoid.
    Sigmoid,
}

/// The variance of the noise that a step adds. Models that predict it themselves are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
#[expect(clippy::enum_variant_names, reason = "the names of diffusers")]
pub enum VarianceType {
    /// That of the posterior.
    FixedSmall,
    /// The same, computed through its logarithm.
    FixedSmallLog,
    /// The step's beta.
    FixedLarge,
}

impl TryFrom<String> for VarianceType {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "fixed_small" => Ok(Self::FixedSmall),
            "fixed_small_log" => Ok(Self::FixedSmallLog),
            "fixed_large" => Ok(Self::FixedLarge),
            "fixed_large_log" => {
                Err(format!("{name:?} gives no numbers: diffusers takes the root of a logarithm below 0"))
            }
            "learned" | "learned_range" => Err(format!("{name:?} needs a prior that predicts a variance")),
            _ => {
                log::warn!("variance_type {name:?} is unknown and, as in diffusers, stands for \"fixed_small\"");
                Ok(Self::FixedSmall)
            }
        }
    }
}

/// What the model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// `x_0`.
    Sample,
    /// The velocity, `√ᾱ_t · noise - √(1 - ᾱ_t) · x_0` (arXiv 2210.02303).
    VPrediction,
}

/// Which of the training timesteps are run (table 2 of arXiv 2305.08891).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// From the last to the first.
    Linspace,
    /// From the first on, at whole distances.
    Leading,
    /// From the last on, downwards.
    Trailing,
}

impl Config for DdpmConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = true;

    fn validate(&self) -> Result<()> {
        check_sizes(&[("num_train_timesteps", self.num_train_timesteps)])?;
        if self.clip_sample {
            check_clip_sample_range(self.clip_sample_range)?;
        }
        if self.thresholding {
            return Err(Error::key(
                "thresholding",
                "is true, it must be false: it is for images, and not for embeddings",
            ));
        }
        if let Some(betas) = &self.trained_betas {
            let (count, steps) = (betas.len(), self.num_train_timesteps);
            if count as i64 != steps {
                let reason = format!("has {count} numbers, and num_train_timesteps is {steps}");
                return Err(Error::key("trained_betas", reason));
            }
            betas.iter().try_for_each(|&beta| check_beta("trained_betas", beta))?;
        } else if !matches!(self.beta_schedule, BetaSchedule::SquaredcosCapV2 | BetaSchedule::Laplace) {
            check_beta("beta_start", self.beta_start)?;
            check_beta("beta_end", self.beta_end)?;
        }
        if !(0..self.num_train_timesteps).contains(&self.steps_offset) {
            let (offset, last) = (self.steps_offset, self.num_train_timesteps - 1);
            return Err(Error::key("steps_offset", format!("is {offset}, it must be between 0 and {last}")));
        }
        Ok(())
    }
}

/// A step to a timestep without noise would divide by zero.
fn check_beta(key: &str, beta: f64) -> Result<()> {
    check_float(key, beta, f32::MIN_POSITIVE..=1.0)
}

impl DdpmConfig {
    /// See [`SchedulerConfig::max_steps`](crate::diffusion::scheduler::SchedulerConfig::max_steps).
    pub fn max_steps(&self) -> usize {
        let train = usize::try_from(self.num_train_timesteps).unwrap_or(0);
        (1..=train).take_while(|&steps| self.first_timestep(steps) < self.num_train_timesteps).last().unwrap_or(0)
    }

    /// The noisiest timestep of a run, which `steps_offset` may put beyond the last training timestep.
    pub(super) fn first_timestep(&self, steps: usize) -> i64 {
        let train = self.num_train_timesteps;
        match self.timestep_spacing {
            TimestepSpacing::Linspace if steps == 1 => 0,
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => train - 1,
            TimestepSpacing::Leading => (steps as i64 - 1) * (train / steps as i64) + self.steps_offset,
        }
    }

    /// The timesteps of a run, the noisiest first.
    pub(super) fn spread(&self, steps: usize) -> Vec<i64> {
        let train = self.num_train_timesteps;
        match self.timestep_spacing {
            TimestepSpacing::Linspace => {
                let last = (train - 1) as f64;
                let distance = if steps > 1 { last / (steps - 1) as f64 } else { 0.0 };
                (0..steps).rev().map(|k| (k as f64 * distance).round_ties_even() as i64).collect()
            }
            TimestepSpacing::Leading => {
                let distance = train / steps as i64;
                (0..steps as i64).rev().map(|k| k * distance + self.steps_offset).collect()
            }
            TimestepSpacing::Trailing => {
                let train = train as f64;
                // `numpy.arange` takes the difference of its first two numbers for all.
                let distance = (train - train / steps as f64) - train;
                (0..steps).map(|k| (train + k as f64 * distance).round_ties_even() as i64 - 1).collect()
            }
        }
    }
}
