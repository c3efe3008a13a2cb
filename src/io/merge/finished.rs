//! Whether a shard is there already: its output says what it is.

use super::differences;
use super::part::Part;
use crate::bad_input;
use crate::error::one_line;
use crate::io::shard::{Shard, ShardRecord};
use crate::io::writer::{WriteOptions, has_stopped_run, shown};
use anyhow::Result;
use std::fs;

/// The number of rows of the shard that a run with `options` is to go on with, if it is done: nothing is left of it but its
/// outputs, and these are there. `None` if not, or if the options ask for something else.
///
/// # Errors
/// [`crate::error::BadInput`] if the outputs are there and are not those of this shard, with these settings.
pub fn finished(options: &WriteOptions) -> Result<Option<u64>> {
    let (Some(shard), Some(main)) = (options.shard, options.outputs.first()) else { return Ok(None) };
    let is_there = || options.outputs.iter().all(|output| fs::symlink_metadata(&output.path).is_ok());
    if !options.resume || options.overwrite || has_stopped_run(main) || !is_there() {
        return Ok(None);
    }
    let mut rows = 0;
    for output in &options.outputs {
        let name = shown(&output.path);
        let Part { record, .. } = Part::open_as(&output.path, output.format).map_err(|error| {
            let why = one_line(&error, false);
            bad_input!("{name} is there already, and not as this shard ({why}); give another name, or --overwrite")
        })?;
        let mut differences =
            differences(&record, &ShardRecord { arrays: output.arrays, ..expected(&record, options) });
        let was = Shard { index: record.index, count: record.count };
        if was != shard {
            differences.push(format!("--shard was {was}, is {shard}"));
        }
        if !differences.is_empty() {
            return Err(bad_input!(
                "{name} is done already, and of another run: {}; give another name, or --overwrite to replace it",
                differences.join("; ")
            ));
        }
        rows = record.rows.count();
    }
    Ok(Some(rows))
}

/// What the record would say if these options had made it.
fn expected(record: &ShardRecord, options: &WriteOptions) -> ShardRecord {
    ShardRecord {
        count: options.shard.map_or(record.count, |shard| shard.count),
        total_rows: options.total_rows.unwrap_or(record.total_rows),
        dtype: options.out_dtype,
        dim: options.dim.unwrap_or(record.dim),
        fingerprint: options.row_fingerprint(),
        ..record.clone()
    }
}
