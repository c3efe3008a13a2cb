//! Weights: checkpoints in safetensors and torch files, and the LoRAs that are merged into them.
//!
//! Nothing here knows which networks the tensors belong to.

pub mod checkpoint;
pub mod lora;
pub mod pickle;
