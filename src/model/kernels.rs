//! The fast CPU kernels, in C++ on libtorch: packed linear layers and attention over cached keys and values.
//!
//! This is the only place where Rust and that C++ meet. Every function checks its arguments on the C++ side and turns
//! exceptions into errors.

// The border to C++: each call passes pointers of tensors that outlive it and takes ownership of a new tensor.
#![allow(unsafe_code)]

pub mod process;
pub mod processor;
mod rounding;
mod text;

use anyhow::{Result, anyhow};
use rounding::on_rounded_rows;
use std::ffi::c_char;
use std::ptr::{null, null_mut};
use tch::{Device, Kind, Tensor};
use text::text_of;
use torch_sys::C_tensor;

/// A message, or null for success.
type Failure = *mut c_char;

unsafe extern "C" {
    fn prior_embed_has_packed_linear() -> bool;
    fn prior_embed_pack_linear(out: *mut *mut C_tensor, weight: *const C_tensor) -> Failure;
    fn prior_embed_packed_linear(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        gelu: bool,
    ) -> Failure;
    fn prior_embed_packed_linear_add(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        other: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
    ) -> Failure;
    fn prior_embed_has_bfloat16() -> bool;
    fn prior_embed_pack_bfloat16(out: *mut *mut C_tensor, weight: *const C_tensor) -> Failure;
    fn prior_embed_bfloat16_linear(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        outputs: i64,
        bias: *const C_tensor,
        other: *const C_tensor,
        gelu: bool,
    ) -> Failure;
    fn prior_embed_pack_int8(
        out: *mut *mut C_tensor,
        scales: *mut *mut C_tensor,
        scaled_sums: *mut *mut C_tensor,
        weight: *const C_tensor,
    ) -> Failure;
    fn prior_embed_int8_linear(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        scales: *const C_tensor,
        scaled_sums: *const C_tensor,
        bias: *const C_tensor,
        other: *const C_tensor,
        gelu: bool,
        levels: i64,
    ) -> Failure;
    fn prior_embed_normals(out: *mut *mut C_tensor, uniforms: *const C_tensor, count: i64) -> Failure;
    fn prior_embed_attend(
        out: *mut *mut C_tensor,
        query: *const C_tensor,
        heads: i64,
        count: i64,
        rows: *const *const C_tensor,
        starts: *const *const C_tensor,
        ends: *const *const C_tensor,
    ) -> Failure;
}

/// What follows the product of a linear layer in the same kernel.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// Exact GELU.
    Gelu,
    /// A residual of the output's shape is added.
    Add(&'a Tensor),
}

impl Epilogue<'_> {
    /// Whether there is a GELU, and what is added or null.
    fn pointers(self) -> (bool, *const C_tensor) {
        match self {
            Self::None => (false, null()),
            Self::Gelu => (true, null()),
            Self::Add(other) => (false, other.as_ptr()),
        }
    }
}

/// Rows of keys and values, `(rows, 2 · heads · head_dim)`, and for each token the range of rows that it sees.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Keys, then values, of one row each.
    pub rows: &'a Tensor,
    /// First row that each token sees, int64, `(tokens)`.
    pub starts: &'a Tensor,
    /// One past the last.
    pub ends: &'a Tensor,
}

/// Whether this libtorch has oneDNN's packed linear layers; builds for ARM have none.
pub fn has_packed_linear() -> bool {
    // SAFETY: takes and gives no pointers.
    unsafe { prior_embed_has_packed_linear() }
}

/// Packs a weight `(outputs, inputs)`, float32 or bfloat16 on the CPU, for [`packed_linear`] alone.
///
/// # Errors
/// If the type is not supported or memory runs out.
pub fn pack_linear(weight: &Tensor) -> Result<Tensor> {
    // SAFETY: the pointer is a live tensor's.
    take(|out| unsafe { prior_embed_pack_linear(out, weight.as_ptr()) })
}

/// `x Wᵀ + b` and the epilogue, `(…, inputs)` to `(…, outputs)`, on a packed weight.
///
/// # Errors
/// If shapes or types do not fit.
pub fn packed_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, epilogue: Epilogue) -> Result<Tensor> {
    let (weight, bias) = (weight.as_ptr(), bias.map_or(null(), Tensor::as_ptr));
    on_rounded_rows(x, epilogue, |x, epilogue| {
        let x = x.as_ptr();
        // SAFETY: the pointers are live tensors', or null where the C++ side takes null for none.
        take(|out| unsafe {
            match epilogue {
                Epilogue::None => prior_embed_packed_linear(out, x, weight, bias, false),
                Epilogue::Gelu => prior_embed_packed_linear(out, x, weight, bias, true),
                Epilogue::Add(other) => prior_embed_packed_linear_add(out, x, other.as_ptr(), weight, bias),
            }
        })
    })
}

