//! Functions of NumPy that the schedules are made with, to the last bit where that decides what is computed.

use std::f32::consts::LN_2;

/// `count` numbers from `start` to `end` at even distances: `numpy.linspace`.
pub(super) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let distance = (end - start) / count.saturating_sub(1) as f64;
    let at = |index: usize| match index {
        0 => start,
        index if index + 1 == count => end,
        index => index as f64 * distance + start,
    };
    (0..count).map(at).collect()
}

/// Numbers from `start` downwards at this distance, as long as they are above 0: `numpy.arange(start, 0, -distance)`,
/// whose last one a rounding error may let slip through.
pub(super) fn arange_down(start: f64, distance: f64) -> Vec<f64> {
    let count = (start / distance).ceil().max(0.0) as usize;
    // The difference of the first two counts for all.
    let distance = (start - distance) - start;
    (0..count).map(|index| start + index as f64 * distance).collect()
}

/// The value at `x` of the line through `values`, which lie at 0, 1, 2 and so on: `numpy.interp`.
pub(super) fn interp(x: f64, values: &[f32]) -> f64 {
    let value = |index: usize| values.get(index).copied().map_or(f64::NAN, f64::from);
    let last = values.len().saturating_sub(1);
    if x <= 0.0 || x.is_nan() {
        return value(0);
    }
    if x >= last as f64 {
        return value(last);
    }
    let (index, rest) = (x as usize, x.fract());
    match rest {
        0.0 => value(index),
        _ => (value(index + 1) - value(index)) * rest + value(index),
    }
}

/// `numpy.log` of a float32 array on x86-64 with AVX2 or AVX-512: a quotient of polynomials, whose last bits decide
/// whether a timestep is rounded up or down.
pub(super) fn log(x: f32) -> f32 {
    const P: [f32; 6] = [2.589_979_2e-2, 3.808_837_8e-1, 1.480_000_6, 2.112_677_6, 1.0, 0.0];
    const Q: [f32; 6] = [5.875_095_4e-3, 1.546_476_4e-1, 9.864_943e-1, 2.453_006, 2.612_677_6, 1.0];
    if !x.is_normal() || x < 0.0 {
        return x.ln();
    }
    // x is m · 2^exponent with m between √½ and √2.
    let mut exponent = (x.to_bits() >> 23) as i32 - 126;
    let mut m = f32::from_bits(x.to_bits() & 0x007f_ffff | 0x3f00_0000);
    if m < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1;
        m += m;
    }
    let polynomial = |coefficients: [f32; 6]| {
        coefficients.into_iter().reduce(|sum, coefficient| sum.mul_add(m - 1.0, coefficient)).unwrap_or_default()
    };
    (exponent as f32).mul_add(LN_2, polynomial(P) / polynomial(Q))
}
