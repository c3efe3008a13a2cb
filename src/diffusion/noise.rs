//! The noise of a row: the bits that `torch.Generator().manual_seed(seed)` gives in Python.
//!
//! On every processor these are the bits of x86-64 with AVX2 or AVX-512. Elsewhere Python's own may differ in the last
//! one.

use crate::{Error, Result, kernels};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

/// Where a row's noise comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseSource<'a> {
    /// Seeds the generator.
    pub seed: u64,
    /// The noise that denoising starts from, `(dim)`, in place of the generator's first draw; or all its draws,
    /// `(1 + steps, dim)`.
    pub given: Option<&'a [f32]>,
    /// The row's place among those that share the generator; `None` if it has one of its own.
    pub call: Option<CallRow>,
}

impl From<u64> for NoiseSource<'_> {
    /// A generator of the row's own.
    fn from(seed: u64) -> Self {
        Self { seed, given: None, call: None }
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

fn wrong_count(found: usize, dim: usize, all: usize) -> Error {
    let reason = match all {
        all if all == dim => format!("noise of {found} numbers, where this model takes {dim}"),
        all => format!(
            "noise of {found} numbers, where this model takes {dim} to start from, or {all} with those that these steps add"
        ),
    };
    Error::Option { option: "noise", reason }
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
    /// [`Error::Option`] if given noise is neither `dim` numbers nor all draws, or memory runs out.
    pub fn draw(sources: &[NoiseSource], dim: i64, steps: usize, device: Device) -> Result<Self> {
        let mut calls = CallDraws::default();
        let of_row = |source: &NoiseSource| {
            let (width, all) = (dim as usize, (1 + steps) * dim as usize);
            let latents = match source.given {
                Some(given) if given.len() == width => Some(given),
                Some(given) if given.len() == all => {
                    return RowNoise::of(&Tensor::f_from_slice(given)?.f_reshape([-1, dim])?, None);
                }
                Some(given) => return Err(wrong_count(given.len(), width, all)),
                None => None,
            };
            let draws = steps as i64 + i64::from(latents.is_none());
            match (source.call, latents) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_draws_stand_in_the_place_of_the_generators() {
        let draws = Vec::try_from(kernels::normals(7, 4, 16).unwrap().reshape([-1])).unwrap();
        let of_seed = BatchNoise::draw(&[7.into()], 16, 3, Device::Cpu).unwrap();
        let source = |given: &'static [f32]| NoiseSource { given: Some(given), ..NoiseSource::from(9) };
        let draws: &[f32] = Vec::leak(draws);
        let given = BatchNoise::draw(&[source(draws), 7.into()], 16, 3, Device::Cpu).unwrap();
        let rows = |noise: &BatchNoise, row| -> Vec<Tensor> {
            [&noise.latents].into_iter().chain(&noise.steps).map(|draw| draw.narrow(0, row, 1)).collect()
        };
        assert_eq!(rows(&given, 0), rows(&of_seed, 0));
        assert_eq!(rows(&given, 1), rows(&of_seed, 0));
        let start = BatchNoise::draw(&[source(&draws[..16])], 16, 3, Device::Cpu).unwrap();
        let of_other = BatchNoise::draw(&[9.into()], 16, 2, Device::Cpu).unwrap();
        assert_eq!(start.latents, of_seed.latents);
        // The generator's first draw is the first step's.
        assert_eq!((&start.steps[0], &start.steps[1]), (&of_other.latents, &of_other.steps[0]));
        for count in [0, 15, 32, 63] {
            let error = BatchNoise::draw(&[source(&draws[..count])], 16, 3, Device::Cpu).unwrap_err();
            assert!(matches!(error, Error::Option { option: "noise", .. }), "{error}");
            assert!(error.to_string().contains("takes 16 to start from, or 64 with"), "{error}");
        }
    }
}
