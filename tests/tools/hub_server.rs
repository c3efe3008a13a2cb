//! Serves folders as repositories for `scripts/check_hub_cache.py`, until standard input ends.
//!
//!     cargo run --release --example hub_server -- owner/name=FOLDER …
//!
//! Prints the value for `HF_ENDPOINT`, and at the end all requests on standard error.

// A tool for checks: a failure may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../hub/server.rs"]
#[allow(dead_code)]
mod server;

use anyhow::{Context, Result};
use server::{Repository, Server};
use std::io::{Read, Write, stdin, stdout};
use std::path::Path;

fn main() -> Result<()> {
    let server = Server::start();
    for argument in std::env::args().skip(1) {
        let (name, folder) = argument.split_once('=').context("usage: hub_server owner/name=FOLDER …")?;
        server.put(name, Repository::of_folder(Path::new(folder)));
    }
    let mut output = stdout();
    writeln!(output, "{}", server.endpoint())?;
    output.flush()?;
    stdin().read_to_end(&mut Vec::new())?;
    for request in server.requests("") {
        eprintln!("{}", request.line);
    }
    Ok(())
}
