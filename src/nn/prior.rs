//! The diffusion prior: predicts a CLIP image embedding from a noisy one, a timestep and an encoded caption.
//!
//! Source: diffusers 0.42 `models/transformers/prior_transformer.py`, `PriorTransformer`; section 2.2 of the unCLIP
//! paper (arXiv 2204.06125). The sequence is `[text states | text embedding | timestep | x_t | learned query]`.
//!
//! [`PriorTransformer::forward`] runs the whole sequence, as diffusers does. The cached step makes the same prediction
//! from two new tokens: [`PriorTransformer::step`], or [`PriorTransformer::step_static`] on a device. A one-step prior has
//! no timestep, and [`PriorTransformer::predict`] runs its sequence once.
//!
//! The paper's other prior, [`AutoregressivePrior`], is a class of its own: [`Network`] is one of the two.

mod autoregressive;
mod block;
mod cache;
mod config;
mod network;
mod one_step;
mod static_cache;
mod timestep;
mod transformer;

pub use autoregressive::{AutoregressiveConfig, AutoregressivePrior};
pub use cache::{Branch, Prefix, TextCondition, TimestepCache};
pub use config::{PriorConfig, PriorKind};
pub use network::{Network, NetworkConfig};
pub use static_cache::StaticCache;
pub use transformer::PriorTransformer;
