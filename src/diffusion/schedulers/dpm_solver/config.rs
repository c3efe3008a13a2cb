//! The configuration of DPM-Solver.

use crate::config::{Config, check_sizes};
use crate::diffusion::betas::{BetaSchedule, Betas, betas};
use crate::diffusion::levels::check_no_thresholding;
use crate::diffusion::prediction::PredictionType;
use crate::diffusion::scheduler::{KEYS, keys_that_count};
use crate::diffusion::sigmas::{FinalSigmas, RespacingKeys};
use crate::diffusion::spacing::{TimestepSpacing, spacing};
use crate::json::Json;
use crate::{Error, Result};
use serde::Deserialize;

/// `scheduler_config.json` of a `DPMSolverMultistepScheduler`; names and defaults as in diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct DpmSolverConfig {
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
    /// The order, 1 to 3.
    pub solver_order: i64,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Dynamic thresholding, which is refused.
    pub thresholding: bool,
    /// Of the thresholding.
    pub dynamic_thresholding_ratio: f64,
    /// Of the thresholding.
    pub sample_max_value: f64,
    /// Which equation is solved.
    pub algorithm_type: AlgorithmType,
    /// How a step of second order weighs the step before.
    pub solver_type: SolverType,
    /// Whether the last two of fewer than 15 steps are of lower order.
    pub lower_order_final: bool,
    /// Whether the last step is of first order.
    pub euler_at_final: bool,
    /// Sigmas even in their seventh root.
    pub use_karras_sigmas: Option<bool>,
    /// Sigmas even in their logarithm.
    pub use_exponential_sigmas: Option<bool>,
    /// Sigmas along a beta distribution, which is refused.
    pub use_beta_sigmas: Option<bool>,
    /// Sigmas even in their logarithm, and whole timesteps (Lu's spacing, arXiv 2206.00927).
    pub use_lu_lambdas: Option<bool>,
    /// The sigmas of flow matching, which are refused.
    pub use_flow_sigmas: Option<bool>,
    /// Of the flow.
    pub flow_shift: Option<f64>,
    /// The smallest sigma: the key of another class, which diffusers heeds.
    pub sigma_min: Option<f64>,
    /// The largest sigma, likewise.
    pub sigma_max: Option<f64>,
    /// Where a run ends.
    pub final_sigmas_type: FinalSigmas,
    /// The least logarithm of the signal-to-noise ratio, for timesteps that are not respaced.
    pub lambda_min_clipped: f64,
    /// The variance that the model predicts beside the noise, which is refused.
    pub variance_type: Option<String>,
    /// Which of the training timesteps are run.
    pub timestep_spacing: TimestepSpacing,
    /// What is added to the timesteps of [`TimestepSpacing::Leading`].
    pub steps_offset: i64,
    /// Whether the betas are rescaled so that hardly anything of `x_0` is left at the last timestep (arXiv 2305.08891).
    pub rescale_betas_zero_snr: bool,
    /// Of the flow.
    pub use_dynamic_shifting: bool,
    /// Of the flow.
    pub time_shift_type: String,
}

impl Default for DpmSolverConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            solver_order: 2,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            algorithm_type: AlgorithmType::DpmSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            use_karras_sigmas: Some(false),
            use_exponential_sigmas: Some(false),
            use_beta_sigmas: Some(false),
            use_lu_lambdas: Some(false),
            use_flow_sigmas: Some(false),
            flow_shift: Some(1.0),
            sigma_min: None,
            sigma_max: None,
            final_sigmas_type: FinalSigmas::Zero,
            lambda_min_clipped: f64::NEG_INFINITY,
            variance_type: None,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            use_dynamic_shifting: false,
            time_shift_type: "exponential".into(),
        }
    }
}

