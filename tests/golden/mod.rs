//! Compares each part with what the reference libraries computed: `scripts/make_fixtures.py` writes the expected
//! values.

mod checkpoints;
mod clip;
mod common;
mod ddpm;
#[cfg(feature = "cli")]
mod given;
mod noise;
mod pipelines;
mod prior;
mod scheduler;
mod tokenizer;
