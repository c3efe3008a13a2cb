//! numpy's `.npy`: one array in C order.

use crate::output::arrays::ArrayName;
use crate::output::column::Content;
use crate::output::dtype::OutputDtype;
use crate::output::record::OutputRecord;
use crate::output::sink::{Layout, PartRow, ReadRows, Region, Shape, Sink};
use anyhow::{Result, bail};
use ndarray_npy::npy::header::{Header, Layout as Order};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of the header. numpy pads it to a multiple of 64, and two dimensions of up to 20 digits fit into 128.
pub(crate) const HEADER_BYTES: u64 = 128;

/// The header of an array, `(rows, dim)`, as numpy writes it.
///
/// # Errors
/// If the sizes overflow.
pub(crate) fn header(rows: u64, dim: usize, dtype: OutputDtype) -> Result<Vec<u8>> {
    header_of_rows(rows, &[dim], dtype)
}

/// The header of an array of rows that have a shape of their own.
fn header_of_rows(rows: u64, row: &[usize], dtype: OutputDtype) -> Result<Vec<u8>> {
    let shape = [&[usize::try_from(rows)?], row].concat();
    let bytes = Header { type_descriptor: descriptor(dtype), layout: Order::Standard, shape }.to_bytes()?;
    if bytes.len() as u64 != HEADER_BYTES {
        bail!("internal error: a .npy header of {} bytes", bytes.len());
    }
    Ok(bytes)
}

fn descriptor(dtype: OutputDtype) -> py_literal::Value {
    let name = match dtype {
        OutputDtype::F32 => "<f4",
        OutputDtype::F16 => "<f2",
    };
    py_literal::Value::String(name.into())
}

/// Where an array is in a `.npy` file that is written in place.
pub(crate) fn region(array: ArrayName) -> Region {
    Region::only(Content::Values(array), HEADER_BYTES)
}

/// The format.
pub(crate) struct Npy;

impl Sink for Npy {
    fn name(&self) -> &'static str {
        "npy"
    }

    fn holds_several(&self) -> bool {
        false
    }

    fn layout(&self, shape: &Shape) -> Result<Layout> {
        Ok(Layout::InPlace(vec![region(shape.arrays.names()[0])]))
    }

    fn head(&self, shape: &Shape, rows: u64, dim: usize) -> Result<Vec<u8>> {
        let row = shape.row.as_ref().map_or(std::slice::from_ref(&dim), |row| row.as_slice());
        header_of_rows(rows, row, shape.dtype)
    }

    fn open(&self, path: &Path, record: &OutputRecord) -> Result<Box<dyn ReadRows>> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Box::new(vec![open_at(file, 0, bytes, record)?]))
    }
}

/// The rows of one array.
pub(super) struct ArrayRows {
    input: BufReader<File>,
    dtype: OutputDtype,
    row: Vec<u8>,
}

impl ArrayRows {
    /// Reads from `start` on.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn new(mut file: File, start: u64, record: &OutputRecord) -> Result<Self> {
        file.seek(SeekFrom::Start(start))?;
        let row = vec![0; record.dim * record.dtype.size()];
        Ok(Self { input: BufReader::with_capacity(1 << 20, file), dtype: record.dtype, row })
    }
}

impl ReadRows for Vec<ArrayRows> {
    fn next_row(&mut self, row: &mut PartRow) -> Result<()> {
        for (array, numbers) in self.iter_mut().zip(&mut row.numbers) {
            array.input.read_exact(&mut array.row)?;
            array.dtype.decode(&array.row, numbers);
        }
        Ok(())
    }
}

/// Opens an array in `.npy` format, `bytes` long, at `start` of a file. Its header must be that of rows of as many
/// numbers, whatever their shape.
///
/// # Errors
/// If it is not; or if the file cannot be read.
pub(super) fn open_at(mut file: File, start: u64, bytes: u64, record: &OutputRecord) -> Result<ArrayRows> {
    let (rows, dim, dtype) = (record.rows.count(), record.dim, record.dtype);
    let mut found = vec![0; HEADER_BYTES as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut found)?;
    let fits = Header::from_reader(&mut found.as_slice()).is_ok_and(|found| {
        let [count, row @ ..] = found.shape.as_slice() else { return false };
        let is_ours = found.layout == Order::Standard && found.type_descriptor == descriptor(dtype);
        is_ours
            && u64::try_from(*count) == Ok(rows)
            && row.iter().try_fold(1, |product: usize, size| product.checked_mul(*size)) == Some(dim)
    });
    if !fits || bytes != HEADER_BYTES + rows * (dim * dtype.size()) as u64 {
        bail!("not {rows} rows of {dim} numbers in {}", dtype.name());
    }
    ArrayRows::new(file, start + HEADER_BYTES, record)
}
