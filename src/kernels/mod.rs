//! CPU kernels in C++ on libtorch: packed linear layers, attention over cached keys and values, activations, normals.
//!
//! This is the only place where Rust calls that C++. Every function there checks device, layout, type and shape of its
//! arguments, and turns exceptions into errors.

// The FFI boundary: a call passes pointers of tensors that outlive it, and takes ownership of a new tensor.
#![allow(unsafe_code)]

mod epilogue;
mod message;
mod panels;
#[cfg(feature = "cli")]
pub mod process;
#[cfg(feature = "cli")]
pub mod processor;
#[cfg(test)]
pub mod recording;
mod rounding;

use crate::Result;
pub use epilogue::Epilogue;
use message::{Failure, take};
pub use panels::{PanelWeight, panel_width};
use rounding::on_rounded_rows;
use std::ptr::{null, null_mut};
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

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
        inputs: i64,
        bias: *const C_tensor,
        other: *const C_tensor,
        gelu: bool,
    ) -> Failure;
    fn prior_embed_pack_int8(
        out: *mut *mut C_tensor,
        scales: *mut *mut C_tensor,
        scaled_sums: *mut *mut C_tensor,
        weight: *const C_tensor,
        in_panels: bool,
    ) -> Failure;
    fn prior_embed_has_int8_panels() -> bool;
    fn prior_embed_int8_linear(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        scales: *const C_tensor,
        scaled_sums: *const C_tensor,
        outputs: i64,
        inputs: i64,
        bias: *const C_tensor,
        other: *const C_tensor,
        gelu: bool,
        levels: i64,
    ) -> Failure;
    fn prior_embed_activate(out: *mut *mut C_tensor, x: *const C_tensor, function: i64) -> Failure;
    fn prior_embed_normals(out: *mut *mut C_tensor, seed: u64, draws: i64, count: i64) -> Failure;
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

/// Rows of keys and values, `(rows, 2 · heads · head_dim)`, and for each token the range of rows that it sees.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Keys, then values, one of each a row.
    pub rows: &'a Tensor,
    /// The first row that each token sees, int64, `(tokens)`.
    pub starts: &'a Tensor,
    /// One past the last.
    pub ends: &'a Tensor,
}

/// Whether this build of libtorch has oneDNN's packed linear layers; those for ARM have none.
pub fn has_packed_linear() -> bool {
    // SAFETY: takes and gives no pointers.
    unsafe { prior_embed_has_packed_linear() }
}

/// Packs a weight `(outputs, inputs)`, float32 or bfloat16 on the CPU, for [`packed_linear`].
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

/// Whether the processor has AVX-512 with bfloat16, which [`Bfloat16Weight::linear`] needs.
pub fn has_bfloat16() -> bool {
    // SAFETY: takes and gives no pointers.
    unsafe { prior_embed_has_bfloat16() }
}

/// A weight in bfloat16, packed in the order in which the kernel reads it. To the last bit, a row of a product does not
/// depend on the rows beside it.
#[derive(Debug)]
pub struct Bfloat16Weight {
    packed: Tensor,
    outputs: i64,
    inputs: i64,
}

impl Bfloat16Weight {
    /// Packs a weight `(outputs, inputs)` of any float type on the CPU.
    ///
    /// # Errors
    /// If it is of another type or on another device, or memory runs out.
    pub fn pack(weight: &Tensor) -> Result<Self> {
        // SAFETY: the pointer is a live tensor's.
        let packed = take(|out| unsafe { prior_embed_pack_bfloat16(out, weight.as_ptr()) })?;
        let (outputs, inputs) = weight.size2()?;
        Ok(Self { packed, outputs, inputs })
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
            let (weight, outputs, inputs) = (self.packed.as_ptr(), self.outputs, self.inputs);
            prior_embed_bfloat16_linear(out, x.as_ptr(), weight, outputs, inputs, bias, other, gelu)
        })
    }
}

/// Whether the processor has AVX2, which weights of [`Int8Weight::pack_panels`] need.
pub fn has_int8_panels() -> bool {
    // SAFETY: takes and gives no pointers.
    unsafe { prior_embed_has_int8_panels() }
}

