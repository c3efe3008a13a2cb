//! Turns text into CLIP image embeddings with a diffusion prior: the first stage of unCLIP (arXiv 2204.06125), in
//! numbers equal to those of diffusers' `PriorTransformer` pipelines.
//!
//! ```text
//! prompts file ──► rows ──► tokenizer ──► text_encoder ──► prior ◄─────────────┐
//!                                                            │                 │
//! .npy/.npz/… ◄─ output ◄─ post-process (x · std + mean) ◄── scheduler.step ──┘
//! ```
//!
//! [`pipeline`] tells the whole story on a page, and [`job`] runs it over any number of rows. [`cli`] is what a person
//! types and sees; [`rows`] reads prompts and [`output`] writes embeddings; [`hub`] finds a model; [`convert`] rewrites one;
//! [`tokenizer`], [`nn`], [`weights`] and [`diffusion`] do the work and know of none of these. At the bottom, [`files`] are what a
//! model is read from, on disk or inside the program, and [`json`] is what Python writes into them.

// In a test, a panic is how a failure is told.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[doc(hidden)]
pub mod cli;
mod config;
mod convert;
mod diffusion;
#[doc(hidden)]
pub mod error;
mod files;
mod hub;
mod job;
mod json;
mod kernels;
#[doc(hidden)]
pub mod nn;
mod output;
#[doc(hidden)]
pub mod pipeline;
#[doc(hidden)]
pub mod rows;
#[doc(hidden)]
pub mod tokenizer;
mod weights;

pub use error::{Component, DownloadCommand, Error, Hint, HubError, HubErrorKind, Result};

// These compare each part with the reference, and need its insides.
#[cfg(test)]
#[path = "../tests/golden/mod.rs"]
mod golden;
#[cfg(test)]
#[path = "../tests/properties/mod.rs"]
mod properties;
