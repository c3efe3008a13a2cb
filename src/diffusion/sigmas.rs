//! Schedules in σ, the standard deviation of the noise where `x_0` is unscaled: `√((1 - ᾱ) / ᾱ)` (Karras et al., arXiv
//! 2206.00364).
//!
//! Source: diffusers 0.42, the parts that `schedulers/scheduling_euler_discrete.py`,
//! `scheduling_euler_ancestral_discrete.py`, `scheduling_heun_discrete.py` and `scheduling_dpmsolver_multistep.py` have
//! in common.

use super::levels::not_a_number;
use super::numpy::{interp, linspace, log};
use super::prediction::PredictionType;
use super::scheduler::no_step;
use super::spacing::TimestepSpacing;
use crate::{Error, Result};
use serde::Deserialize;
use tch::Tensor;

/// The most steps that these schedulers do. diffusers has no limit; the noise of a batch has to fit into memory.
const MAX_STEPS: usize = 10_000;

/// Where a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// Without noise.
    Zero,
    /// With as much noise as the first training timestep has.
    SigmaMin,
}

/// Sigmas of a spacing of their own, in place of those of the timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Respacing {
    /// Even in the seventh root, equation (5) of Karras et al.
    Karras,
    /// Even in the logarithm.
    Exponential,
    /// The same, of the training's logarithms as they are (Lu et al., arXiv 2206.00927).
    Lu,
}

impl Respacing {
    /// Whether the timesteps of DPM-Solver are rounded to the nearest, or else towards 0.
    pub(super) fn rounds_timesteps(self) -> bool {
        self != Self::Exponential
    }
}

/// The keys that choose a [`Respacing`].
#[derive(Debug, Clone, Copy)]
pub(super) struct RespacingKeys {
    pub(super) use_karras_sigmas: bool,
    /// Of DPM-Solver alone.
    pub(super) use_lu_lambdas: bool,
    pub(super) use_exponential_sigmas: bool,
    pub(super) use_beta_sigmas: bool,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
}

impl RespacingKeys {
    /// # Errors
    /// [`Error::Config`] that names a key with a wrong value.
    pub(super) fn validate(self) -> Result<()> {
        if self.use_beta_sigmas {
            return Err(Error::key("use_beta_sigmas", "is true, which is not supported; it must be false"));
        }
        if self.use_karras_sigmas && self.use_exponential_sigmas {
            return Err(Error::key("use_karras_sigmas", "and use_exponential_sigmas are both true; one may be"));
        }
        for (key, sigma) in [("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)] {
            if let Some(sigma) = sigma.filter(|sigma| !(f64::from(f32::MIN_POSITIVE)..1e30).contains(sigma)) {
                return Err(Error::key(key, format!("is {sigma:?}, it must be above 0 and below 1e30")));
            }
        }
        Ok(())
    }

    pub(super) fn respacing(self) -> Option<Respacing> {
        let choices = [
            (self.use_karras_sigmas, Respacing::Karras),
            (self.use_lu_lambdas, Respacing::Lu),
            (self.use_exponential_sigmas, Respacing::Exponential),
        ];
        choices.into_iter().find(|(is_on, _)| *is_on).map(|(_, respacing)| respacing)
    }

    /// So many sigmas, the largest first; `largest` and `smallest` are those that no key gives.
    pub(super) fn sigmas(
        self,
        respacing: Respacing,
        (largest, smallest): (f64, f64),
        table: &SigmaTable,
        steps: usize,
    ) -> Vec<f64> {
        const RHO: f64 = 7.0;
        let (max, min) = (self.sigma_max.unwrap_or(largest), self.sigma_min.unwrap_or(smallest));
        match respacing {
            Respacing::Karras => {
                let (max, min) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
                linspace(0.0, 1.0, steps).into_iter().map(|ramp| (max + ramp * (min - max)).powf(RHO)).collect()
            }
            Respacing::Lu => {
                let (max, min) = table.log_range();
                let (max, min) = (f64::from(max), f64::from(min));
                linspace(0.0, 1.0, steps).into_iter().map(|ramp| (max + ramp * (min - max)).exp()).collect()
            }
            Respacing::Exponential => linspace(max.ln(), min.ln(), steps).into_iter().map(f64::exp).collect(),
        }
    }
}

/// σ at each training timestep.
#[derive(Debug)]
pub(super) struct SigmaTable {
    sigmas: Vec<f32>,
    logs: Vec<f32>,
}

impl SigmaTable {
    pub(super) fn new(alphas_cumprod: &[f32]) -> Self {
        let sigmas: Vec<f32> = alphas_cumprod.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect();
        Self { logs: sigmas.iter().map(|&sigma| log(sigma)).collect(), sigmas }
    }

    /// The smallest.
    pub(super) fn first(&self) -> f32 {
        self.sigmas.first().copied().unwrap_or(f32::NAN)
    }

