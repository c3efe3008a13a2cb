//! Pictures to CLIP image embeddings.

use super::embeds::{first_non_finite, to_array};
use super::fit::check_image_encoder;
use super::layout::CONFIG;
#[cfg(feature = "images")]
use super::layout::{IMAGE_PROCESSOR, PREPROCESSOR_CONFIG};
use super::load::Pipeline;
use super::parameters::Networks;
use super::progress::Progress;
use crate::config;
use crate::error::{Component, Hint};
use crate::files::Folder;
#[cfg(feature = "images")]
use crate::images::ImageProcessor;
use crate::nn::image_encoder::{ImageEncoder, ImageEncoderConfig};
use crate::weights::checkpoint::Checkpoint;
use crate::{Error, Result};
use ndarray::Array2;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

impl Pipeline {
    /// Plans with the image encoder alone: the weights of the other networks may be absent.
    pub fn leave_only_image_encoder(&mut self) {
        self.networks = Networks::ImageEncoder;
    }

    /// The CLIP image embeddings, `(n, embedding_dim)` in float32 on the CPU, of pictures that an image processor has
    /// made pixel values of: `(n, 3, image_size, image_size)`, normalized, of any float type and device.
    ///
    /// The image encoder is loaded if need be, and stays loaded.
    ///
    /// # Errors
    /// [`Error::MissingComponent`] if the model has no image encoder, [`Error::Mismatch`] if its embeddings are not as
    /// wide as the prior's, or an error if its weights are damaged or memory runs out.
    pub fn encode_images(&mut self, pixels: &Tensor) -> Result<Tensor> {
        self.load_image_encoder(&mut ())?;
        let encoder = self.image_encoder.as_ref();
        let encoder = encoder.ok_or_else(|| Error::Internal("the image encoder is not loaded".into()))?;
        Ok(encoder.forward(pixels)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?)
    }

    /// The same as an array, once they are checked.
    ///
    /// # Errors
    /// As [`Pipeline::encode_images`], and [`Error::NotFinite`], which names the weights that are to blame.
    pub fn image_embeds(&mut self, pixels: &Tensor) -> Result<Array2<f32>> {
        self.load_image_encoder(&mut ())?;
        let start = Instant::now();
        let embeds = to_array(&self.encode_images(pixels)?)?;
        self.timings.image += start.elapsed();
        if let Some(row) = first_non_finite(&embeds) {
            let what = format!("the embedding of picture {} of {}", row + 1, embeds.nrows());
            return Err(self.explain_non_finite(&what, &[Component::ImageEncoder]));
        }
        Ok(embeds)
    }

    /// Loads the image encoder unless it is loaded.
    ///
    /// # Errors
    /// As [`Pipeline::encode_images`].
    pub fn load_image_encoder(&mut self, progress: &mut dyn Progress) -> Result<()> {
        if self.image_encoder.is_none() {
            check_image_encoder(&self.layout, self.prior_config.embedding_dim())?;
            progress.loading(Component::ImageEncoder);
            let start = Instant::now();
            self.image_encoder = Some(self.open_image_encoder()?);
            self.timings.load += start.elapsed();
        }
        Ok(())
    }

    /// The height and width in pixels that the image encoder takes.
    ///
    /// # Errors
    /// [`Error::MissingComponent`] if the model has none, or an error if its configuration is damaged.
    pub fn image_size(&self) -> Result<usize> {
        Ok(usize::try_from(self.image_encoder_config()?.image_size).unwrap_or(0))
    }

    /// Makes pixel values of pictures for [`Pipeline::encode_images`].
    ///
    /// # Errors
    /// [`Error::MissingComponent`] or [`Error::File`] if the model has no image encoder or no image processor,
    /// [`Error::Mismatch`] if the embeddings are not as wide as the prior's, and [`Error::Config`] if the processor's
    /// configuration is damaged or not supported, or its pictures have another size than the encoder takes.
    #[cfg(feature = "images")]
    pub fn image_processor(&self) -> Result<ImageProcessor> {
        let size = self.image_size()?;
        check_image_encoder(&self.layout, self.prior_config.embedding_dim())?;
        let Some(folder) = &self.layout.image_processor else {
            let [_, plain, _, old] = IMAGE_PROCESSOR;
            let reason = format!("has no image processor: neither {plain}/ nor {old}/ with {PREPROCESSOR_CONFIG}");
            let hint = Hint::Other(format!("put the {PREPROCESSOR_CONFIG} of its CLIP model in {plain}/ there").into());
            return Err(Error::file(self.layout.folder.to_string(), reason).with_hint(hint));
        };
        let processor = ImageProcessor::open(folder, PREPROCESSOR_CONFIG)?;
        processor.check_size(size)?;
        Ok(processor)
    }

    pub(super) fn image_encoder_config(&self) -> Result<ImageEncoderConfig> {
        config::read(self.image_encoder_folder()?, CONFIG)
    }

    pub(super) fn open_image_encoder(&self) -> Result<ImageEncoder> {
        let (folder, config) = (self.image_encoder_folder()?, self.image_encoder_config()?);
        let checkpoint = Checkpoint::open_folder(folder)?;
        checkpoint.build("", self.encoder_placement(), |weights| ImageEncoder::load(weights, &config))
    }

    fn image_encoder_folder(&self) -> Result<&Folder> {
        self.layout.image_encoder.as_ref().ok_or_else(|| {
            let hint = match self.layout.folder.as_path() {
                Some(_) => "give one with --image-encoder, or put it in a folder image_encoder/ there",
                None => "build the program from its repository, which has it, or give another model",
            };
            Error::MissingComponent {
                component: Component::ImageEncoder,
                path: self.layout.folder.to_string(),
                hint: Some(Hint::Other(hint.into())),
            }
        })
    }
}
