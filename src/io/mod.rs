//! Prompts in, embeddings out. Nothing here knows of models, and of tensors only rows of float32.

pub mod destination;
pub mod format;
pub mod prompts;
