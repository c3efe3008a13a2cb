//! The random numbers of a row: what `torch.Generator().manual_seed(seed)` gives Python, bit for bit.
//!
//! On every processor these are the numbers of x86-64 with AVX2 or AVX-512. Elsewhere Python's own may differ from them in
//! the last bit.

use crate::kernels;
use anyhow::Result;
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};

/// tch reaches only libtorch's one default generator, so a row's draws must not mix with another's.
static DEFAULT_GENERATOR: Mutex<()> = Mutex::new(());

/// All the normals that one row needs, drawn at once from its own seed.
///
/// A row's noise depends on its seed alone, and not on which rows are computed beside it.
#[derive(Debug)]
pub struct RowNoise {
    /// The noise that denoising starts from, `(1, dim)`.
    pub latents: Tensor,
    /// The noise that each step adds, `(1, dim)` each, in order.
    pub steps: Vec<Tensor>,
}

impl RowNoise {
    /// Draws `(1, dim)` normals, `1 + steps` times, in float32 on the CPU.
    ///
    /// This is the order in which diffusers draws with one generator a row: `randn_tensor` for the latents, then once
    /// in each step of the scheduler.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn draw(seed: u64, dim: i64, steps: usize) -> Result<Self> {
        let _alone = DEFAULT_GENERATOR.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // libtorch takes the bits of a signed number as an unsigned one.
        tch::manual_seed(seed as i64);
        let normals = || draw_normals(dim);
        Ok(Self { latents: normals()?, steps: (0..steps).map(|_| normals()).collect::<Result<_, _>>()? })
    }
}

/// Draws `torch.randn((1, count))` from the default generator.
fn draw_normals(count: i64) -> Result<Tensor> {
    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);
    // Fewer are made one by one and in float64, on any processor.
    if count < 16 {
        return Ok(Tensor::f_randn([1, count], OPTIONS)?);
    }
    let again = if count % 16 == 0 { 0 } else { 16 };
    kernels::normals(&Tensor::f_rand([count + again], OPTIONS)?, count)
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
