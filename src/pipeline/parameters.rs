//! The networks that a run needs, and how many weights they have.

use super::layout::Layout;
use crate::Result;
use crate::files::Folder;
use crate::nn::image_encoder::ImageEncoder;
use crate::nn::text_encoder::TextEncoder;
use crate::weights::checkpoint::Checkpoint;

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

/// Number of weights of each network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameters {
    /// 0 if it is not needed.
    pub(super) prior: u64,
    /// 0 if it is not needed.
    pub(super) text_encoder: u64,
    /// 0 if the model has none.
    pub(super) image_encoder: u64,
}

impl Parameters {
    /// Counts them in the headers of the files.
    ///
    /// # Errors
    /// If weights are missing or damaged.
    pub(super) fn count(layout: &Layout, networks: Networks) -> Result<Self> {
        let count = |folder: &Folder, others: &[&str]| -> Result<u64> {
            Ok(Checkpoint::open_folder(folder)?.parameters_beside(others))
        };
        let prior = Some(&layout.prior).filter(|_| networks != Networks::ImageEncoder);
        let text_encoder = Some(&layout.text_encoder).filter(|_| networks == Networks::TextAndPrior);
        let image_encoder = match networks {
            Networks::ImageEncoder => layout.image_encoder.as_ref(),
            _ => layout.zero_image_encoder(),
        };
        Ok(Self {
            prior: prior.map_or(Ok(0), |folder| count(folder, &[]))?,
            text_encoder: text_encoder.map_or(Ok(0), |folder| count(folder, &TextEncoder::REST_OF_CLIP))?,
            image_encoder: image_encoder.map_or(Ok(0), |folder| count(folder, &ImageEncoder::REST_OF_CLIP))?,
        })
    }
}
