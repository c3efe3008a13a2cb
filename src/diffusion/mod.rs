//! Diffusion: noise, schedulers, guidance, and the denoising loop. Knows no prompts and no files.

mod betas;
pub mod guidance;
mod levels;
pub mod noise;
mod numpy;
pub mod prediction;
pub mod sampler;
pub mod scheduler;
pub mod schedulers;
mod sigmas;
pub mod spacing;
