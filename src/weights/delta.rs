//! Low-rank changes to matrices, which checkpoints add to them when they are read.

use crate::error::{Error, Result};
use tch::Tensor;

/// A change to a matrix W: `W - base + scale · strength · up · down`, in float32.
///
/// Source: PEFT 0.21 `tuners/lora/layer.py`.
#[derive(Debug)]
pub(crate) struct Delta {
    /// A, `(rank, inputs)`.
    pub(crate) down: Tensor,
    /// B, `(outputs, rank)`.
    pub(crate) up: Tensor,
    /// Alpha over the rank.
    pub(crate) strength: f64,
    /// The user's factor.
    pub(crate) scale: f64,
    /// The part of W that training started from, which is not in W any more.
    pub(crate) base: Option<Base>,
}

impl Delta {
    /// Adds all of them to `weight`, a matrix `(outputs, inputs)` in float32 on the CPU.
    ///
    /// As when PEFT loads them in turn, the base of each is taken from the matrix that those before it left, and in full,
    /// whatever the scale.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a base is to be taken from a matrix with a NaN or an infinity; if memory runs out.
    pub(crate) fn add_all(deltas: &[Self], weight: &mut Tensor) -> Result<()> {
        for Self { down, strength, base, .. } in deltas {
            if let Some(base) = base {
                let part = base.part(weight, down.size()[0], *strength)?;
                let _ = weight.f_sub_(&part)?;
            }
        }
        for Self { down, up, strength, scale, .. } in deltas {
            let _ = weight.f_add_(&up.f_matmul(down)?.f_mul_scalar(scale * strength)?)?;
        }
        Ok(())
    }

    /// The shape `(outputs, inputs)` of the matrix that it changes.
    pub(crate) fn shape(&self) -> [i64; 2] {
        [self.up.size()[0], self.down.size()[1]]
    }

    /// The same delta, sharing its tensors.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self { down: self.down.shallow_clone(), up: self.up.shallow_clone(), ..*self }
    }
}

/// The part of a matrix that a LoRA's training started from: its initialization subtracted the part from the matrix, so that
/// nothing changes before training. To load the LoRA, the part has to be subtracted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// The largest singular values and their vectors (PiSSA, arXiv 2404.02948).
    Principal,
    /// The same, from a randomized algorithm whose random numbers are not known.
    RandomizedPrincipal,
    /// The first columns and rows of the QR decomposition, times the strength (OLoRA, arXiv 2406.01775).
    Orthogonal,
}

impl Base {
    /// Whether a LoRA of this strength can start from it: PEFT divides by the strength, and takes its square root.
    pub(crate) fn allows_strength(self, strength: f64) -> bool {
        self == Self::Orthogonal || strength > 0.0
    }

    /// The part of `weight`, `(outputs, inputs)` in float32, for a LoRA of this rank and strength.
    fn part(self, weight: &Tensor, rank: i64, strength: f64) -> Result<Tensor> {
        if weight.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            let reason = "a matrix that a LoRA decomposes holds NaN or infinity".into();
            return Err(Error::NotFinite { reason, hint: None });
        }
        let rank = weight.size().into_iter().fold(rank, i64::min);
        match self {
            Self::Principal | Self::RandomizedPrincipal => {
                let (left, values, right) = weight.f_svd(true, true)?;
                let left = left.f_narrow(1, 0, rank)?.f_mul(&values.f_narrow(0, 0, rank)?)?;
                Ok(left.f_matmul(&right.f_narrow(1, 0, rank)?.f_tr()?)?)
            }
            Self::Orthogonal => {
                let (left, right) = Tensor::f_linalg_qr(weight, "reduced")?;
                let part = left.f_narrow(1, 0, rank)?.f_matmul(&right.f_narrow(0, 0, rank)?)?;
                Ok(part.f_mul_scalar(strength)?)
            }
        }
    }
}
