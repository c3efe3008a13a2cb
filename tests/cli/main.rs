//! Runs the real binary, as a user does.

// In a test, a panic is how a failure is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod autoregressive;
mod bad_input;
mod best_of;
mod builtin;
mod checkpoints;
mod common;
mod components;
mod dialects;
#[cfg(feature = "draw")]
mod draw;
mod encode_image;
mod faults;
mod foreign;
mod formats;
mod given;
mod inputs;
mod lora;
mod mixing;
mod one_step;
mod output;
mod precision;
mod provenance;
mod resume;
mod row_noise;
mod rows;
mod schedulers;
mod score;
mod shap_e;
mod shards;
mod streams;
mod terminal;
mod usage;
