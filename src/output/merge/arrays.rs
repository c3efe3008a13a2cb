//! Arrays in `.npy`, `.npz` and safetensors files, read row by row.

use crate::files::Bytes;
use crate::output::shard::{METADATA_KEY, ShardRecord};
use crate::output::{NPY_HEADER_LEN, OutputDtype, OutputFormat, npy_header};
use anyhow::{Context, Result, bail};
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

/// The rows of one array.
pub(super) struct ArrayRows {
    input: BufReader<File>,
    dtype: OutputDtype,
    row: Vec<u8>,
}

impl ArrayRows {
    fn new(mut file: File, start: u64, record: &ShardRecord) -> Result<Self> {
        file.seek(SeekFrom::Start(start))?;
        Ok(Self {
            input: BufReader::with_capacity(1 << 20, file),
            dtype: record.dtype,
            row: vec![0; row_bytes(record)],
        })
    }

    /// Appends the next row.
    pub(super) fn read(&mut self, numbers: &mut Vec<f32>) -> Result<()> {
        self.input.read_exact(&mut self.row)?;
        self.dtype.decode(&self.row, numbers);
        Ok(())
    }
}

fn row_bytes(record: &ShardRecord) -> usize {
    record.dim * record.dtype.size()
}

/// Opens the arrays of a file, each in turn.
pub(super) fn open(path: &Path, format: OutputFormat, record: &ShardRecord) -> Result<Vec<ArrayRows>> {
    let names = record.arrays.names().iter().map(|array| array.name());
    let rows = record.rows.count();
    match format {
        OutputFormat::Npz => names.map(|name| open_npz(path, name, rows, record)).collect(),
        OutputFormat::Safetensors => names.map(|name| open_safetensors(path, name, rows, record)).collect(),
        _ => {
            let file = File::open(path)?;
            let len = file.metadata()?.len();
            Ok(vec![open_npy_at(file, 0, len, rows, record)?])
        }
    }
}

/// Opens a `.npy` file of any number of rows.
pub(super) fn open_npy(path: &Path, record: &ShardRecord) -> Result<ArrayRows> {
    let file = File::open(path).with_context(|| format!("cannot read {path:?}"))?;
    let len = file.metadata()?.len();
    let rows = len.saturating_sub(NPY_HEADER_LEN) / row_bytes(record) as u64;
    open_npy_at(file, 0, len, rows, record)
}

/// Opens an array in `.npy` format at `start` of a file. Its header has to be the one that it was written with.
fn open_npy_at(mut file: File, start: u64, len: u64, rows: u64, record: &ShardRecord) -> Result<ArrayRows> {
    let wanted = npy_header(rows, record.dim, record.dtype)?;
    let mut header = vec![0; wanted.len()];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut header)?;
    if header != wanted || len != NPY_HEADER_LEN + rows * row_bytes(record) as u64 {
        bail!("not {rows} rows of {} numbers in {}", record.dim, record.dtype.name());
    }
    ArrayRows::new(file, start + NPY_HEADER_LEN, record)
}

fn open_npz(path: &Path, name: &str, rows: u64, record: &ShardRecord) -> Result<ArrayRows> {
    let mut archive = ZipArchive::new(BufReader::new(File::open(path)?))?;
    let entry = archive.by_name(&format!("{name}.npy")).with_context(|| format!("no {name}"))?;
    if entry.compression() != CompressionMethod::Stored {
        bail!("{name} is compressed");
    }
    let (start, len) = (entry.data_start().with_context(|| format!("{name} has no place"))?, entry.size());
    open_npy_at(File::open(path)?, start, len, rows, record)
}

fn open_safetensors(path: &Path, name: &str, rows: u64, record: &ShardRecord) -> Result<ArrayRows> {
    let (header, metadata) = safetensors_header(path)?;
    let info = metadata.info(name).with_context(|| format!("no {name}"))?;
    let dtype = record.dtype.safetensors_dtype();
    if info.dtype != dtype || info.shape != [usize::try_from(rows)?, record.dim] {
        bail!("{name} is {:?} {:?}, and should be {dtype:?} [{rows}, {}]", info.dtype, info.shape, record.dim);
    }
    ArrayRows::new(File::open(path)?, 8 + header as u64 + info.data_offsets.0 as u64, record)
}

/// The length of the header, and what it says.
fn safetensors_header(path: &Path) -> Result<(usize, Metadata)> {
    Ok(SafeTensors::read_metadata(&Bytes::of_file(path)?)?)
}

/// What a safetensors file says of its shard.
pub(super) fn safetensors_metadata(path: &Path) -> Result<Option<String>> {
    let (_, metadata) = safetensors_header(path)?;
    Ok(metadata.metadata().as_ref().and_then(|metadata| metadata.get(METADATA_KEY).cloned()))
}
