//! Weights to modules: what a checkpoint holds, and the three networks of a prior pipeline.
//!
//! Nothing here knows of prompts, output files or screens. Module and field names are the checkpoint's names.

pub mod checkpoint;
pub mod clip;
pub mod config;
pub mod image_encoder;
pub mod kernels;
pub mod layers;
pub mod lora;
pub mod pickle;
pub mod precision;
pub mod prior;
pub mod text_encoder;
