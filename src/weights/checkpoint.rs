//! Checkpoints: safetensors and torch files, whole or in shards, read in place and checked against what a network
//! needs.

mod architecture;
mod archive;
pub mod candidates;
mod entry;
mod export;
mod find;
pub mod index;
mod original;
mod report;
mod stacked;
mod store;
pub mod textual_inversion;
mod torch;
mod view;
mod weights;

pub(crate) use stacked::StackedWeight;
pub use store::{Checkpoint, weight_files};
pub use weights::{Placement, Weights};
