//! Weights: checkpoints in safetensors and torch files, LoRAs, and the types that networks compute in.
//!
//! Nothing here knows which network the tensors belong to.

pub mod checkpoint;
mod delta;
pub mod lora;
pub mod parameter_count;
pub mod pickle;
pub mod precision;
