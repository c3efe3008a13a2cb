//! `prior-embed merge PART… --out FILE`: joins the outputs of shards.

use super::args::{TargetArgs, warn_no_effect};
use super::context::Context;
use super::stdout;
use crate::output::is_stream;
use crate::output::merge::{MergeOptions, merge};
use anyhow::Result;
use std::path::PathBuf;

/// Join the outputs of all shards of a run, and check that no row is missing
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The outputs of all shards, in any order
    #[arg(value_name = "PART", required = true)]
    parts: Vec<PathBuf>,

    #[command(flatten)]
    target: TargetArgs,

    /// Write the parts' provenance, which a .safetensors output holds anyway, as JSON to this file
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    provenance: Option<PathBuf>,

    /// Replace an existing output
    #[arg(help_heading = "Output", long)]
    overwrite: bool,
}

/// Joins and checks the parts.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if they do not belong together or a row is missing, and whatever goes wrong on the way.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let screen = &context.screen;
    let (out, format) = args.target.target()?;
    if out.as_os_str() == "-" {
        stdout::check()?;
    }
    if context.hub.cache_dir.is_some() {
        warn_no_effect("--cache-dir", "merge uses no model");
    }
    if args.overwrite && is_stream(&out) {
        warn_no_effect("--overwrite", "a stream replaces nothing");
    }
    let options = MergeOptions {
        format,
        rows_per_file: args.target.rows_per_file(),
        overwrite: args.overwrite,
        provenance: args.provenance.clone(),
    };
    let spinner = screen.spinner();
    spinner.set_message("merging");
    let merged = merge(&args.parts, &out, &options);
    spinner.finish_and_clear();
    let parts = args.parts.len();
    if let Some(rows) = merged?.filter(|_| out.as_os_str() != "-") {
        screen.note(&format!("{rows} rows of {parts} parts are in {:?}", out.display().to_string()));
    }
    Ok(0)
}
