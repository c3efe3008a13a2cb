//! Runs the real binary as a server, over real sockets.

// In a test, a panic is how a failure is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
#[path = "../cli/common.rs"]
#[allow(dead_code)]
mod common;
mod ends;
mod equality;
mod limits;
mod log;
mod page;
mod refused;
mod routes;