/// Whether the processor has what [`Bfloat16Weight`] needs: AVX-512 with bfloat16.
pub fn has_bfloat16() -> bool {
    // SAFETY: takes and gives no pointers.
    unsafe { prior_embed_has_bfloat16() }
}

/// A weight in bfloat16, in the order in which it is read. A row of a product does not depend on the rows beside it, to the
/// last bit.
#[derive(Debug)]
pub struct Bfloat16Weight {
    packed: Tensor,
    outputs: i64,
}

impl Bfloat16Weight {
    /// Packs a weight `(outputs, inputs)` of any float type on the CPU; `inputs` is even.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn pack(weight: &Tensor) -> Result<Self> {
        // SAFETY: the pointer is a live tensor's.
        let packed = take(|out| unsafe { prior_embed_pack_bfloat16(out, weight.as_ptr()) })?;
        Ok(Self { packed, outputs: weight.size2()?.0 })
    }

    /// `x Wᵀ + b` and the epilogue, `(…, inputs)` of any float type to `(…, outputs)`, float32 like `bias`.
    ///
    /// # Errors
    /// If shapes or types do not fit, or [`has_bfloat16`] does not hold.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>, epilogue: Epilogue) -> Result<Tensor> {
        let (gelu, other) = epilogue.pointers();
        let bias = bias.map_or(null(), Tensor::as_ptr);
        // SAFETY: the pointers are live tensors', or null where the C++ side takes null for none.
        take(|out| unsafe {
            prior_embed_bfloat16_linear(out, x.as_ptr(), self.packed.as_ptr(), self.outputs, bias, other, gelu)
        })
    }
}

/// A weight in int8.
#[derive(Debug)]
pub struct Int8Weight {
    packed: Tensor,
    /// A scale a channel, `(outputs)`.
    scales: Tensor,
    /// Each channel's quantized weights summed, times its scale: what a zero point of the input is multiplied with.
    scaled_sums: Tensor,
    /// The input is quantized to 0..=levels.
    levels: i64,
}

impl Int8Weight {
    /// Quantizes a weight `(outputs, inputs)` of any float type on the CPU, a scale a channel, and packs it. Inputs will be
    /// quantized to `0..=levels`, 255 at most.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn pack(weight: &Tensor, levels: u8) -> Result<Self> {
        let (mut scales, mut scaled_sums) = (null_mut(), null_mut());
        // SAFETY: the pointer is a live tensor's, and the two others are filled in like the first.
        let packed = take(|out| unsafe { prior_embed_pack_int8(out, &mut scales, &mut scaled_sums, weight.as_ptr()) })?;
        // SAFETY: after success both are new tensors that nobody else owns.
        let (scales, scaled_sums) = unsafe { (Tensor::from_ptr(scales), Tensor::from_ptr(scaled_sums)) };
        Ok(Self { packed, scales, scaled_sums, levels: i64::from(levels) })
    }

    /// `x Wᵀ + b` and the epilogue, `(…, inputs)` to `(…, outputs)`, float32. Each row of `x` gets a scale of its own.
    ///
    /// # Errors
    /// If shapes or types do not fit.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>, epilogue: Epilogue) -> Result<Tensor> {
        let bias = bias.map_or(null(), Tensor::as_ptr);
        on_rounded_rows(x, epilogue, |x, epilogue| {
            let (gelu, other) = epilogue.pointers();
            // SAFETY: the pointers are live tensors', or null where the C++ side takes null for none.
            take(|out| unsafe {
                let (weight, scales, sums) = (self.packed.as_ptr(), self.scales.as_ptr(), self.scaled_sums.as_ptr());
                prior_embed_int8_linear(out, x.as_ptr(), weight, scales, sums, bias, other, gelu, self.levels)
            })
        })
    }
}

/// Whether sums of int8 products are exact on this processor for inputs of `0..=levels`.
///
/// # Errors
/// If memory runs out.
pub fn holds_int8_products(levels: u8) -> Result<bool> {
    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);
    const INPUTS: i64 = 64;
    // The largest numbers there are: with them a sum of 16 bits reaches half its value at 255 levels.
    let weight = Int8Weight::pack(&Tensor::f_ones([16, INPUTS], OPTIONS)?, levels)?;
    let sums = weight.linear(&Tensor::f_ones([1, INPUTS], OPTIONS)?, None, Epilogue::None)?;
    Ok(sums.f_allclose(&Tensor::f_full([1, 16], INPUTS, OPTIONS)?, 1e-3, 0.0, false)?)
}

