//! numpy's `.npz`: a zip archive of named `.npy` arrays, neither compressed nor dated, as `numpy.savez` writes it.

use super::npy::{self, HEADER_BYTES};
use crate::output::arrays::Arrays;
use crate::output::record::OutputRecord;
use crate::output::sink::{Layout, ReadRows, Shape, Sink, contents};
use crate::output::store::Store;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

/// Bytes of an array in an entry without the zip format's 64-bit fields, at most.
const MAX_SMALL_ENTRY: u64 = (u32::MAX as u64) - HEADER_BYTES;

/// The format.
pub(crate) struct Npz;

impl Sink for Npz {
    fn name(&self) -> &'static str {
        "npz"
    }

    fn prefers_both(&self) -> bool {
        true
    }

    fn layout(&self, shape: &Shape) -> Result<Layout> {
        Ok(Layout::Gathered(contents(shape.arrays, false)))
    }

    fn write(
        &self,
        store: &Store,
        arrays: Arrays,
        _: Option<&OutputRecord>,
        output: &mut BufWriter<File>,
    ) -> Result<()> {
        let mut archive = ZipWriter::new(output);
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(store.array_bytes() > MAX_SMALL_ENTRY);
        for array in arrays.names() {
            archive.start_file(format!("{}.npy", array.name()), options)?;
            archive.write_all(&npy::header(store.rows, store.dim, store.dtype)?)?;
            store.copy_values(*array, &mut archive)?;
        }
        archive.finish()?;
        Ok(())
    }

    fn open(&self, path: &Path, record: &OutputRecord) -> Result<Box<dyn ReadRows>> {
        let mut archive = ZipArchive::new(BufReader::new(File::open(path)?))?;
        let arrays = record.arrays.names().iter().map(|array| {
            let name = array.name();
            let entry = archive.by_name(&format!("{name}.npy")).with_context(|| format!("no {name}"))?;
            if entry.compression() != CompressionMethod::Stored {
                bail!("{name} is compressed");
            }
            let start = entry.data_start().with_context(|| format!("{name} has no data"))?;
            npy::open_at(File::open(path)?, start, entry.size(), record)
        });
        Ok(Box::new(arrays.collect::<Result<Vec<_>>>()?))
    }
}
