//! Noise levels: what a step of DDPM (arXiv 2006.11239) makes of a schedule.

use crate::error::Error;
use anyhow::Result;
use tch::Tensor;

/// The noise levels of one step, in float32 as diffusers keeps them.
pub(super) struct Levels {
    pub(super) alpha_prod_t: f32,
    pub(super) alpha_prod_t_prev: f32,
    pub(super) beta: f32,
    pub(super) alpha: f32,
}

impl Levels {
    pub(super) fn beta_prod_t(&self) -> f32 {
        1.0 - self.alpha_prod_t
    }

    fn beta_prod_t_prev(&self) -> f32 {
        1.0 - self.alpha_prod_t_prev
    }

    /// Variance of the posterior `q(x_{t-1} | x_t, x_0)`, formula (7) of DDPM.
    pub(super) fn posterior_variance(&self) -> f32 {
        self.beta_prod_t_prev() / self.beta_prod_t() * self.beta
    }

    /// Mean of the posterior, formula (7) of DDPM; both tensors are `(rows, dim)`.
    ///
    /// # Errors
    /// If the shapes differ or memory runs out.
    pub(super) fn posterior_mean(&self, original_sample: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let original_coeff = self.alpha_prod_t_prev.sqrt() * self.beta / self.beta_prod_t();
        let current_coeff = self.alpha.sqrt() * self.beta_prod_t_prev() / self.beta_prod_t();
        let original_part = original_sample.f_mul_scalar(f64::from(original_coeff))?;
        Ok(original_part.f_add(&sample.f_mul_scalar(f64::from(current_coeff))?)?)
    }

    /// The predicted `x_0` where the model predicts the noise, formula (15) of DDPM.
    ///
    /// # Errors
    /// As [`Levels::posterior_mean`].
    pub(super) fn original_from_noise(&self, noise: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let noise_part = noise.f_mul_scalar(f64::from(self.beta_prod_t().sqrt()))?;
        Ok(sample.f_sub(&noise_part)?.f_div_scalar(f64::from(self.alpha_prod_t.sqrt()))?)
    }
}

/// Checks the range that a scheduler clips the predicted `x_0` to: libtorch takes no finite number that float32 does not
/// hold. With 0 nothing is left of the prediction, and with infinity all, as in diffusers.
///
/// # Errors
/// [`crate::error::BadInput`] if it is no such range.
pub(super) fn check_clip_sample_range(range: f64) -> crate::Result<()> {
    if (0.0..=f64::from(f32::MAX)).contains(&range) || range == f64::INFINITY {
        return Ok(());
    }
    let reason = format!("is {range:?}, it must be between 0 and {:?}, or Infinity", f32::MAX);
    Err(Error::key("clip_sample_range", reason))
}
