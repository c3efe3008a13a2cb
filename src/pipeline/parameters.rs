//! The networks that a run needs, and how many parameters they have.

use super::layout::Layout;
use crate::Result;
use crate::files::Folder;
use crate::nn::image_encoder::ImageEncoder;
use crate::nn::text_encoder::TextEncoder;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::parameter_count::ParameterCount;

/// The networks that runs need; the weights of others may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Networks {
    /// The text encoder and the prior.
    TextAndPrior,
    /// The prior: what stands in the place of prompts needs no text encoder.
    Prior,
    /// The image encoder.
    ImageEncoder,
}

/// How many each network has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameters {
    /// 0 if it is not needed.
    pub(super) prior: ParameterCount,
    /// 0 if it is not needed.
    pub(super) text_encoder: ParameterCount,
    /// 0 if the model has none.
    pub(super) image_encoder: ParameterCount,
}

impl Parameters {
    /// Counts them in the headers of the files.
    ///
    /// # Errors
    /// If weights are missing or damaged.
    pub(super) fn count(layout: &Layout, networks: Networks) -> Result<Self> {
        let count = |folder: &Folder, others: &[&str]| -> Result<ParameterCount> {
            Ok(Checkpoint::open_folder(folder)?.parameters_beside(others))
        };
        let prior = Some(&layout.prior).filter(|_| networks != Networks::ImageEncoder);
        let text_encoder = Some(&layout.text_encoder).filter(|_| networks == Networks::TextAndPrior);
        let image_encoder = match networks {
            Networks::ImageEncoder => layout.image_encoder.as_ref(),
            _ => layout.zero_image_encoder(),
        };
        let none = ParameterCount::default();
        Ok(Self {
            prior: prior.map_or(Ok(none), |folder| count(folder, &[]))?,
            text_encoder: text_encoder.map_or(Ok(none), |folder| count(folder, &TextEncoder::REST_OF_CLIP))?,
            image_encoder: image_encoder.map_or(Ok(none), |folder| count(folder, &ImageEncoder::REST_OF_CLIP))?,
        })
    }
}