/// Which equation is solved, and in what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AlgorithmType {
    /// The ordinary differential equation in the predicted noise.
    #[serde(rename = "dpmsolver")]
    DpmSolver,
    /// The ordinary differential equation in the predicted `x_0`.
    #[serde(rename = "dpmsolver++")]
    DpmSolverPlusPlus,
    /// The stochastic differential equation in the predicted noise.
    #[serde(rename = "sde-dpmsolver")]
    SdeDpmSolver,
    /// The stochastic differential equation in the predicted `x_0`.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmSolverPlusPlus,
    /// Another class's, for which diffusers takes DPM-Solver++.
    #[serde(rename = "deis")]
    Deis,
}

impl AlgorithmType {
    /// The same in noise.
    pub(super) fn with_noise(self) -> Self {
        match self {
            Self::DpmSolver | Self::SdeDpmSolver => Self::SdeDpmSolver,
            Self::DpmSolverPlusPlus | Self::SdeDpmSolverPlusPlus | Self::Deis => Self::SdeDpmSolverPlusPlus,
        }
    }

    /// Whether it goes by the predicted `x_0`, or else by the predicted noise.
    pub(super) fn predicts_original(self) -> bool {
        matches!(self, Self::DpmSolverPlusPlus | Self::SdeDpmSolverPlusPlus | Self::Deis)
    }

    /// Whether its steps add noise.
    pub(super) fn adds_noise(self) -> bool {
        matches!(self, Self::SdeDpmSolver | Self::SdeDpmSolverPlusPlus)
    }
}

/// How a step of second order weighs the step before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// The midpoint method, which stands for other classes' types too, as in diffusers.
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    /// Heun's method.
    Heun,
}

impl Config for DpmSolverConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = true;
    const IGNORED_KEYS: &'static [&'static str] = KEYS;

    fn part(whole: Json) -> Json {
        keys_that_count(whole)
    }

    fn validate(&self) -> Result<()> {
        check_sizes(&[("num_train_timesteps", self.num_train_timesteps)])?;
        let refuse = |key: &str, predicate: &str| Err(Error::key(key, predicate));
        if !(1..=3).contains(&self.solver_order) {
            return Err(Error::key("solver_order", format!("is {}, it must be 1, 2 or 3", self.solver_order)));
        }
        check_no_thresholding(self.thresholding)?;
        if self.algorithm_type == AlgorithmType::SdeDpmSolver && self.solver_order == 3 {
            return refuse("solver_order", "is 3, which sde-dpmsolver lacks, as in diffusers; it must be 1 or 2");
        }
        let is_plus_plus =
            matches!(self.algorithm_type, AlgorithmType::DpmSolverPlusPlus | AlgorithmType::SdeDpmSolverPlusPlus);
        if !is_plus_plus && self.final_sigmas_type == FinalSigmas::Zero {
            return refuse("final_sigmas_type", "is \"zero\", it must be \"sigma_min\" for this algorithm_type");
        }
        if self.use_flow_sigmas == Some(true) {
            return refuse("use_flow_sigmas", "is true, it must be false: flow matching is not supported");
        }
        if let Some(variance @ ("learned" | "learned_range")) = self.variance_type.as_deref() {
            return Err(Error::key(
                "variance_type",
                format!("is {variance:?}, which needs a prior that predicts a variance"),
            ));
        }
        if self.lambda_min_clipped.is_nan() {
            return refuse("lambda_min_clipped", "is NaN, it must be a number");
        }
        self.betas().validate(&BetaSchedule::COMMON)?;
        self.respacing().validate()?;
        spacing!(self).validate()
    }
}

impl DpmSolverConfig {
    /// The keys on betas.
    pub(super) fn betas(&self) -> Betas<'_> {
        betas!(self)
    }

    /// The keys on the spacing of sigmas.
    pub(super) fn respacing(&self) -> RespacingKeys {
        RespacingKeys {
            use_karras_sigmas: self.use_karras_sigmas == Some(true),
            use_lu_lambdas: self.use_lu_lambdas == Some(true),
            use_exponential_sigmas: self.use_exponential_sigmas == Some(true),
            use_beta_sigmas: self.use_beta_sigmas == Some(true),
            sigma_min: self.sigma_min,
            sigma_max: self.sigma_max,
        }
    }
}
