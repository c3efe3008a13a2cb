//! The configuration of DDPM.

use crate::Result;
use crate::config::{Config, check_sizes};
use crate::diffusion::betas::{BetaSchedule, Betas, betas};
use crate::diffusion::levels::{check_clip_sample_range, check_no_thresholding};
use crate::diffusion::prediction::PredictionType;
use crate::diffusion::scheduler::{KEYS, keys_that_count};
use crate::diffusion::spacing::{Spacing, TimestepSpacing, spacing};
use crate::json::Json;
use serde::Deserialize;

/// The schedules that diffusers' `DDPMScheduler` has.
const BETA_SCHEDULES: [BetaSchedule; 5] = [
    BetaSchedule::Linear,
    BetaSchedule::ScaledLinear,
    BetaSchedule::SquaredcosCapV2,
    BetaSchedule::Laplace,
    BetaSchedule::Sigmoid,
];

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

impl Config for DdpmConfig {
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
        self.betas().validate(&BETA_SCHEDULES)?;
        self.spacing().validate()
    }
}

impl DdpmConfig {
    /// The keys on betas.
    pub(super) fn betas(&self) -> Betas<'_> {
        betas!(self)
    }

    /// The keys on timesteps.
    pub(super) fn spacing(&self) -> Spacing {
        spacing!(self)
    }
}
