//! A look at where outputs are to go, before the work that decides what they hold.

use super::paths::{check_free, check_paths, has_stopped_run, resolve, shown};
use super::{Output, OutputFormat, WriteOptions, stream};
use crate::error::OrBadInput;
use crate::files::parent;
use anyhow::Result;
use std::path::Path;
use tempfile::tempfile_in;

/// Checks that the outputs can be written, as far as this can be known without writing them. [`super::EmbeddingWriter`]
/// checks again.
///
/// # Errors
/// [`crate::error::BadInput`] if the options do not fit together, an output is there already and must stay, or nothing can
/// be written where it is to go.
pub fn check(options: &WriteOptions) -> Result<()> {
    options.check()?;
    let filed = options.outputs.iter().filter(|output| !stream::is_stream(&output.path));
    let outputs: Vec<Output> = filed.cloned().map(resolve).collect();
    check_paths(&outputs, options.shard.is_some())?;
    // A shard that is there already may be the one that is asked for.
    let may_be_there = options.resume && (options.shard.is_some() || outputs.first().is_some_and(has_stopped_run));
    if !may_be_there {
        check_free(&outputs, options)?;
    }
    for output in &outputs {
        let is_made = output.format == OutputFormat::Folder && output.path.is_dir();
        let folder: &Path = if is_made { &output.path } else { parent(&output.path) };
        let failed = || format!("cannot write {}: folder {folder:?} cannot be written to", shown(&output.path));
        tempfile_in(folder).or_bad_input(failed)?;
    }
    Ok(())
}