/// Softmax attention of each token of `query` `(tokens, heads · head_dim)` over its rows of all segments, on the CPU.
///
/// # Errors
/// If shapes or types do not fit, or a range is out of bounds.
pub fn attend(query: &Tensor, heads: i64, segments: &[Segment]) -> Result<Tensor> {
    let pointers = |pick: fn(&Segment) -> *const C_tensor| segments.iter().map(pick).collect::<Vec<_>>();
    let rows = pointers(|segment| segment.rows.as_ptr());
    let starts = pointers(|segment| segment.starts.as_ptr());
    let ends = pointers(|segment| segment.ends.as_ptr());
    let count = segments.len() as i64;
    // SAFETY: the three arrays have `count` pointers of live tensors each.
    take(|out| unsafe {
        prior_embed_attend(out, query.as_ptr(), heads, count, rows.as_ptr(), starts.as_ptr(), ends.as_ptr())
    })
}

/// The normals `(1, count)` that torch makes of uniforms from 0 to 1 where it has AVX2: as many, and then 16 more unless
/// `count`, which is 16 at least, is a multiple of 16.
///
/// # Errors
/// If the number of uniforms does not fit.
pub fn normals(uniforms: &Tensor, count: i64) -> Result<Tensor> {
    // SAFETY: the pointer is a live tensor's.
    take(|out| unsafe { prior_embed_normals(out, uniforms.as_ptr(), count) })
}