    /// The largest.
    pub(super) fn last(&self) -> f32 {
        self.sigmas.last().copied().unwrap_or(f32::NAN)
    }

    /// σ at a timestep, which may be between two of the training.
    pub(super) fn at(&self, timestep: f64) -> f64 {
        interp(timestep, &self.sigmas)
    }

    /// The logarithms of the largest and the smallest.
    pub(super) fn log_range(&self) -> (f32, f32) {
        (self.logs.last().copied().unwrap_or(f32::NAN), self.logs.first().copied().unwrap_or(f32::NAN))
    }

    /// The timestep at which the noise is σ.
    pub(super) fn timestep_of(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.max(1e-10).ln();
        let below = self.logs.partition_point(|&log| f64::from(log) <= log_sigma);
        let low = below.saturating_sub(1).min(self.logs.len().saturating_sub(2));
        let (Some(&low_log), Some(&high_log)) = (self.logs.get(low), self.logs.get(low + 1)) else { return f64::NAN };
        let weight = (f64::from(low_log) - log_sigma) / f64::from(low_log - high_log);
        let weight = weight.clamp(0.0, 1.0);
        (1.0 - weight) * low as f64 + weight * (low + 1) as f64
    }
}

/// Checks a number of steps, before anything is allocated for them.
///
/// # Errors
/// [`Error::Option`] if there are none, or too many.
pub(super) fn check_steps(steps: usize) -> Result<()> {
    if (1..=MAX_STEPS).contains(&steps) {
        return Ok(());
    }
    let reason = format!("{steps} steps are not possible, it must be 1 to {MAX_STEPS}");
    Err(Error::Option { option: "steps", reason })
}

/// Checks that every σ but the last, which a run ends at, can be divided by, and that the first timestep is no other
/// one: diffusers looks a run's place up by it, and runs off the end.
///
/// # Errors
/// [`Error::Option`] if not.
pub(super) fn check_schedule(steps: usize, timesteps: &[f64], sigmas: &[f32]) -> Result<()> {
    if timesteps.is_empty() {
        let reason =
            format!("{steps} steps are not possible: the scheduler's configuration leaves no timesteps for them");
        return Err(Error::Option { option: "steps", reason });
    }
    for (timestep, sigma) in timesteps.iter().zip(sigmas) {
        if !timestep.is_finite() || !sigma.is_finite() || *sigma <= 0.0 {
            return Err(not_a_number(steps, *timestep));
        }
    }
    let first = timesteps.first();
    if timesteps.iter().skip(1).any(|timestep| Some(timestep) == first) {
        let reason = format!(
            "{steps} steps are not possible: the scheduler's first timestep would repeat, at which diffusers fails; \
             take fewer"
        );
        return Err(Error::Option { option: "steps", reason });
    }
    Ok(())
}

/// The standard deviation of the noise that Euler's and Heun's methods start from.
pub(super) fn init_noise_sigma(spacing: TimestepSpacing, sigmas: &[f32]) -> f64 {
    let max = sigmas.iter().copied().fold(0.0, f32::max);
    f64::from(match spacing {
        TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
        TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
    })
}

/// σ at a step.
///
/// # Errors
/// [`Error::Internal`] if there is no such step.
pub(super) fn sigma_at(sigmas: &[f32], step: usize) -> Result<f32> {
    sigmas.get(step).copied().ok_or_else(|| no_step(step))
}

/// A sample of the variance that the model was trained with: `sample / √(σ² + 1)`.
///
/// # Errors
/// If memory runs out.
pub(super) fn scale_model_input(sample: &Tensor, sigma: f32) -> Result<Tensor> {
    Ok(sample.f_div_scalar(f64::from((sigma * sigma + 1.0).sqrt()))?)
}

/// The predicted `x_0` of a sample whose noise has the standard deviation σ.
///
/// # Errors
/// If the shapes differ or memory runs out.
pub(super) fn original_sample(
    prediction_type: PredictionType,
    model_output: &Tensor,
    sample: &Tensor,
    sigma: f32,
) -> Result<Tensor> {
    let variance = sigma * sigma + 1.0;
    match prediction_type {
        PredictionType::Epsilon => Ok(sample.f_sub(&model_output.f_mul_scalar(f64::from(sigma))?)?),
        PredictionType::Sample => Ok(model_output.shallow_clone()),
        PredictionType::VPrediction => {
            let velocity = model_output.f_mul_scalar(f64::from(-sigma / variance.sqrt()))?;
            Ok(velocity.f_add(&sample.f_div_scalar(f64::from(variance))?)?)
        }
    }
}

/// The slope of the path from a sample to its predicted `x_0`, by σ.
///
/// # Errors
/// If the shapes differ or memory runs out.
pub(super) fn derivative(original_sample: &Tensor, sample: &Tensor, sigma: f32) -> Result<Tensor> {
    Ok(sample.f_sub(original_sample)?.f_div_scalar(f64::from(sigma))?)
}