/// A weight quantized to int8.
#[derive(Debug)]
pub struct Int8Weight {
    packed: Tensor,
    /// One scale a channel, `(outputs)`.
    scales: Tensor,
    /// The sum of each channel's quantized weights times its scale, `(outputs)`: the factor of an input's zero point.
    scaled_sums: Tensor,
    outputs: i64,
    inputs: i64,
    /// The input is quantized to `0..=levels`.
    levels: i64,
}

impl Int8Weight {
    /// Quantizes a weight `(outputs, inputs)` of any float type on the CPU, with one scale a channel, and packs it for
    /// oneDNN. Inputs are quantized to `0..=levels`, at most 255.
    ///
    /// # Errors
    /// As [`Bfloat16Weight::pack`].
    pub fn pack(weight: &Tensor, levels: u8) -> Result<Self> {
        Self::pack_for(weight, levels, false)
    }

    /// As [`Int8Weight::pack`], in panels for our own kernel, whose sums are exact up to 127 levels. It gives the same
    /// numbers.
    ///
    /// # Errors
    /// As [`Bfloat16Weight::pack`].
    pub fn pack_panels(weight: &Tensor) -> Result<Self> {
        Self::pack_for(weight, u8::MAX / 2, true)
    }

    fn pack_for(weight: &Tensor, levels: u8, in_panels: bool) -> Result<Self> {
        let (mut scales, mut scaled_sums) = (null_mut(), null_mut());
        // SAFETY: the pointer is a live tensor's; the C++ side fills in all three outputs, or none.
        let packed = take(|out| unsafe {
            prior_embed_pack_int8(out, &mut scales, &mut scaled_sums, weight.as_ptr(), in_panels)
        })?;
        // SAFETY: after success both are new tensors without another owner.
        let (scales, scaled_sums) = unsafe { (Tensor::from_ptr(scales), Tensor::from_ptr(scaled_sums)) };
        let (outputs, inputs) = weight.size2()?;
        Ok(Self { packed, scales, scaled_sums, outputs, inputs, levels: i64::from(levels) })
    }

    /// `x Wᵀ + b` and the epilogue, `(…, inputs)` to `(…, outputs)`, float32. Each row of `x` is quantized with its own
    /// scale.
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
                let (outputs, inputs, levels) = (self.outputs, self.inputs, self.levels);
                let x = x.as_ptr();
                prior_embed_int8_linear(out, x, weight, scales, sums, outputs, inputs, bias, other, gelu, levels)
            })
        })
    }
}

/// An activation function, and its number on the C++ side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum Activation {
    /// `x · σ(x)`, also called swish.
    Silu = 0,
    /// `x · tanh(softplus(x))`.
    Mish = 1,
    /// `x · Φ(x)`, exact.
    Gelu = 2,
    /// `x · σ(1.702 x)`, OpenAI's CLIP (transformers' `QuickGELUActivation`).
    QuickGelu = 3,
    /// `max(x, 0)`.
    Relu = 4,
}

/// Applies the function to each element of `x`, of any float type on the CPU. To the last bit, a value depends neither
/// on its position in `x` nor on the number of threads.
///
/// # Errors
/// If `x` is of another type or on another device, or memory runs out.
pub fn activate(x: &Tensor, function: Activation) -> Result<Tensor> {
    // SAFETY: the pointer is a live tensor's.
    take(|out| unsafe { prior_embed_activate(out, x.as_ptr(), function as i64) })
}

/// Whether sums of int8 products are exact on this processor for inputs of `0..=levels`.
///
/// # Errors
/// If memory runs out.
pub fn holds_int8_products(levels: u8) -> Result<bool> {
    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);
    const INPUTS: i64 = 64;
    // The largest values: a 16-bit sum that saturates gives half of the result at 255 levels.
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

