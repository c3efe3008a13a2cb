//! Compares each part with what the reference libraries computed: `scripts/make_fixtures.py` writes the expected
//! values.

mod checkpoints;
mod clip;
mod common;
mod components;
mod ddpm;
mod noise;
mod pipelines;
mod prior;
mod scheduler;
mod tokenizer;
