//! `prior-embed merge PART… --out FILE`: joins the outputs of shards.

use super::args::{MergeArgs, idle};
use super::check_stdout;
use super::progress::Screen;
use crate::output::is_stream;
use crate::output::merge::{MergeOptions, merge};
use anyhow::Result;

/// Joins and checks the parts.
///
/// # Errors
/// [`crate::error::BadInput`] if they do not belong together or a row is missing, and whatever goes wrong on the way.
pub fn run(args: &MergeArgs, screen: &Screen) -> Result<()> {
    let (out, format) = args.target.target()?;
    if out.as_os_str() == "-" {
        check_stdout()?;
    }
    if args.cache.cache_dir.is_some() {
        idle("--cache-dir", "merge opens no model");
    }
    if args.overwrite && is_stream(&out) {
        idle("--overwrite", "nothing is replaced where the output is a stream");
    }
    let options = MergeOptions { format, rows_per_file: args.target.rows_per_file(), overwrite: args.overwrite };
    let spinner = screen.spinner();
    spinner.set_message("merging");
    let merged = merge(&args.parts, &out, &options);
    spinner.finish_and_clear();
    let parts = args.parts.len();
    if let Some(rows) = merged?.filter(|_| out.as_os_str() != "-") {
        screen.note(&format!("{rows} rows of {parts} parts are in {:?}", out.display().to_string()));
    }
    Ok(())
}
