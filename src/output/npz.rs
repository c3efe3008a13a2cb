//! numpy's `.npz`: a zip archive of named `.npy` arrays, not compressed and without times, as `numpy.savez` writes it.

use super::store::Store;
use super::{Arrays, npy};
use anyhow::Result;
use std::io::{Seek, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// What an entry may hold without the zip format's 64-bit fields, with room for the header.
const SMALL_ENTRY: u64 = (u32::MAX as u64) - npy::HEADER_LEN;

pub(crate) fn write(store: &Store, arrays: Arrays, output: impl Write + Seek) -> Result<()> {
    let mut archive = ZipWriter::new(output);
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .large_file(store.array_bytes() > SMALL_ENTRY);
    for array in arrays.names() {
        archive.start_file(format!("{}.npy", array.name()), options)?;
        npy::write(store, *array, 0, store.rows, &mut archive)?;
    }
    archive.finish()?.flush()?;
    Ok(())
}
