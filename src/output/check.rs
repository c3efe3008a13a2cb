//! Checks of the outputs' places before anything is computed.

use super::claim;
use super::formats::OutputFormat;
use super::numbered::Numbering;
use super::options::{Output, WriteOptions, is_stream};
use super::paths::{check_paths, has_stopped_run, is_record, record_file, resolve, shard_file, shown, working_folder};
use super::shard::Shard;
use crate::bad_input;
use crate::bad_input::OrBadInput;
use crate::files::parent;
use anyhow::Result;
use std::fs;
use std::path::Path;
use tempfile::tempfile_in;

/// Checks that the outputs can be written, as far as that is known without writing them. [`super::EmbeddingWriter`]
/// checks again.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the options disagree, an output exists and must stay, or nothing can be written in its
/// place.
pub fn check(options: &WriteOptions) -> Result<()> {
    options.check()?;
    let filed = options.outputs.iter().filter(|output| !is_stream(&output.path));
    let outputs = filed.cloned().map(resolve).collect::<Result<Vec<_>>>()?;
    check_paths(&outputs, options)?;
    if let Some(main) = outputs.first() {
        claim::check(&working_folder(main, options.shard), &shown(&main.path))?;
        let stopped = has_stopped_run(main, options.shard);
        // What is there may be what is asked for.
        let is_done = options.shard.is_some() || record_file(&main.path).is_some_and(|file| file.is_file());
        let may_be_its_own =
            options.resume && is_done || stopped && (options.resume || main.format == OutputFormat::Folder);
        if !may_be_its_own {
            check_free(&outputs, options, 0)?;
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

/// Refuses outputs that exist and must stay, but for the first `files` files of a numbered folder.
///
/// # Errors
/// [`crate::bad_input::BadInput`] for the first of them.
pub(crate) fn check_free(outputs: &[Output], options: &WriteOptions, files: u64) -> Result<()> {
    if options.overwrite {
        return Ok(());
    }
    let records = outputs.iter().filter(|_| options.leaves_record()).filter_map(|output| record_file(&output.path));
    let records = records.filter(|record| !is_record(record));
    let places = outputs.iter().flat_map(|output| match Numbering::new(output, options) {
        Some(numbering) => numbering.strangers(files),
        None => {
            // The record of a shard would be taken for this output's.
            let record = (!output.format.sink().holds_record()).then(|| shard_file(output, Shard::WHOLE));
            [output.path.clone()].into_iter().chain(record).collect()
        }
    });
    let Some(place) = places.chain(records).find(|place| fs::symlink_metadata(place).is_ok()) else { return Ok(()) };
    let name = shown(&place);
    Err(if options.resume {
        bad_input!(
            "{name} is there already, and no stopped run of it to resume; it does not say with which settings it was \
             made: keep it, or give --overwrite to make it again"
        )
    } else {
        bad_input!("{name} is there already; give another name, or --overwrite to replace it")
    })
}
