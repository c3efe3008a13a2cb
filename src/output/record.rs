//! Records: what an output holds, so that shards can be joined and a finished run is recognized.

use super::arrays::Arrays;
use super::batch::OutputRow;
use super::dtype::OutputDtype;
use super::fingerprint::Fingerprint;
use super::shard::RowRuns;
use crate::bad_input::OrBadInput;
use anyhow::{Result, bail};
use crc32fast::Hasher;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// The key of the provenance in a safetensors file's metadata.
pub(crate) const PROVENANCE_KEY: &str = "prior_embed_provenance";

/// The key of a record in a file's own metadata.
pub(crate) const METADATA_KEY: &str = "prior_embed_shard";

/// What a record calls the file that it is of.
pub(crate) const ITSELF: &str = ".";

/// Bytes of a record at most.
const MAX_BYTES: u64 = 64 << 20;

/// What an output holds: in the metadata of Parquet and safetensors shards, else in a file beside the output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OutputRecord {
    /// The shard, counted from 1.
    pub(crate) index: u64,
    /// The number of shards.
    pub(crate) count: u64,
    /// Rows of all shards together.
    pub(crate) total_rows: u64,
    /// The rows of the whole that this output holds, in its order.
    pub(crate) rows: RowRuns,
    pub(crate) arrays: Arrays,
    pub(crate) dtype: OutputDtype,
    /// The embedding dimension.
    pub(crate) dim: usize,
    /// What decides the rows.
    pub(crate) fingerprint: Fingerprint,
    pub(crate) checksums: Checksums,
    /// What the rows were made of, as JSON, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) provenance: Option<String>,
}

/// CRC-32 of what an output holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checksums {
    /// Of each array's bytes, in the order of [`Arrays::names`]; the same in every single-file format.
    #[serde(default)]
    pub(crate) arrays: Vec<u32>,
    /// Of an [`OutputRow`] a line as JSON, where the format holds these.
    #[serde(default)]
    pub(crate) rows: Option<u32>,
    /// Of a folder's files, by their paths in it; or of a file that does not hold its numbers, as [`ITSELF`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) files: BTreeMap<String, FileSum>,
}

/// A file's length and CRC-32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileSum {
    pub(crate) bytes: u64,
    pub(crate) crc: u32,
}

impl FileSum {
    /// Reads a file to its end.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn of(mut file: File) -> io::Result<Self> {
        let (mut hasher, mut bytes, mut buffer) = (Hasher::new(), 0, vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(Self { bytes, crc: hasher.finalize() }),
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    bytes += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl OutputRecord {
    /// Reads the record in a file; `None` if there is no such file.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it is not a record.
    pub(crate) fn read(file: &Path) -> Result<Option<Self>> {
        if !fs::metadata(file).is_ok_and(|metadata| metadata.is_file()) {
            return Ok(None);
        }
        let name = file.display().to_string();
        let mut text = Vec::new();
        let read = File::open(file).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text));
        read.or_bad_input(|| format!("cannot read {name:?}"))?;
        serde_json::from_slice(&text).map(Some).or_bad_input(|| format!("{name:?} is not the record of an output"))
    }

    /// Checks what was read from a file.
    ///
    /// # Errors
    /// If it contradicts itself or its sizes overflow.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { index, count, dim, dtype, arrays, checksums, .. } = self;
        if *index == 0 || index > count || *dim == 0 || *dim > i32::MAX as usize {
            bail!("shard {index} of {count}, {dim} numbers a row");
        }
        if checksums.files.is_empty() && checksums.arrays.len() != arrays.names().len() {
            bail!("{} checksums of {arrays:?}", checksums.arrays.len());
        }
        self.rows.check()?;
        let rows = self.rows.count();
        let bytes = rows.checked_mul((dim.saturating_mul(dtype.size())) as u64);
        if bytes.is_none_or(|bytes| bytes > i64::MAX as u64) {
            bail!("{rows} rows of {dim} numbers");
        }
        Ok(())
    }

    /// How another record differs in what all shards of a run share, each as `--steps was 25, is 30`.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let mut differences = self.fingerprint.differences(&other.fingerprint);
        let mut compare = |name: &str, was: String, is: String| {
            if was != is {
                differences.push(format!("{name} was {was}, is {is}"));
            }
        };
        compare("the number of shards", self.count.to_string(), other.count.to_string());
        compare("the number of all rows", self.total_rows.to_string(), other.total_rows.to_string());
        compare("the embedding dimension", self.dim.to_string(), other.dim.to_string());
        compare("--out-dtype", self.dtype.name().into(), other.dtype.name().into());
        compare("arrays", format!("{:?}", self.arrays), format!("{:?}", other.arrays));
        differences
    }
}

/// Computes [`Checksums`] of rows that are read one by one.
#[derive(Debug)]
pub(crate) struct Summing {
    dtype: OutputDtype,
    arrays: Vec<Hasher>,
    rows: Hasher,
    bytes: Vec<u8>,
}

impl Summing {
    /// Starts, for the arrays of a record.
    pub(crate) fn new(record: &OutputRecord) -> Self {
        let arrays = vec![Hasher::new(); record.arrays.names().len()];
        Self { dtype: record.dtype, arrays, rows: Hasher::new(), bytes: Vec::new() }
    }

    /// Adds a row: what is known of it, if anything, and each array's numbers.
    ///
    /// # Errors
    /// If what is known cannot be written as JSON.
    pub(crate) fn add(&mut self, known: Option<&OutputRow>, numbers: &[Vec<f32>]) -> Result<()> {
        for (hasher, numbers) in self.arrays.iter_mut().zip(numbers) {
            self.bytes.clear();
            self.dtype.encode(numbers, &mut self.bytes);
            hasher.update(&self.bytes);
        }
        if let Some(known) = known {
            self.bytes.clear();
            serde_json::to_writer(&mut self.bytes, known)?;
            self.bytes.push(b'\n');
            self.rows.update(&self.bytes);
        }
        Ok(())
    }

    /// Whether the rows so far have these checksums.
    pub(crate) fn matches(&self, checksums: &Checksums) -> bool {
        let arrays = self.arrays.iter().map(|hasher| hasher.clone().finalize());
        let rows = self.rows.clone().finalize();
        arrays.eq(checksums.arrays.iter().copied()) && checksums.rows.is_none_or(|expected| expected == rows)
    }
}
