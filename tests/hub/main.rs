//! Runs the binary against a server with the hub's routes.

// Tests fail by panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cache;
mod commands;
#[path = "../cli/common.rs"]
#[allow(dead_code)]
mod common;
mod components;
mod datasets;
mod download;
mod patience;
mod place;
mod refused;
mod repair;
#[allow(dead_code)]
mod server;
