//! The noise of a row: the bits that `torch.Generator().manual_seed(seed)` gives in Python.
//!
//! On every processor these are the bits of x86-64 with AVX2 or AVX-512. Elsewhere Python's own may differ in the last
//! one.

use crate::{Result, kernels};
use tch::{Device, Tensor};

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
        let normals = kernels::normals(seed, 1 + steps as i64, dim)?;
        let draw = |index: i64| normals.f_narrow(0, index, 1);
        Ok(Self { latents: draw(0)?, steps: (1..=steps as i64).map(draw).collect::<Result<_, _>>()? })
    }
}

/// The noise of several rows, stacked for a batch.
#[derive(Debug)]
pub struct BatchNoise {
    /// `(rows, dim)`.
    pub latents: Tensor,
    /// `(rows, dim)` a step.
    pub steps: Vec<Tensor>,
}

impl BatchNoise {
    /// Draws each row's noise from its seed; `steps` draws after the first.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn draw(seeds: &[u64], dim: i64, steps: usize, device: Device) -> Result<Self> {
        let rows = seeds.iter().map(|&seed| RowNoise::draw(seed, dim, steps)).collect::<Result<Vec<_>>>()?;
        let stack = |pick: &dyn Fn(&RowNoise) -> Tensor| -> Result<Tensor> {
            let parts: Vec<Tensor> = rows.iter().map(pick).collect();
            Ok(Tensor::f_cat(&parts, 0)?.f_to_device(device)?)
        };
        Ok(Self {
            latents: stack(&|row| row.latents.shallow_clone())?,
            steps: (0..steps).map(|step| stack(&|row| row.steps[step].shallow_clone())).collect::<Result<_>>()?,
        })
    }
}
