//! The noise levels of a step (DDPM, arXiv 2006.11239).

use crate::{Error, Result};
use tch::Tensor;

/// The noise levels of one step, in float32 as diffusers keeps them.
#[derive(Debug)]
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

    /// The predicted `x_0` where the model predicts the velocity (arXiv 2202.00512).
    ///
    /// # Errors
    /// As [`Levels::posterior_mean`].
    pub(super) fn original_from_velocity(&self, velocity: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let velocity_part = velocity.f_mul_scalar(f64::from(self.beta_prod_t().sqrt()))?;
        Ok(sample.f_mul_scalar(f64::from(self.alpha_prod_t.sqrt()))?.f_sub(&velocity_part)?)
    }
}

/// Refuses dynamic thresholding (arXiv 2205.11487), at which diffusers fails with embeddings.
///
/// # Errors
/// [`Error::Config`] if it is on.
pub(super) fn check_no_thresholding(thresholding: bool) -> Result<()> {
    if !thresholding {
        return Ok(());
    }
    Err(Error::key("thresholding", "is true, it must be false: it is for images, and not for embeddings"))
}

/// Checks the range that the predicted `x_0` is clipped to. libtorch refuses finite bounds that float32 cannot hold. As
/// in diffusers, 0 leaves nothing of the prediction and infinity all of it.
///
/// # Errors
/// [`Error::Config`] if it is negative, too large or NaN.
pub(super) fn check_clip_sample_range(range: f64) -> Result<()> {
    if (0.0..=f64::from(f32::MAX)).contains(&range) || range == f64::INFINITY {
        return Ok(());
    }
    let reason = format!("is {range:?}, it must be between 0 and {:?}, or Infinity", f32::MAX);
    Err(Error::key("clip_sample_range", reason))
}

/// The error of a number of steps that a model trained with `train` timesteps cannot do.
pub(super) fn impossible_steps(steps: usize, train: usize) -> Error {
    let reason = format!("{steps} steps are not possible, the model was trained with 1 to {train}");
    Error::Option { option: "steps", reason }
}

/// The error of a number of steps whose schedule is not finite, so that no embedding would be.
pub(super) fn not_a_number(steps: usize, timestep: f64) -> Error {
    let reason = format!(
        "{steps} steps are not possible: at timestep {timestep} the scheduler's own numbers are not finite, as in \
         diffusers; take another number of steps or another scheduler"
    );
    Error::Option { option: "steps", reason }
}
