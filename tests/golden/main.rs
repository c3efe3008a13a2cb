//! Compares each part with what the reference libraries computed: `scripts/make_fixtures.py` writes the expected values.

// In a test, a panic is how a failure is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checkpoints;
mod clip;
mod common;
mod ddpm;
mod noise;
mod pipelines;
mod prior;
mod scheduler;
mod tokenizer;
