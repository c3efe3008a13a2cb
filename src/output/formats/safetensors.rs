//! safetensors: a JSON header, then the arrays one after the other.

use super::npy::ArrayRows;
use crate::files::Bytes;
use crate::output::arrays::Arrays;
use crate::output::column::{Content, row_bytes};
use crate::output::dtype::OutputDtype;
use crate::output::record::{METADATA_KEY, OutputRecord, PROVENANCE_KEY};
use crate::output::sink::{Layout, ReadRows, Region, Shape, Sink, contents};
use crate::output::store::Store;
use anyhow::{Context, Error, Result, bail};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// The format.
pub(crate) struct Safetensors;

impl Sink for Safetensors {
    fn name(&self) -> &'static str {
        "safetensors"
    }

    fn holds_record(&self) -> bool {
        true
    }

    fn prefers_both(&self) -> bool {
        true
    }

    /// In place if the header's length is known, which depends on the number of rows and, in a shard, on its record.
    fn layout(&self, shape: &Shape) -> Result<Layout> {
        let (Some(rows), Some(dim)) = (shape.rows, shape.dim) else {
            return Ok(Layout::Gathered(contents(shape.arrays, false)));
        };
        let head = self.head(shape, rows, dim)?.len() as u64;
        let names = shape.arrays.names();
        let regions = names.iter().zip(0..).map(|(array, place)| Region {
            content: Content::Values(*array),
            start: head + place * rows * row_bytes(dim, shape.dtype),
            is_last: place + 1 == names.len() as u64,
        });
        Ok(Layout::InPlace(regions.collect()))
    }

    fn head(&self, shape: &Shape, rows: u64, dim: usize) -> Result<Vec<u8>> {
        let metadata = shape.provenance.as_ref().map(|provenance| (PROVENANCE_KEY, provenance.to_string()));
        head(shape.arrays, shape.dtype, rows, dim, metadata)
    }

    fn write(
        &self,
        store: &Store,
        arrays: Arrays,
        record: Option<&OutputRecord>,
        output: &mut BufWriter<File>,
    ) -> Result<()> {
        // That of a shard holds its provenance too.
        let metadata =
            record.map(|record| Ok::<_, Error>((METADATA_KEY, serde_json::to_string(record)?))).transpose()?;
        output.write_all(&head(arrays, store.dtype, store.rows, store.dim, metadata)?)?;
        arrays.names().iter().try_for_each(|array| store.copy_values(*array, output))
    }

    fn open(&self, path: &Path, record: &OutputRecord) -> Result<Box<dyn ReadRows>> {
        let (header, metadata) = read_header(path)?;
        let shape = [usize::try_from(record.rows.count())?, record.dim];
        let dtype = stored_dtype(record.dtype);
        let arrays = record.arrays.names().iter().map(|array| {
            let name = array.name();
            let info = metadata.info(name).with_context(|| format!("no {name}"))?;
            if info.dtype != dtype || info.shape != shape {
                bail!("{name} is {:?} {:?}, and should be {dtype:?} {shape:?}", info.dtype, info.shape);
            }
            ArrayRows::new(File::open(path)?, 8 + header as u64 + info.data_offsets.0 as u64, record)
        });
        Ok(Box::new(arrays.collect::<Result<Vec<_>>>()?))
    }

    fn read_record(&self, path: &Path) -> Result<Option<String>> {
        let (_, metadata) = read_header(path)?;
        Ok(metadata.metadata().as_ref().and_then(|metadata| metadata.get(METADATA_KEY).cloned()))
    }
}

/// What comes before the arrays: the length of the header, and the header, perhaps with an entry of metadata.
fn head(
    arrays: Arrays,
    dtype: OutputDtype,
    rows: u64,
    dim: usize,
    metadata: Option<(&str, String)>,
) -> Result<Vec<u8>> {
    let bytes = rows.checked_mul(row_bytes(dim, dtype)).and_then(|bytes| usize::try_from(bytes).ok());
    let (bytes, rows) = (bytes.with_context(|| format!("{rows} rows are too many"))?, usize::try_from(rows)?);
    let tensors = arrays.names().iter().enumerate().map(|(place, array)| {
        let data_offsets = (place * bytes, (place + 1) * bytes);
        (array.name().to_string(), TensorInfo { dtype: stored_dtype(dtype), shape: vec![rows, dim], data_offsets })
    });
    // One entry at most: the order of several would change from run to run.
    let metadata = metadata.map(|(key, value)| HashMap::from([(key.to_string(), value)]));
    let header = serde_json::to_vec(&Metadata::new(metadata, tensors.collect())?)?;
    // The format pads the header to 8 bytes with spaces.
    let padded = header.len().next_multiple_of(8);
    let mut head = (padded as u64).to_le_bytes().to_vec();
    head.extend(header);
    head.resize(8 + padded, b' ');
    Ok(head)
}

fn stored_dtype(dtype: OutputDtype) -> Dtype {
    match dtype {
        OutputDtype::F32 => Dtype::F32,
        OutputDtype::F16 => Dtype::F16,
    }
}

/// The length of the header, and the header.
fn read_header(path: &Path) -> Result<(usize, Metadata)> {
    Ok(SafeTensors::read_metadata(&Bytes::of_file(path)?)?)
}
