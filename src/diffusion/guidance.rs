//! Classifier-free guidance (arXiv 2207.12598; `w` of equation 2 in the Imagen paper, arXiv 2205.11487).

use crate::Result;
use tch::Tensor;

/// How far a prediction is pushed from the unconditional one towards, and beyond, the conditional one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance(f64);

impl Guidance {
    /// Guidance of the given scale. It is off at 1 and below: then only the conditional prediction is needed.
    pub fn new(scale: f64) -> Self {
        Self(scale)
    }

    /// Whether an unconditional prediction is needed.
    pub fn is_on(self) -> bool {
        self.0 > 1.0
    }

    /// `unconditional + scale · (conditional - unconditional)`, all of one shape.
    ///
    /// # Errors
    /// If the shapes differ or memory runs out.
    pub fn combine(self, unconditional: &Tensor, conditional: &Tensor) -> Result<Tensor> {
        let direction = conditional.f_sub(unconditional)?;
        Ok(unconditional.f_add(&direction.f_mul_scalar(self.0)?)?)
    }
}
