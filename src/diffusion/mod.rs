//! Diffusion: noise streams, schedulers (one file each), guidance, and the denoising loop.
//!
//! Nothing here knows of prompts, files or screens.

mod betas;
pub mod guidance;
mod levels;
pub mod noise;
pub mod sampler;
pub mod scheduler;
pub mod schedulers;
