//! numpy's `.npz`: a zip archive of named `.npy` arrays, not compressed, as `numpy.savez` writes it.

use super::NamedArray;
use anyhow::Result;
use ndarray_npy::NpzWriter;
use std::io::{Cursor, Write};

pub(super) fn write(arrays: &[NamedArray], output: &mut dyn Write) -> Result<()> {
    // A zip archive is written with seeks, which a pipe cannot do.
    let mut archive = NpzWriter::new(Cursor::new(Vec::new()));
    for array in arrays {
        archive.add_array(array.name, &array.values)?;
    }
    let bytes = archive.finish()?.into_inner();
    Ok(output.write_all(&bytes)?)
}