/// Draws `(draws, count)` normals in float32 from a generator seeded with `seed`, row by row: bit for bit what
/// `torch.randn((1, count), generator=torch.Generator().manual_seed(seed))` gives one call after the other on x86-64
/// with AVX2 or AVX-512. libtorch's default generator is not touched.
///
/// # Errors
/// If memory runs out.
pub fn normals(seed: u64, draws: i64, count: i64) -> Result<Tensor> {
    // SAFETY: no pointer goes in.
    take(|out| unsafe { prior_embed_normals(out, seed, draws, count) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Pseudo-random values about as large as normals: different in each call, the same in each run of a test.
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

    /// Runs `linear` with each epilogue and compares it with libtorch's own layer. Errors are relative to the largest
    /// value before or after the epilogue, which may reduce it to near zero.
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

    /// The quantization levels of inputs on this processor.
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

    /// The widths of panels that the processor has, with each type of weights.
    fn panels() -> impl Iterator<Item = (i64, Kind)> {
        let widths = [16, 32].into_iter().filter(|width| panel_width().is_some_and(|widest| *width <= widest));
        widths.flat_map(|width| [Kind::Float, Kind::Half, Kind::BFloat16].map(|kind| (width, kind)))
    }

    #[test]
    fn layers_in_panels_are_libtorchs() {
        // The largest have several blocks of rows, of inputs and of outputs, with some left over.
        let large: [(&[i64], i64); 3] = [(&[205, 1030], 530), (&[7, 513], 264), (&[49, 1536], 16)];
        for ((shape, outputs), (width, kind)) in
            SHAPES.into_iter().chain(large).flat_map(|shape| panels().map(move |panel| (shape, panel)))
        {
            let weight = random(&[outputs, shape[shape.len() - 1]]).to_kind(kind);
            let packed = PanelWeight::pack(&weight, width).unwrap();
            let linear = |x: &Tensor, bias: Option<&Tensor>, then: Epilogue| packed.linear(x, bias, then).unwrap();
            check(linear, &random(shape), &weight.to_kind(Kind::Float), 2e-6);
        }
    }

    #[test]
    fn what_a_weight_in_panels_is_stored_in_changes_no_number() {
        let (x, weight) = (random(&[30, 600]), random(&[70, 600]));
        for (width, kind) in panels() {
            let rounded = weight.to_kind(kind);
            let [stored, widened] = [rounded.shallow_clone(), rounded.to_kind(Kind::Float)]
                .map(|weight| PanelWeight::pack(&weight, width).unwrap().linear(&x, None, Epilogue::None).unwrap());
            assert_eq!(stored, widened, "{kind:?} in panels of {width}");
        }
    }

    #[test]
    fn layers_in_panels_do_not_depend_on_the_number_of_threads() {
        let threads = tch::get_num_threads();
        for (rows, inputs, outputs) in [(1, 64, 200), (30, 700, 90), (100, 96, 333), (300, 40, 64)] {
            let (x, weight) = (random(&[rows, inputs]), random(&[outputs, inputs]));
            for (width, kind) in panels() {
                let packed = PanelWeight::pack(&weight.to_kind(kind), width).unwrap();
                let with = |threads: i32| {
                    tch::set_num_threads(threads);
                    packed.linear(&x, None, Epilogue::None).unwrap()
                };
                let expected = with(1);
                for threads in [2, 3, 7, 16] {
                    assert_eq!(with(threads), expected, "{rows} x {inputs} x {outputs}, {threads} threads");
                }
            }
        }
        tch::set_num_threads(threads);
    }

    #[test]
    fn bfloat16_layers_come_near() {
        for (shape, outputs) in
            SHAPES.into_iter().filter(|(shape, _)| has_bfloat16() && shape[shape.len() - 1] % 2 == 0)
        {
            // Rounded to bfloat16, so that only the products are compared.
            let x = random(shape).to_kind(Kind::BFloat16).to_kind(Kind::Float);
            let weight = random(&[outputs, shape[shape.len() - 1]]).to_kind(Kind::BFloat16).to_kind(Kind::Float);
            let packed = Bfloat16Weight::pack(&weight).unwrap();
            check(|x, bias, epilogue| packed.linear(x, bias, epilogue).unwrap(), &x, &weight, 1e-5);
        }
    }

    /// Checks that some rows alone equal the same rows among all, to the last bit. One row is of another magnitude,
    /// which would show in any scale that rows shared.
    fn check_rows(what: &str, x: &Tensor, other: &Tensor, layer: impl Fn(&Tensor, Epilogue) -> Tensor) {
        let rows = x.size()[0];
        let _ = x.get(rows / 2).g_mul_scalar_(1e4);
        for kind in 0..3 {
            let run = |start: i64, len: i64| {
                let (x, other) = (x.narrow(0, start, len), other.narrow(0, start, len));
                layer(&x, [Epilogue::None, Epilogue::Gelu, Epilogue::Add(&other)][kind])
            };
            let together = run(0, rows);
            for (start, len) in [(0, 1), (rows - 1, 1), (3, 2), (1, 7), (0, 18), (2, 64)] {
                let same = run(start, len) == together.narrow(0, start, len);
                assert!(same, "{what}, {:?}, epilogue {kind}: rows {start} and {len} more", x.size());
            }
        }
    }

    /// Widths that fill vectors and widths that do not, and more inputs than are summed at once.
    const ODD_SHAPES: [(i64, i64); 14] = [
        (1, 1),
        (2, 3),
        (5, 7),
        (12, 36),
        (20, 60),
        (20, 20),
        (33, 12),
        (47, 129),
        (64, 130),
        (77, 63),
        (130, 65),
        (768, 96),
        (1153, 31),
        (4096, 130),
    ];

    #[test]
    fn a_row_does_not_depend_on_those_beside_it_at_any_width() {
        for (inputs, outputs) in ODD_SHAPES {
            let (weight, bias) = (random(&[outputs, inputs]), random(&[outputs]));
            let (x, other) = (random(&[150, inputs]), random(&[150, outputs]));
            if has_packed_linear() {
                let packed = pack_linear(&weight).unwrap();
                check_rows("f32", &x, &other, |x, then| packed_linear(x, &packed, Some(&bias), then).unwrap());
                for levels in [127, 255] {
                    let packed = Int8Weight::pack(&weight, levels).unwrap();
                    check_rows("int8", &x, &other, |x, then| packed.linear(x, Some(&bias), then).unwrap());
                }
            }
            if has_int8_panels() {
                let packed = Int8Weight::pack_panels(&weight).unwrap();
                check_rows("int8 panels", &x, &other, |x, then| packed.linear(x, Some(&bias), then).unwrap());
            }
            if has_bfloat16() {
                let packed = Bfloat16Weight::pack(&weight).unwrap();
                check_rows("bf16", &x, &other, |x, then| packed.linear(x, Some(&bias), then).unwrap());
            }
            for (width, kind) in panels() {
                let packed = PanelWeight::pack(&weight.to_kind(kind), width).unwrap();
                let name = format!("{kind:?} in panels of {width}");
                check_rows(&name, &x, &other, |x, then| packed.linear(x, Some(&bias), then).unwrap());
            }
        }
    }

    const ACTIVATIONS: [Activation; 5] =
        [Activation::Silu, Activation::Mish, Activation::Gelu, Activation::QuickGelu, Activation::Relu];

    #[test]
    fn an_activation_does_not_depend_on_the_place() {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            for (rows, width) in [(1, 1), (9, 12), (40, 17), (3, 64), (7, 6151), (150, 513)] {
                let x = (random(&[rows, width]) * 3.0).to_kind(kind);
                for function in ACTIVATIONS {
                    let together = activate(&x, function).unwrap();
                    assert_eq!((together.size(), together.kind()), (x.size(), kind));
                    for (start, len) in [(0, 1), (rows - 1, 1), (rows / 3, rows - rows / 3)] {
                        let some = activate(&x.narrow(0, start, len), function).unwrap();
                        assert_eq!(some, together.narrow(0, start, len), "{function:?} of {kind:?} {rows} x {width}");
                    }
                    let columns = activate(&x.narrow(1, width / 2, 1), function).unwrap();
                    assert_eq!(columns, together.narrow(1, width / 2, 1), "{function:?} of a column");
                }
            }
        }
    }

    #[test]
    fn activations_are_libtorchs() {
        let x = random(&[9, 64]) * 3.0;
        let expected = [x.silu(), x.mish(), x.gelu("none"), &x * (&x * 1.702).sigmoid(), x.relu()];
        for (function, expected) in ACTIVATIONS.into_iter().zip(expected) {
            assert_eq!(activate(&x, function).unwrap(), expected, "{function:?}");
        }
    }

    #[test]
    fn int8_in_panels_gives_onednns_numbers() {
        if !has_packed_linear() || !has_int8_panels() {
            return;
        }
        for (shape, outputs) in SHAPES.into_iter().chain([(&[205, 1030][..], 530), (&[7, 4100], 264)]) {
            let (x, weight) = (random(shape), random(&[outputs, shape[shape.len() - 1]]));
            // The largest of all products that there can be.
            let (ones, largest_weight) = (x.ones_like(), weight.ones_like());
            for (x, weight) in [(&x, &weight), (&ones, &largest_weight), (&ones, &-&largest_weight)] {
                let [expected, actual] = [Int8Weight::pack(weight, 127), Int8Weight::pack_panels(weight)]
                    .map(|packed| packed.unwrap().linear(x, None, Epilogue::None).unwrap());
                assert!(largest(&(&actual - &expected)) <= 1e-6 * largest(&expected), "{shape:?} to {outputs}");
            }
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

    unsafe extern "C" {
        fn prior_embed_meta_tensor(out: *mut *mut C_tensor, like: *const C_tensor) -> Failure;
    }

    /// Replacements of a valid float32 tensor of which nothing, or not as much, can be read.
    fn hostile(good: &Tensor) -> Vec<(&'static str, Tensor)> {
        // SAFETY: the pointer is a live tensor's.
        let meta = take(|out| unsafe { prior_embed_meta_tensor(out, good.as_ptr()) }).unwrap();
        let size = good.size();
        let one_more: Vec<i64> = size.iter().map(|size| size + 1).collect();
        let (cpu, zero_sized) = ((Kind::Float, Device::Cpu), vec![0; size.len()]);
        vec![
            ("undefined", Tensor::new()),
            ("on the meta device", meta),
            ("sparse", good.to_sparse(None, None::<&[i64]>, None)),
            ("in oneDNN's layout", good.g_to_mkldnn(None)),
            ("quantized", good.quantize_per_tensor(0.1, 0, Kind::QInt8)),
            ("negated without its memory", good.internal_neg_view()),
            ("zero without memory", Tensor::internal_efficientzerotensor(&size, cpu)),
            ("of integers", good.to_kind(Kind::Int64)),
            ("complex", good.to_kind(Kind::ComplexFloat)),
            ("larger", Tensor::zeros(one_more, cpu)),
            ("without numbers", Tensor::zeros(zero_sized, cpu)),
            ("a number", Tensor::zeros([0_i64; 0], cpu)),
        ]
    }

    /// Calls with each hostile tensor in place of `good`. All but `fine` must be errors; `good` itself must not.
    fn check_hostile(what: &str, good: &Tensor, fine: &[&str], call: impl Fn(&Tensor) -> Result<Tensor>) {
        drop(call(good).unwrap());
        for (kind, tensor) in hostile(good) {
            assert_eq!(call(&tensor).is_ok(), fine.contains(&kind), "{what} {kind}");
        }
    }

    #[test]
    fn no_linear_layer_reads_foreign_memory() {
        let (weight, x) = (random(&[4, 6]), random(&[3, 6]));
        let (bias, other) = (random(&[4]), random(&[3, 4]));
        let pack = || (pack_linear(&weight).unwrap(), Int8Weight::pack(&weight, 255).unwrap());
        let packed = has_packed_linear().then(pack);
        let bfloat16 = Bfloat16Weight::pack(&weight).unwrap();
        let panel = PanelWeight::pack(&weight, 16).unwrap();
        let int8_panel = Int8Weight::pack_panels(&weight).unwrap();
        type Layer<'a> = Box<dyn Fn(&Tensor, Option<&Tensor>, Epilogue) -> Result<Tensor> + 'a>;
        let mut layers: Vec<(&str, Layer)> = Vec::new();
        if let Some((f32, int8)) = &packed {
            layers.push(("f32", Box::new(|x, bias, then| packed_linear(x, f32, bias, then))));
            layers.push(("int8", Box::new(|x, bias, then| int8.linear(x, bias, then))));
            check_hostile("weight", &weight, &["larger"], pack_linear);
            check_hostile("weight", &weight, &["larger"], |weight| Ok(Int8Weight::pack(weight, 255)?.scales));
            for (kind, tensor) in hostile(&weight).into_iter().filter(|(kind, _)| *kind != "in oneDNN's layout") {
                assert!(packed_linear(&x, &tensor, None, Epilogue::None).is_err(), "packed {kind}");
            }
            assert!(packed_linear(&x, f32, None, Epilogue::None).is_ok());
        }
        check_hostile("weight", &weight, &["larger"], |weight| Ok(Bfloat16Weight::pack(weight)?.packed));
        if has_bfloat16() {
            layers.push(("bf16", Box::new(|x, bias, then| bfloat16.linear(x, bias, then))));
        }
        check_hostile("weight", &weight, &["larger"], |weight| PanelWeight::pack(weight, 16).map(|_| Tensor::new()));
        assert!(PanelWeight::pack(&weight, 24).is_err());
        if panel_width().is_some() {
            layers.push(("panels", Box::new(|x, bias, then| panel.linear(x, bias, then))));
        }
        check_hostile("weight", &weight, &["larger"], |weight| Ok(Int8Weight::pack_panels(weight)?.scales));
        if has_int8_panels() {
            layers.push(("int8 panels", Box::new(|x, bias, then| int8_panel.linear(x, bias, then))));
        }
        for (name, layer) in layers {
            check_hostile(&format!("{name} input"), &x, &[], |x| layer(x, Some(&bias), Epilogue::None));
            check_hostile(&format!("{name} bias"), &bias, &[], |bias| layer(&x, Some(bias), Epilogue::Gelu));
            check_hostile(&format!("{name} residual"), &other, &[], |other| {
                layer(&x, Some(&bias), Epilogue::Add(other))
            });
            // A strided view is read element by element, or refused.
            let wide = random(&[3, 12]);
            let strided = layer(&wide.slice(1, 0, None, 2), None, Epilogue::None).unwrap();
            assert_eq!(strided, layer(&wide.slice(1, 0, None, 2).contiguous(), None, Epilogue::None).unwrap());
            assert!(layer(&x, Some(&random(&[8]).slice(0, 0, None, 2)), Epilogue::None).is_err(), "{name}");
            // More rows than fit into any memory.
            let endless = random(&[1, 6]).expand([1 << 44, 6], false);
            assert!(layer(&endless, None, Epilogue::None).is_err(), "{name}: {endless:?}");
        }
    }

    #[test]
    fn neither_attention_nor_activations_read_foreign_memory() {
        let (query, rows) = (random(&[2, 4]), random(&[3, 8]));
        let (starts, ends) = (Tensor::from_slice(&[0_i64, 1]), Tensor::from_slice(&[1_i64, 3]));
        let run = |query: &Tensor, rows: &Tensor, starts: &Tensor, ends: &Tensor| {
            attend(query, 2, &[Segment { rows, starts, ends }])
        };
        check_hostile("query", &query, &[], |query| run(query, &rows, &starts, &ends));
        check_hostile("rows", &rows, &[], |rows| run(&query, rows, &starts, &ends));
        for (kind, bounds) in hostile(&starts.to_kind(Kind::Float)) {
            // The integers are good bounds.
            let is_bounds = kind == "of integers";
            assert_eq!(run(&query, &rows, &bounds, &ends).is_ok(), is_bounds, "starts {kind}");
            assert_eq!(run(&query, &rows, &starts, &bounds).is_ok(), is_bounds, "ends {kind}");
        }
        assert!(run(&random(&[2, 0]), &random(&[3, 0]), &starts, &ends).is_err(), "nothing in a head");
        // Any shape has a function.
        check_hostile("input", &query, &["larger", "without numbers", "a number"], |x| activate(x, Activation::Mish));
    }

    #[test]
    fn a_long_message_is_a_failure_too() {
        let size = vec![1; 60];
        let error = pack_linear(&Tensor::zeros(&size, (Kind::Float, Device::Cpu))).unwrap_err();
        assert!(error.to_string().contains("1, 1, 1"), "{error}");
    }
}
