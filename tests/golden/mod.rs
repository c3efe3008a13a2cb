//! Compares each part with what the reference libraries computed: `scripts/make_fixtures.py` writes the expected
//! values.

mod autoregressive;
mod checkpoints;
mod clip;
mod common;
mod components;
mod ddpm;
mod drawing;
#[cfg(feature = "cli")]
mod given;
#[cfg(feature = "cli")]
mod images;
mod mixing;
mod noise;
mod one_step;
mod pipelines;
mod prior;
mod samplers;
mod scheduler;
mod shap_e;
mod tokenizer;
