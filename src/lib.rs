//! Turns text into CLIP image embeddings with a diffusion prior: the first stage of unCLIP (arXiv 2204.06125), in
//! numbers equal to those of diffusers' `PriorTransformer` pipelines.
//!
//! ```text
//! prompts file ──► io::prompts ──► tokenizer ──► text_encoder ──► prior ◄─────────┐
//!                                                                   │             │
//! .npy/.npz/… ◄─ io::writer ◄─ post-process (x · std + mean) ◄── scheduler.step ──┘
//! ```
//!
//! [`pipeline`] tells the whole story on a page, and [`job`] runs it over any number of rows. [`cli`] is what a person
//! types and sees; [`io`] reads prompts and writes embeddings; [`hub`] finds a model; [`convert`] rewrites one;
//! [`tokenizer`], [`model`] and [`diffusion`] do the work and know of none of these. At the bottom, [`files`] are what a
//! model is read from, on disk or inside the program, and [`json`] is what Python writes into them.

// In a test, a panic is how a failure is told.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod cli;
pub mod convert;
pub mod diffusion;
pub mod error;
pub mod files;
pub mod hub;
pub mod io;
pub mod job;
pub mod json;
pub mod model;
pub mod pipeline;
pub mod tokenizer;
