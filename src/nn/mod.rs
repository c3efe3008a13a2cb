//! The three networks of a prior pipeline: the text encoder, the image encoder and the prior.
//!
//! Module and field names are the checkpoint's names.

pub mod clip;
pub mod image_encoder;
pub mod layers;
pub mod precision;
pub mod prior;
pub mod text_encoder;
