//! Runs the real binary against a server that speaks the hub's routes.

// In a test, a panic is how a failure is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cache;
mod commands;
#[path = "../cli/common.rs"]
#[allow(dead_code)]
mod common;
mod download;
mod patience;
mod place;
mod refused;
mod repair;
#[allow(dead_code)]
mod server;
