//! The networks of a prior pipeline, the text encoder, the image encoder and the prior; and the built-in decoder.
//!
//! Modules and fields have the names of the checkpoint.

pub mod clip;
pub mod decoder;
pub mod image_encoder;
pub mod layers;
pub mod prior;
pub mod text_encoder;
