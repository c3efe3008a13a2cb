//! The schedules of betas, in float32 and to the last bit as torch computes them on x86-64 with AVX2 or AVX-512.
//!
//! In Rust and not by libtorch, whose last bits depend on the processor and on environment variables: its `linspace`
//! and `sigmoid` have other ones without AVX2, and MKL's square roots, which need not be the nearest number, one for
//! each kind of processor. Rescaling to zero SNR makes 3.8e-6 of such a bit. Here roots are the nearest number, as on
//! Intel processors with AVX2.

use crate::config::check_float;
use crate::{Error, Result};
use serde::Deserialize;
use std::f64::consts::FRAC_PI_2;

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
    /// So that it falls exponentially (Shap-E, arXiv 2305.02463).
    Exp,
    /// So that it follows Laplace's distribution (arXiv 2407.03297).
    Laplace,
    /// Along a sigmoid.
    Sigmoid,
}

impl BetaSchedule {
    /// The schedules that every scheduler of diffusers has.
    pub(super) const COMMON: [Self; 3] = [Self::Linear, Self::ScaledLinear, Self::SquaredcosCapV2];

    /// Its name in a configuration.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::ScaledLinear => "scaled_linear",
            Self::SquaredcosCapV2 => "squaredcos_cap_v2",
            Self::Exp => "exp",
            Self::Laplace => "laplace",
            Self::Sigmoid => "sigmoid",
        }
    }
}

/// A scheduler's keys on its betas.
#[derive(Debug, Clone, Copy)]
pub(super) struct Betas<'a> {
    pub(super) num_train_timesteps: i64,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: BetaSchedule,
    pub(super) trained_betas: Option<&'a [f64]>,
    pub(super) rescale_betas_zero_snr: bool,
}

/// The [`Betas`] of a configuration that has all of these keys. serde could flatten them into it, but then neither unknown
/// keys nor the path of a wrong one would be known.
macro_rules! betas {
    ($config:expr) => {
        $crate::diffusion::betas::Betas {
            num_train_timesteps: $config.num_train_timesteps,
            beta_start: $config.beta_start,
            beta_end: $config.beta_end,
            beta_schedule: $config.beta_schedule,
            trained_betas: $config.trained_betas.as_deref(),
            rescale_betas_zero_snr: $config.rescale_betas_zero_snr,
        }
    };
}
pub(super) use betas;

impl Betas<'_> {
    /// Checks the keys; `known` are the schedules that the scheduler has.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub(super) fn validate(self, known: &[BetaSchedule]) -> Result<()> {
        let steps = self.num_train_timesteps;
        if let Some(betas) = self.trained_betas {
            if betas.len() as i64 != steps {
                let reason = format!("has {} numbers, and num_train_timesteps is {steps}", betas.len());
                return Err(Error::key("trained_betas", reason));
            }
            return betas.iter().try_for_each(|&beta| check_beta("trained_betas", beta));
        }
        if !known.contains(&self.beta_schedule) {
            let known: Vec<String> = known.iter().map(|schedule| format!("{:?}", schedule.name())).collect();
            let reason =
                format!("is {:?}, which this scheduler lacks; it has {}", self.beta_schedule.name(), known.join(", "));
            return Err(Error::key("beta_schedule", reason));
        }
        if matches!(self.beta_schedule, BetaSchedule::Linear | BetaSchedule::ScaledLinear | BetaSchedule::Sigmoid) {
            check_beta("beta_start", self.beta_start)?;
            check_beta("beta_end", self.beta_end)?;
        }
        Ok(())
    }

    /// `ᾱ_t`, the share of `x_0` in the variance at each training timestep.
    pub(super) fn alphas_cumprod(self) -> Vec<f32> {
        let betas = self.betas();
        alphas_cumprod(&if self.rescale_betas_zero_snr { rescale_zero_terminal_snr(&betas) } else { betas })
    }

    /// As [`Betas::alphas_cumprod`], but where it is rescaled to zero the last is nearly so: what divides by it stays
    /// finite.
    pub(super) fn positive_alphas_cumprod(self) -> Vec<f32> {
        let mut products = self.alphas_cumprod();
        if let Some(last) = products.last_mut().filter(|_| self.rescale_betas_zero_snr) {
            *last = 2.0_f32.powi(-24);
        }
        products
    }

    /// One beta a training timestep, before they are rescaled.
    fn betas(self) -> Vec<f32> {
        let Self { num_train_timesteps: steps, beta_start: start, beta_end: end, .. } = self;
        if let Some(betas) = self.trained_betas {
            return betas.iter().map(|&beta| beta as f32).collect();
        }
        match self.beta_schedule {
            BetaSchedule::Linear => linspace(start as f32, end as f32, steps),
            BetaSchedule::ScaledLinear => {
                linspace(start.sqrt() as f32, end.sqrt() as f32, steps).into_iter().map(|root| root * root).collect()
            }
            BetaSchedule::SquaredcosCapV2 => betas_for_alpha_bar(steps, cosine),
            BetaSchedule::Exp => betas_for_alpha_bar(steps, |t| (t * -12.0).exp()),
            BetaSchedule::Laplace => betas_for_alpha_bar(steps, laplace),
            BetaSchedule::Sigmoid => {
                let (scale, offset) = ((end - start) as f32, start as f32);
                linspace(-6.0, 6.0, steps).into_iter().map(|x| sigmoid(x) * scale + offset).collect()
            }
        }
    }
}

