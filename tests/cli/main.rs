//! Runs the real binary, as a user does.

// In a test, a panic is how a failure is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod builtin;
mod checkpoints;
mod common;
mod components;
mod dialects;
mod faults;
mod foreign;
mod formats;
mod given;
mod lora;
mod one_step;
mod output;
mod precision;
mod provenance;
mod resume;
mod rows;
mod schedulers;
mod score;
mod shap_e;
mod shards;
mod streams;
mod terminal;
mod usage;
