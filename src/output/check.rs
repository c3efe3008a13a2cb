//! A look at where outputs are to go, before the work that decides what they hold.

use super::claim;
use super::paths::{check_free, check_paths, has_stopped_run, record_file, resolve, shown, working_folder};
use super::{OutputFormat, WriteOptions, stream};
use crate::bad_input::OrBadInput;
use crate::files::parent;
use anyhow::Result;
use std::path::Path;
use tempfile::tempfile_in;

/// Checks that the outputs can be written, as far as this can be known without writing them. [`super::EmbeddingWriter`]
/// checks again.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the options do not fit together, an output is there already and must stay, or nothing can
/// be written where it is to go.
pub fn check(options: &WriteOptions) -> Result<()> {
    options.check()?;
    let filed = options.outputs.iter().filter(|output| !stream::is_stream(&output.path));
    let outputs = filed.cloned().map(resolve).collect::<Result<Vec<_>>>()?;
    check_paths(&outputs, options)?;
    if let Some(main) = outputs.first() {
        claim::check(&working_folder(main), &shown(&main.path))?;
        // What is there already may be what is asked for.
        let is_done = options.shard.is_some() || record_file(&main.path).is_some_and(|file| file.is_file());
        if !(options.resume && (is_done || has_stopped_run(main))) {
            check_free(&outputs, options)?;
        }
    }
    for output in &outputs {
        let is_made = output.format == OutputFormat::Folder && output.path.is_dir();
        let folder: &Path = if is_made { &output.path } else { parent(&output.path) };
        let failed = || format!("cannot write {}: folder {folder:?} cannot be written to", shown(&output.path));
        tempfile_in(folder).or_bad_input(failed)?;
    }
    Ok(())
}
