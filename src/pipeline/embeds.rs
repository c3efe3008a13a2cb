//! From tensors to arrays.

use crate::{Error, Result};
use ndarray::Array2;
use tch::{Kind, Tensor};

/// What [`super::Pipeline::embed`] gives, a row each.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeds {
    /// CLIP image embeddings, `(rows, embedding_dim)`.
    pub image: Array2<f32>,
    /// CLIP text embeddings of the prompts, before anything that the prior does, `(rows, text_embedding_dim)`.
    pub text: Array2<f32>,
}

/// `(rows, dim)` of any float type on any device to an array.
pub(super) fn to_array(embeds: &Tensor) -> Result<Array2<f32>> {
    let (rows, dim) = embeds.size2()?;
    let mut values = vec![0.0; (rows * dim) as usize];
    let len = values.len();
    embeds.f_to_kind(Kind::Float)?.f_to_device(tch::Device::Cpu)?.f_contiguous()?.f_copy_data(&mut values, len)?;
    Array2::from_shape_vec((rows as usize, dim as usize), values).map_err(|error| Error::Internal(error.to_string()))
}

/// The first row with NaN or infinity in it.
pub(super) fn first_non_finite(embeds: &Array2<f32>) -> Option<usize> {
    embeds.rows().into_iter().position(|row| row.iter().any(|value| !value.is_finite()))
}
