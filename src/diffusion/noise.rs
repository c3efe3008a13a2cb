//! The noise of a row: the bits that `torch.Generator().manual_seed(seed)` gives in Python.
//!
//! On every processor these are the bits of x86-64 with AVX2 or AVX-512. Elsewhere Python's own may differ in the last
//! one.

use crate::{Result, kernels};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

/// Where a row's noise comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseSource<'a> {
    /// Seeds the generator.
    pub seed: u64,
    /// The noise that denoising starts from, `(dim)`, in place of the generator's first draw.
    pub latents: Option<&'a [f32]>,
    /// The row's place among those that share the generator; `None` if it has one of its own.
    pub call: Option<CallRow>,
}

impl From<u64> for NoiseSource<'_> {
    /// A generator of the row's own.
    fn from(seed: u64) -> Self {
        Self { seed, latents: None, call: None }
    }
}

/// The seed that belongs to a text: the first 8 bytes, little-endian, of its SHA-256 in UTF-8.
pub fn seed_of(text: &str) -> u64 {
    let digest: [u8; 32] = Sha256::digest(text).into();
    let [first, ..] = digest.as_chunks().0 else { return 0 };
    u64::from_le_bytes(*first)
}

/// A row's place in a pipeline's call with one generator for all rows: each draw is `(rows, dim)` at once, whose bits
/// are not those of as many draws of `(1, dim)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallRow {
    /// The row.
    pub row: usize,
    /// Rows of the call.
    pub rows: usize,
    /// Calls like this one that the generator was used for before.
    pub calls_before: usize,
}

/// The normals of one row, drawn from its own generator: they depend on the seed alone, not on the rows of a batch or
/// on other threads.
#[derive(Debug)]
pub struct RowNoise {
    /// The noise that denoising starts from, `(1, dim)`.
    pub latents: Tensor,
    /// The noise that each step adds, `(1, dim)` each, in order.
    pub steps: Vec<Tensor>,
}

impl RowNoise {
    /// Draws `(1, dim)` float32 normals, `1 + steps` times, on the CPU.
    ///
    /// diffusers draws in this order with one generator a row: `randn_tensor` for the latents, then once in each step
    /// of the scheduler.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn draw(seed: u64, dim: i64, steps: usize) -> Result<Self> {
        Self::of(&kernels::normals(seed, 1 + steps as i64, dim)?, None)
    }

    /// The noise in a row's draws, `(draws, dim)`. The first is the latents unless they are given, as in
    /// `prepare_latents` of diffusers' pipelines.
    fn of(draws: &Tensor, latents: Option<&[f32]>) -> Result<Self> {
        let (count, dim) = draws.size2()?;
        let draw = |index: i64| draws.f_narrow(0, index, 1);
        let (latents, first) = match latents {
            Some(latents) => (Tensor::f_from_slice(latents)?.f_reshape([1, dim])?, 0),
            None => (draw(0)?, 1),
        };
        Ok(Self { latents, steps: (first..count).map(draw).collect::<Result<_, _>>()? })
    }
}

/// The draws of a call, which its rows share.
#[derive(Debug, Default)]
struct CallDraws(Option<((u64, usize, i64), Tensor)>);

impl CallDraws {
    /// The draws of a row, `(draws, dim)`.
    fn of(&mut self, seed: u64, CallRow { row, rows, calls_before }: CallRow, draws: i64, dim: i64) -> Result<Tensor> {
        let before = draws * calls_before as i64;
        let key = (seed, rows, before + draws);
        let all = match self.0.take().filter(|(known, _)| *known == key) {
            Some((_, all)) => all,
            None => kernels::normals(seed, before + draws, rows as i64 * dim)?,
        };
        let of_row = all.f_narrow(0, before, draws)?.f_narrow(1, row as i64 * dim, dim)?;
        self.0 = Some((key, all));
        Ok(of_row)
    }
}

/// The noise of several rows, stacked for a batch.
#[derive(Debug)]
pub struct BatchNoise {
    /// `(rows, dim)`.
    pub latents: Tensor,
    /// `(rows, dim)` a step.
    pub steps: Vec<Tensor>,
    /// The step that denoising starts at: those before are left out.
    pub first_step: usize,
}

impl BatchNoise {
    /// Draws each row's noise from its source; `steps` draws after the latents.
    ///
    /// # Errors
    /// If given latents are not `dim` numbers, or memory runs out.
    pub fn draw(sources: &[NoiseSource], dim: i64, steps: usize, device: Device) -> Result<Self> {
        let mut calls = CallDraws::default();
        let of_row = |source: &NoiseSource| {
            let draws = steps as i64 + i64::from(source.latents.is_none());
            match (source.call, source.latents) {
                (None, None) => RowNoise::draw(source.seed, dim, steps),
                (None, latents) => RowNoise::of(&kernels::normals(source.seed, draws, dim)?, latents),
                (Some(call), latents) => RowNoise::of(&calls.of(source.seed, call, draws, dim)?, latents),
            }
        };
        let rows = sources.iter().map(of_row).collect::<Result<Vec<_>>>()?;
        let stack = |pick: &dyn Fn(&RowNoise) -> Tensor| -> Result<Tensor> {
            let parts: Vec<Tensor> = rows.iter().map(pick).collect();
            Ok(Tensor::f_cat(&parts, 0)?.f_to_device(device)?)
        };
        Ok(Self {
            latents: stack(&|row| row.latents.shallow_clone())?,
            steps: (0..steps).map(|step| stack(&|row| row.steps[step].shallow_clone())).collect::<Result<_>>()?,
            first_step: 0,
        })
    }
}