/// A step to a timestep without noise would divide by zero.
fn check_beta(key: &str, beta: f64) -> Result<()> {
    check_float(key, beta, f32::MIN_POSITIVE..=1.0)
}

/// `steps` numbers from `start` to `end` at even distances, both halves counted from their own end: `torch.linspace`.
pub(super) fn linspace(start: f32, end: f32, steps: i64) -> Vec<f32> {
    let distance = (end - start) / (steps - 1) as f32;
    let from_start = |i: i64| distance.mul_add(i as f32, start);
    let from_end = |i: i64| (-distance).mul_add((steps - 1 - i) as f32, end);
    match steps {
        1 => vec![start],
        _ => (0..steps).map(|i| if i < steps / 2 { from_start(i) } else { from_end(i) }).collect(),
    }
}

/// `torch.sigmoid`, for numbers that are not large.
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// SLEEF's `expf` with an error of up to 1.0 ULP, which libtorch's vectors use, for results that are normal numbers.
fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_145_75;
    const LN_2_LOW: f32 = 1.428_606_8e-6;
    const COEFFICIENTS: [f32; 6] = [0.000_198_527_62, 0.001_393_043_6, 0.008_333_361, 0.041_666_485, 0.166_666_67, 0.5];
    let power = (x * std::f32::consts::LOG2_E).round_ties_even();
    let rest = power.mul_add(-LN_2_LOW, power.mul_add(-LN_2_HIGH, x));
    let sum = COEFFICIENTS.into_iter().reduce(|sum, coefficient| sum.mul_add(rest, coefficient)).unwrap_or_default();
    (1.0 + (rest * rest).mul_add(sum, rest)) * 2.0_f32.powi(power as i32)
}

/// Betas whose cumulative product follows `alpha_bar`, a function of time from 0 to 1, capped at 0.999.
pub(super) fn betas_for_alpha_bar(steps: i64, alpha_bar: impl Fn(f64) -> f64) -> Vec<f32> {
    const MAX_BETA: f64 = 0.999;
    let beta = |i: i64| 1.0 - alpha_bar((i + 1) as f64 / steps as f64) / alpha_bar(i as f64 / steps as f64);
    (0..steps).map(|i| beta(i).min(MAX_BETA) as f32).collect()
}

/// `cos²`, the schedule of improved DDPM (arXiv 2102.09672).
pub(super) fn cosine(t: f64) -> f64 {
    ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2)
}

/// Laplace's distribution (arXiv 2407.03297).
fn laplace(t: f64) -> f64 {
    let log_snr = -0.5 * 1.0_f64.copysign(0.5 - t) * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
    let snr = log_snr.exp();
    (snr / (1.0 + snr)).sqrt()
}

/// The products of the alphas up to each timestep; `torch.cumprod` multiplies in float64.
pub(super) fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let product = |product: &mut f64, beta: &f32| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    };
    betas.iter().scan(1.0, product).collect()
}

/// Betas such that nothing of `x_0` is left at the last timestep: algorithm 1 of arXiv 2305.08891.
fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (Some(first), Some(last)) = (roots.first(), roots.last()) else { return Vec::new() };
    // Shifted so that the last is zero, and scaled so that the first stays.
    let scale = first / (first - last);
    let products: Vec<f32> = roots.iter().map(|root| ((root - last) * scale).powi(2)).collect();
    let before = std::iter::once(1.0).chain(products.iter().copied());
    products.iter().zip(before).map(|(product, before)| 1.0 - product / before).collect()
}
