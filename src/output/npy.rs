//! numpy's `.npy`: one array in C order.

use super::atomic;
use super::dir::Access;
use super::store::Store;
use super::{ArrayName, OutputDtype};
use anyhow::{Result, bail};
use ndarray_npy::npy::header::{Header, Layout};
use std::io::{Seek, SeekFrom, Write};

/// Bytes of the header. numpy pads it to a multiple of 64, and two dimensions of up to 20 digits fit into 128.
pub(crate) const HEADER_LEN: u64 = 128;

/// The header of an array of `rows` times `dim` numbers, as numpy writes it.
pub(crate) fn header(rows: u64, dim: usize, dtype: OutputDtype) -> Result<Vec<u8>> {
    let type_descriptor = py_literal::Value::String(dtype.npy_name().into());
    let shape = vec![usize::try_from(rows)?, dim];
    let bytes = Header { type_descriptor, layout: Layout::Standard, shape }.to_bytes()?;
    if bytes.len() as u64 != HEADER_LEN {
        bail!("a .npy header of {} bytes", bytes.len());
    }
    Ok(bytes)
}

/// Writes `rows` rows of an array from row `first` on.
pub(crate) fn write(store: &Store, array: ArrayName, first: u64, rows: u64, output: &mut dyn Write) -> Result<()> {
    output.write_all(&header(rows, store.dim, store.dtype)?)?;
    store.copy_values(array, first, rows, output)
}

/// Makes the data file of an array a `.npy` file where it lies.
pub(crate) fn write_in_place(store: &Store, array: ArrayName) -> Result<()> {
    let mut file = store.dir.open_file(array.name(), Access::Write)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header(store.rows, store.dim, store.dtype)?)?;
    debug_assert_eq!(file.metadata()?.len(), HEADER_LEN + store.array_bytes(), "{array:?}");
    Ok(atomic::sync_all(&file)?)
}
