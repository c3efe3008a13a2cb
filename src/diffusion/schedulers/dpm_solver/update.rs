//! The update of one step: a sum of the sample, what the model predicted at this step and those before, and noise.

use super::config::{DpmSolverConfig, SolverType};
use crate::Result;
use crate::diffusion::scheduler::no_step;
use tch::Tensor;

/// A noise level: `x = α · x_0 + σ · noise`, and λ, the logarithm of `α / σ`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    pub(super) alpha: f32,
    pub(super) sigma: f32,
    lambda: f32,
}

impl Level {
    /// The level at which the noise is `sigma` where `x_0` is unscaled.
    pub(super) fn new(sigma: f32) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        let sigma = sigma * alpha;
        Self { alpha, sigma, lambda: Self::log(alpha) - Self::log(sigma) }
    }

    /// `torch.log` of a float32 number.
    pub(super) fn log(x: f32) -> f32 {
        f64::from(x).ln() as f32
    }
}

/// `torch.exp` of a float32 number.
fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

/// The factors of a step.
#[derive(Debug)]
pub(super) struct Update {
    sample: f32,
    noise: f32,
    /// Of the derivatives of what the model predicts, by λ: the prediction itself, its slope, and its curvature.
    derivatives: [f32; Update::MAX_ORDER],
    order: usize,
    /// How far the steps before lie back, in units of this step.
    ratios: [f32; Update::MAX_ORDER - 1],
}

impl Update {
    /// The highest order.
    pub(super) const MAX_ORDER: usize = 3;

    /// The update of the step from the last but one of these levels to the last.
    pub(super) fn new(config: &DpmSolverConfig, levels: &[Level], order: usize) -> Self {
        // The level that the step leads to, those that it and the steps before it start from, and the distances between.
        let back = |count: usize| levels[levels.len().saturating_sub(count + 1)];
        let (to, from) = (back(0), back(1));
        let distance = |count: usize| back(count).lambda - back(count + 1).lambda;
        let h = distance(0);
        let ratio = |count: usize| if count < order { distance(count) / h } else { 1.0 };
        let is_midpoint = order == 2 && config.solver_type == SolverType::Midpoint;
        let predicts_original = config.algorithm_type.predicts_original();
        let (sample, scale, noise, grown, exponent) = match (predicts_original, config.algorithm_type.adds_noise()) {
            (true, false) => (to.sigma / from.sigma, -to.alpha, 0.0, exp(-h) - 1.0, -h),
            (false, false) => (to.alpha / from.alpha, -to.sigma, 0.0, exp(h) - 1.0, h),
            (true, true) => {
                let noise = to.sigma * (1.0 - exp(-2.0 * h)).sqrt();
                (to.sigma / from.sigma * exp(-h), -to.alpha, noise, exp(-2.0 * h) - 1.0, -2.0 * h)
            }
            (false, true) => {
                let noise = to.sigma * (exp(2.0 * h) - 1.0).sqrt();
                (to.alpha / from.alpha, -2.0 * to.sigma, noise, exp(h) - 1.0, h)
            }
        };
        // The integrals of the exponential times 1, λ and λ²/2 over the step.
        let slope = if is_midpoint { 0.5 * grown } else { grown / exponent - 1.0 };
        // Of the stochastic equation in x_0, diffusers' half has the other sign.
        let half = if predicts_original && config.algorithm_type.adds_noise() { -0.5 } else { 0.5 };
        let curvature = (grown - exponent) / (exponent * exponent) - half;
        let derivatives = [grown, if order > 1 { slope } else { 0.0 }, if order > 2 { curvature } else { 0.0 }];
        Self {
            sample,
            noise,
            derivatives: derivatives.map(|factor| scale * factor),
            order,
            ratios: [ratio(1), ratio(2)],
        }
    }

    /// Whether no factor is infinite or not a number.
    pub(super) fn is_finite(&self) -> bool {
        let inverse = self.ratios.map(|ratio| 1.0 / ratio);
        let factors = self.derivatives.iter().chain(&self.ratios).chain(&inverse);
        factors.chain([&self.sample, &self.noise]).all(|factor| factor.is_finite())
    }

    /// The next sample. `predictions` are those of this step and the steps before it, all `(rows, dim)`, as the noise.
    ///
    /// # Errors
    /// If a step before is missing, shapes differ, or memory runs out.
    pub(super) fn apply(&self, sample: &Tensor, predictions: &[Tensor], noise: Option<&Tensor>) -> Result<Tensor> {
        let scaled = |tensor: &Tensor, factor: f32| tensor.f_mul_scalar(f64::from(factor));
        let prediction = |back: usize| predictions.get(back).ok_or_else(|| no_step(back));
        let [ratio_0, ratio_1] = self.ratios;
        // The slope between a step and the one before it.
        let slope = |back: usize, ratio: f32| -> Result<Tensor> {
            Ok(scaled(&prediction(back)?.f_sub(prediction(back + 1)?)?, 1.0 / ratio)?)
        };
        let mut sum = scaled(sample, self.sample)?.f_add(&scaled(prediction(0)?, self.derivatives[0])?)?;
        if self.order == 2 {
            sum = sum.f_add(&scaled(&slope(0, ratio_0)?, self.derivatives[1])?)?;
        }
        if self.order == 3 {
            let (latest, before) = (slope(0, ratio_0)?, slope(1, ratio_1)?);
            let bend = latest.f_sub(&before)?;
            let first = latest.f_add(&scaled(&bend, ratio_0 / (ratio_0 + ratio_1))?)?;
            let second = scaled(&bend, 1.0 / (ratio_0 + ratio_1))?;
            sum = sum.f_add(&scaled(&first, self.derivatives[1])?)?;
            sum = sum.f_add(&scaled(&second, self.derivatives[2])?)?;
        }
        Ok(match noise {
            Some(noise) => sum.f_add(&scaled(noise, self.noise)?)?,
            None => sum,
        })
    }
}
