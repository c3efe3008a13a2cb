//! The image embedding of a black image, which decoders take as the negative embedding when there is no negative prompt
//! (`get_zero_embed` in diffusers' Kandinsky prior pipelines).

use super::embeds::{first_non_finite, to_array};
use super::fit::check_image_encoder;
use super::layout::{Layout, ZERO_IMAGE_EMBED};
use super::load::Pipeline;
use crate::error::{Component, Hint};
use crate::weights::checkpoint::{Checkpoint, Placement};
use crate::weights::precision::Precision;
use crate::{Error, Result};
use ndarray::Array1;
use std::time::Instant;
use tch::Device;

impl Pipeline {
    /// The embedding of a black image, `(embedding_dim)`; `None` if the model has neither an image encoder nor
    /// [`ZERO_IMAGE_EMBED`].
    ///
    /// The image encoder is loaded for this alone. The other networks are freed before, and loaded again when they are
    /// needed.
    ///
    /// # Errors
    /// If the image encoder or the file is damaged; [`Error::NotFinite`] if the embedding is not finite.
    pub fn zero_embed(&mut self) -> Result<Option<Array1<f32>>> {
        if self.layout.zero_image_encoder().is_none() {
            return self.read_zero_embed();
        }
        check_image_encoder(&self.layout, self.prior_config.embedding_dim())?;
        self.text.encoder = None;
        (self.prior, self.negative) = (None, None);
        let start = Instant::now();
        let encoder = self.open_image_encoder()?;
        self.timings.load += start.elapsed();
        let embed = to_array(&encoder.zero_embed()?)?;
        if first_non_finite(&embed).is_some() {
            return Err(self.explain_non_finite("the embedding of a black image", &[Component::ImageEncoder]));
        }
        Ok(Some(embed.row(0).to_owned()))
    }

    /// The same from [`ZERO_IMAGE_EMBED`].
    fn read_zero_embed(&self) -> Result<Option<Array1<f32>>> {
        let Layout { folder, has_zero_image_embed: true, .. } = &self.layout else { return Ok(None) };
        let checkpoint = Checkpoint::open_file(folder, ZERO_IMAGE_EMBED)?;
        let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
        let shape = [1, self.prior_config.embedding_dim()];
        let embed = to_array(&checkpoint.build("", placement, |weights| weights.tensor("image_embeds", &shape))?)?;
        if first_non_finite(&embed).is_some() {
            let path = folder.path_of(ZERO_IMAGE_EMBED);
            let reason = format!("the embedding of a black image is not finite: {path} has NaN or infinity in it");
            return Err(Error::NotFinite { reason, hint: Some(Hint::FetchAgain) });
        }
        Ok(Some(embed.row(0).to_owned()))
    }

    /// Whether [`Pipeline::zero_embed`] gives one.
    pub fn has_zero_embed(&self) -> bool {
        !self.prior_config.is_sequence() && (self.layout.image_encoder.is_some() || self.layout.has_zero_image_embed)
    }
}
