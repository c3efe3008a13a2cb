//! Text to CLIP image embeddings with a diffusion prior, the first stage of unCLIP (arXiv 2204.06125): the numbers of
//! diffusers' `PriorTransformer` pipelines, on libtorch, without Python.
//!
//! ```
//! use prior_embed::{EmbedOptions, Prior};
//!
//! # fn main() -> prior_embed::Result<()> {
//! let mut prior = Prior::builtin()?; // or Prior::open(folder), or Prior::from_pretrained("kandinsky-2.2")
//! let out = prior.embed(&["a red apple", "two cats"], &EmbedOptions::new().seed(0))?;
//! assert_eq!(out.image_embeds.dim(), (2, prior.embedding_dim()));
//! # Ok(())
//! # }
//! ```
//!
//! A decoder (Kandinsky 2.x, Karlo, Stable unCLIP) turns an embedding into a picture; an index finds pictures by it.
//!
//! # Features
//!
//! All are on by default. `default-features = false` leaves the library alone.
//!
//! - `cli`: the program `prior-embed`.
//! - `draw`: [`Prior::draw`]; the decoder, 13 MB, is in the repository and not in the package on crates.io.
//! - `hub`: [`Prior::from_pretrained`].
//! - `images`: [`Prior::encode_images`].
//! - `serve`: `prior-embed serve`.
//! - `download-libtorch` (off): libtorch is downloaded by the build.
//!
//! # libtorch
//!
//! The build finds libtorch as the `tch` crate does, in `LIBTORCH`. `cargo run` and `cargo test` find it too. A program
//! that runs on its own finds it in `LD_LIBRARY_PATH`, or where a build script of two lines says:
//!
//! ```no_run
//! let libtorch = std::env::var("DEP_PRIOR_EMBED_LIBTORCH_LIB").expect("prior-embed is a dependency");
//! println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}");
//! ```
//!
//! With a CUDA build of libtorch, it also has to print
//! `cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cuda,--pop-state`.
//!
//! # Effects on the process
//!
//! None: no global generator, thread count, logger, panic hook or environment variable is changed, and nothing is
//! printed. Warnings go to the `log` facade.

// The modules, from top to bottom; each uses only what is below it:
// cli, prior → serve → job → rows, output → convert → hub → pipeline → tokenizer, images → diffusion → nn → weights → kernels →
// leaves.

// In a test, a panic is a failure.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
// The program uses parts of the modules that the library alone does not.
#![cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports, unused_macros))]

mod arithmetic;
#[cfg(feature = "cli")]
mod atomic;
mod bad_input;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod config;
#[cfg(feature = "cli")]
mod convert;
mod diffusion;
#[cfg(feature = "cli")]
mod dir;
mod error;
mod files;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "images")]
mod images;
#[cfg(feature = "cli")]
mod job;
mod json;
mod kernels;
mod nn;
#[cfg(feature = "cli")]
mod output;
mod pipeline;
mod prior;
#[cfg(feature = "cli")]
mod rows;
#[cfg(feature = "cli")]
mod search;
#[cfg(feature = "serve")]
mod serve;
mod text;
mod tokenizer;
mod weights;

pub use arithmetic::slerp;
pub(crate) use bad_input::bad_input;
pub use error::{Component, DownloadCommand, Error, Hint, HubError, HubErrorKind, Result};
pub use pipeline::{Conditions, Progress, Truncation};
pub use prior::{ComponentSource, Device, EmbedOptions, Embeddings, Item, LoadOptions, Prior};
pub use weights::precision::Precision;

/// For `tests/tools/tokenize.rs`.
#[doc(hidden)]
pub use tokenizer::Tokenizer;

// These compare each part with the reference, and need its insides.
#[cfg(test)]
#[path = "../tests/golden/mod.rs"]
mod golden;
#[cfg(test)]
#[path = "../tests/properties/mod.rs"]
mod properties;
