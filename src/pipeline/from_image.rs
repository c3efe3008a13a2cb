//! Image embeddings in place of pure noise to start from, of which a part of the schedule keeps more or less.
//!
//! Source: diffusers 0.42 `pipelines/kandinsky2_2/pipeline_kandinsky2_2_prior_emb2emb.py`. As there, the embedding goes in
//! as it is, without the prior's `clip_mean` and `clip_std`.

use super::load::Pipeline;
use super::request::{Row, Settings};
use crate::diffusion::noise::BatchNoise;
use crate::diffusion::scheduler::Scheduler;
use crate::nn::prior::PriorKind;
use crate::{Error, Result};
use tch::{Kind, Tensor};

impl Settings {
    /// The step that denoising starts at: all but `int(steps * strength)` are left out.
    pub(super) fn first_step(&self) -> usize {
        let Some(strength) = self.strength else { return 0 };
        // A float becomes the whole number below it, and at least 0.
        self.steps - ((self.steps as f64 * strength) as usize).min(self.steps)
    }

    /// The timesteps that are run.
    pub(super) fn timesteps<'a>(&self, scheduler: &'a dyn Scheduler) -> &'a [f64] {
        scheduler.timesteps().get(self.first_step()..).unwrap_or_default()
    }

    /// Whether no step is left, so that rows keep the embedding that they start from.
    pub fn keeps_images(&self) -> bool {
        self.strength.is_some() && self.first_step() == self.steps
    }
}

impl Pipeline {
    /// Checks that rows may start from image embeddings.
    ///
    /// # Errors
    /// [`Error::Option`] if the model is of a kind, or has a scheduler, that diffusers does not do this with.
    pub fn check_takes_images(&self) -> Result<()> {
        let refused = |reason| Err(Error::Option { option: "image", reason });
        match (&self.scheduler, self.scheduler_class()) {
            _ if self.kind() != PriorKind::Diffusion => {
                refused(format!("{} has {}, which takes no image to start from", self.folder(), self.kind().title()))
            }
            (Some(scheduler), Some(class)) if !scheduler.adds_noise() => {
                refused(format!("an image to start from needs the scheduler unclip, and this is {}", class.name))
            }
            _ => Ok(()),
        }
    }
}

/// The image embeddings that rows start from, `(rows, dim)`, float32, on the device of `like`.
///
/// # Errors
/// If a row has none, or another size; or memory runs out.
pub(super) fn images(rows: &[Row], like: &Tensor) -> Result<Tensor> {
    let missing = || Error::Internal("a row has no image to start from".into());
    let images = rows.iter().map(|row| row.image.ok_or_else(missing)).collect::<Result<Vec<_>>>()?;
    let images = Tensor::f_from_slice(&images.concat())?.f_reshape([rows.len() as i64, -1])?;
    Ok(images.f_to_device(like.device())?.f_to_kind(Kind::Float)?)
}

/// Replaces pure noise by images that have as much of it as there is before `first_step`.
///
/// # Errors
/// If the scheduler adds no noise, shapes do not fit or memory runs out.
pub(super) fn start_from(
    images: &Tensor,
    first_step: usize,
    scheduler: &dyn Scheduler,
    noise: &mut BatchNoise,
) -> Result<()> {
    noise.latents = scheduler.add_noise(first_step, images, &noise.latents)?;
    noise.first_step = first_step;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_that_of_diffusers() {
        // `steps - min(int(steps * strength), steps)` in Python.
        for (steps, strength, first) in [
            (25, 1.0, 0),
            (25, 0.3, 18),
            (25, 0.0, 25),
            (25, 0.039, 25),
            (25, 0.04, 24),
            (10, 0.7, 3),
            (100, 0.29, 72),
            (100, 0.57, 44),
            (1, 0.999, 1),
        ] {
            let settings = Settings { strength: Some(strength), ..Settings::new(steps, 4.0) };
            assert_eq!(settings.first_step(), first, "{steps} {strength}");
            assert_eq!(settings.keeps_images(), first == steps);
        }
        assert_eq!(Settings::new(25, 4.0).first_step(), 0);
    }
}
