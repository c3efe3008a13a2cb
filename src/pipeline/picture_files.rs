//! Files of pictures, a few at a time, to image embeddings. Runs over many have workers for this.

use super::load::Pipeline;
use crate::{Error, Result};
use ndarray::{Array2, Axis};
use std::path::Path;
use tch::Tensor;

/// Pictures that are encoded together.
const BATCH: usize = 16;

impl Pipeline {
    /// The image embeddings of pictures, `(pictures, dim)`. The image encoder stays loaded.
    ///
    /// # Errors
    /// As [`Pipeline::image_processor`] and [`Pipeline::image_embeds`]; [`Error::File`] if a picture cannot be read.
    pub fn encode_files(&mut self, paths: &[&Path]) -> Result<Array2<f32>> {
        let mut embeds = Array2::zeros((0, self.embedding_dim()));
        let (processor, size) = (self.image_processor()?, self.image_size()?);
        for paths in paths.chunks(BATCH) {
            let mut values = Vec::new();
            for path in paths {
                let name = path.display().to_string();
                let bytes = std::fs::read(path).map_err(|error| Error::unreadable(&name, error))?;
                let pixels = processor.pixel_values(&bytes, size, |_| ());
                values.extend(pixels.map_err(|reason| Error::file(&name, reason))?);
            }
            let [count, size] = [paths.len(), size].map(|length| length as i64);
            let pixels = Tensor::f_from_slice(&values)?.f_reshape([count, 3, size, size])?;
            let of_batch = self.image_embeds(&pixels)?;
            embeds.append(Axis(0), of_batch.view()).map_err(|error| Error::Internal(error.to_string()))?;
        }
        Ok(embeds)
    }

    /// The same of pictures that are all there are: the image encoder is loaded for them alone, and freed.
    ///
    /// # Errors
    /// As [`Pipeline::encode_files`].
    pub fn encode_pictures(&mut self, paths: &[&Path]) -> Result<Array2<f32>> {
        if paths.is_empty() {
            return Ok(Array2::zeros((0, self.embedding_dim())));
        }
        let embeds = self.encode_files(paths)?;
        self.image_encoder = None;
        Ok(embeds)
    }
}
