//! Whole outputs in memory, for answers that are no files.

use super::arrays::{ArrayName, Arrays};
use super::batch::Batch;
use super::dtype::{Encoding, OutputDtype};
use super::formats::OutputFormat;
use super::sink::{Layout, Shape};
use anyhow::{Result, bail};

/// The bytes that a file of these rows would have, in a format whose rows are written in place. `row` is the shape of a
/// row that is no vector.
///
/// # Errors
/// If the format is another, does not hold such rows, or holds fewer arrays.
pub(crate) fn to_bytes(
    format: OutputFormat,
    batch: &Batch,
    arrays: Arrays,
    row: Option<[usize; 2]>,
    normalize: bool,
) -> Result<Vec<u8>> {
    let dim = batch.dim(arrays)?;
    let rows = batch.rows.len() as u64;
    let shape = Shape { arrays, dtype: OutputDtype::F32, dim: Some(dim), row, rows: Some(rows), provenance: None };
    let sink = format.sink();
    let Layout::InPlace(regions) = sink.layout(&shape)? else { bail!("{} is not written in place", format.name()) };
    let mut bytes = sink.head(&shape, rows, dim)?;
    for region in regions {
        bytes.extend(region.content.encode(batch, Encoding { dtype: OutputDtype::F32, normalize })?);
    }
    Ok(bytes)
}

/// The numbers of an array as they are written: scaled to length 1, if that is wanted.
///
/// # Errors
/// If the batch lacks the array.
pub(crate) fn numbers(batch: &Batch, array: ArrayName, normalize: bool) -> Result<Vec<f32>> {
    let Some(values) = batch.values(array) else { bail!("a batch without {}", array.name()) };
    let mut numbers = Vec::with_capacity(values.len());
    let encoding = Encoding { dtype: OutputDtype::F32, normalize };
    encoding.dtype.decode(&encoding.of(array).encode(values, batch.rows)?, &mut numbers);
    Ok(numbers)
}
