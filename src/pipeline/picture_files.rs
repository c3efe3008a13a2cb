//! Picture files to image embeddings.

use super::load::Pipeline;
use crate::{Error, Result};
use ndarray::Array2;
use std::path::Path;

impl Pipeline {
    /// The image embeddings of pictures, `(pictures, dim)`.
    ///
    /// # Errors
    /// [`Error::Option`]: pictures are not read yet.
    pub fn encode_pictures(&mut self, paths: &[&Path]) -> Result<Array2<f32>> {
        match paths.first() {
            Some(path) => {
                let reason = format!("{path:?} is a picture; give its embedding, as a row of a .npy file");
                Err(Error::Option { option: "picture", reason })
            }
            None => Ok(Array2::zeros((0, self.embedding_dim()))),
        }
    }
}
