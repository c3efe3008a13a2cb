//! The schedules of betas, in float32 and to the last bit as torch computes them on x86-64 with AVX2 or AVX-512.
//!
//! In Rust and not by libtorch, whose last bits depend on the processor and on environment variables: its `linspace`
//! and `sigmoid` have other ones without AVX2, and MKL's square roots, which need not be the nearest number, one for
//! each kind of processor. Rescaling to zero SNR makes 3.8e-6 of such a bit. Here roots are the nearest number, as on
//! Intel processors with AVX2.

use std::f64::consts::FRAC_PI_2;

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
pub(super) fn sigmoid(x: f32) -> f32 {
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
pub(super) fn laplace(t: f64) -> f64 {
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
pub(super) fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (Some(first), Some(last)) = (roots.first(), roots.last()) else { return Vec::new() };
    // Shifted so that the last is zero, and scaled so that the first stays.
    let scale = first / (first - last);
    let products: Vec<f32> = roots.iter().map(|root| ((root - last) * scale).powi(2)).collect();
    let before = std::iter::once(1.0).chain(products.iter().copied());
    products.iter().zip(before).map(|(product, before)| 1.0 - product / before).collect()
}