/// Calls a C++ function that fills in a new tensor, and takes that tensor or the message.
fn take(call: impl FnOnce(*mut *mut C_tensor) -> Failure) -> Result<Tensor> {
    let mut out = null_mut();
    let failure = call(&mut out);
    if failure.is_null() {
        // SAFETY: without a failure, `out` is a new tensor that nobody else owns.
        return Ok(unsafe { Tensor::from_ptr(out) });
    }
    // SAFETY: a failure is a text of the C++ side.
    Err(anyhow!("libtorch: {}", unsafe { text_of(failure) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Numbers about as large as normals, other ones at each call and the same in each run of a test.
    fn random(size: &[i64]) -> Tensor {
        thread_local! { static STATE: Cell<u64> = const { Cell::new(0) } }
        // SplitMix64.
        let draw = || {
            let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
            STATE.set(state);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1 << 22) as f32 - 2.0
        };
        let count = size.iter().product::<i64>() as usize;
        Tensor::from_slice(&std::iter::repeat_with(draw).take(count).collect::<Vec<f32>>()).reshape(size)
    }

    fn largest(tensor: &Tensor) -> f64 {
        tensor.abs().max().double_value(&[])
    }

    /// The largest difference, relative to the largest expected value.
    fn error(actual: &Tensor, expected: &Tensor) -> f64 {
        assert_eq!(actual.size(), expected.size());
        largest(&(actual - expected)) / largest(expected)
    }

    /// Runs `linear` with each epilogue and compares with libtorch's own layer. Errors are relative to the largest value
    /// before or after the epilogue, which may leave of it a number near zero.
    fn check(
        linear: impl Fn(&Tensor, Option<&Tensor>, Epilogue) -> Tensor,
        x: &Tensor,
        weight: &Tensor,
        tolerance: f64,
    ) {
        let outputs = weight.size()[0];
        let bias = random(&[outputs]);
        let mut shape = x.size();
        *shape.last_mut().unwrap() = outputs;
        let other = random(&shape);
        let (product, plain) = (x.linear(weight, None::<&Tensor>), x.linear(weight, Some(&bias)));
        let scale = largest(&product).max(largest(&plain));
        let cases = [
            (linear(x, None, Epilogue::None), product),
            (linear(x, Some(&bias), Epilogue::None), plain.shallow_clone()),
            (linear(x, Some(&bias), Epilogue::Gelu), plain.gelu("none")),
            (linear(x, Some(&bias), Epilogue::Add(&other)), plain + &other),
        ];
        for (number, (actual, expected)) in cases.iter().enumerate() {
            assert_eq!(actual.size(), expected.size());
            let error = largest(&(actual - expected)) / scale.max(largest(expected));
            assert!(error < tolerance, "{:?} case {number}: off by {error:.1e}", weight.size());
        }
    }

    const SHAPES: [(&[i64], i64); 5] =
        [(&[1, 1], 1), (&[3, 5], 7), (&[2, 3, 64], 48), (&[130, 96], 33), (&[4, 256], 1024)];

    #[test]
    fn packed_layers_are_libtorchs() {
        for (shape, outputs) in SHAPES {
            let x = random(shape);
            let weight = random(&[outputs, shape[shape.len() - 1]]);
            let packed = pack_linear(&weight).unwrap();
            check(|x, bias, epilogue| packed_linear(x, &packed, bias, epilogue).unwrap(), &x, &weight, 1e-5);
        }
    }

    /// What inputs can be quantized to here.
    fn levels() -> u8 {
        if holds_int8_products(255).unwrap() { 255 } else { 127 }
    }

    #[test]
    fn int8_layers_come_near() {
        for (shape, outputs) in SHAPES {
            let x = random(shape);
            let weight = random(&[outputs, shape[shape.len() - 1]]);
            for (levels, tolerance) in [(255, 0.03), (127, 0.05)].into_iter().filter(|case| case.0 <= levels()) {
                let packed = Int8Weight::pack(&weight, levels).unwrap();
                check(|x, bias, epilogue| packed.linear(x, bias, epilogue).unwrap(), &x, &weight, tolerance);
            }
        }
    }

    #[test]
    fn bfloat16_layers_come_near() {
        for (shape, outputs) in
            SHAPES.into_iter().filter(|(shape, _)| has_bfloat16() && shape[shape.len() - 1] % 2 == 0)
        {
            // Numbers that bfloat16 holds, so that the products alone are compared.
            let x = random(shape).to_kind(Kind::BFloat16).to_kind(Kind::Float);
            let weight = random(&[outputs, shape[shape.len() - 1]]).to_kind(Kind::BFloat16).to_kind(Kind::Float);
            let packed = Bfloat16Weight::pack(&weight).unwrap();
            check(|x, bias, epilogue| packed.linear(x, bias, epilogue).unwrap(), &x, &weight, 1e-5);
        }
    }

    #[test]
    fn a_bfloat16_row_does_not_depend_on_those_beside_it() {
        if !has_bfloat16() {
            return;
        }
        let packed = Bfloat16Weight::pack(&random(&[130, 4096])).unwrap();
        let x = random(&[27, 4096]);
        let together = packed.linear(&x, None, Epilogue::None).unwrap();
        for (start, rows) in [(0, 1), (5, 1), (26, 1), (3, 2), (1, 7), (10, 17)] {
            let some = packed.linear(&x.narrow(0, start, rows), None, Epilogue::None).unwrap();
            assert_eq!(some, together.narrow(0, start, rows));
        }
    }

    #[test]
    fn an_int8_row_does_not_depend_on_those_beside_it() {
        let packed = Int8Weight::pack(&random(&[40, 64]), levels()).unwrap();
        let x = random(&[9, 64]);
        // A neighbour of another magnitude would spoil a scale that they shared.
        let _ = x.get(3).g_mul_scalar_(1e4);
        let together = packed.linear(&x, None, Epilogue::Gelu).unwrap();
        for row in 0..9 {
            let alone = packed.linear(&x.narrow(0, row, 1), None, Epilogue::Gelu).unwrap();
            assert!(error(&alone, &together.narrow(0, row, 1)) < 1e-6, "row {row}");
        }
    }

    #[test]
    fn int8_keeps_zeros_and_tells_of_nan() {
        let weight = random(&[8, 16]);
        let packed = Int8Weight::pack(&weight, levels()).unwrap();
        let zeros = Tensor::zeros([2, 16], (Kind::Float, Device::Cpu));
        assert_eq!(packed.linear(&zeros, None, Epilogue::None).unwrap().abs().max().double_value(&[]), 0.0);
        let _ = zeros.get(1).get(3).fill_(f64::NAN);
        let output = packed.linear(&zeros, None, Epilogue::None).unwrap();
        assert_eq!(output.get(0).isnan().any().int64_value(&[]), 0);
        assert_eq!(output.get(1).isnan().all().int64_value(&[]), 1);
        let _ = weight.get(2).get(0).fill_(f64::NAN);
        let output =
            Int8Weight::pack(&weight, levels()).unwrap().linear(&random(&[1, 16]), None, Epilogue::None).unwrap();
        let nan: Vec<i64> = (0..8).filter(|&column| output.double_value(&[0, column]).is_nan()).collect();
        assert_eq!(nan, [2]);
    }

    #[test]
    fn wrong_arguments_are_errors() {
        let weight = random(&[4, 6]);
        let (packed, int8) = (pack_linear(&weight).unwrap(), Int8Weight::pack(&weight, levels()).unwrap());
        let wrong = random(&[2, 5]);
        assert!(packed_linear(&wrong, &packed, None, Epilogue::None).is_err());
        assert!(int8.linear(&wrong, None, Epilogue::None).is_err());
        assert!(int8.linear(&random(&[2, 6]), None, Epilogue::Add(&wrong)).is_err());
        assert!(pack_linear(&random(&[3])).is_err());
    }
}
