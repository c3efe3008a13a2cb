//! Prompts in, embeddings out. Nothing here knows of models, and of tensors only rows of float32.

pub(crate) mod atomic;
pub mod destination;
pub(crate) mod dir;
pub mod fingerprint;
pub mod journal;
pub mod merge;
pub mod prompts;
pub mod shard;
pub mod writer;
