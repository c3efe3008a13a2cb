//! What to write, where and how.

use super::fingerprint::Fingerprint;
use super::shard::Shard;
use super::stream;
use crate::bad_input;
use anyhow::Result;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// An array of embeddings, `(rows, dim)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayName {
    /// `image_embeds`.
    Image,
    /// `negative_image_embeds`.
    Negative,
}

impl ArrayName {
    /// The name that decoders know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image_embeds",
            Self::Negative => "negative_image_embeds",
        }
    }
}

/// The arrays of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrays {
    /// The image embeddings alone.
    Image,
    /// The negative image embeddings alone, in a file of their own.
    Negative,
    /// Both.
    Both,
}

impl Arrays {
    /// The arrays in the order in which they are written.
    pub fn names(self) -> &'static [ArrayName] {
        match self {
            Self::Image => &[ArrayName::Image],
            Self::Negative => &[ArrayName::Negative],
            Self::Both => &[ArrayName::Image, ArrayName::Negative],
        }
    }

    /// The arrays of both.
    pub(crate) fn union(self, other: Self) -> Self {
        if self == other { self } else { Self::Both }
    }
}

/// How numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OutputDtype {
    /// float32.
    F32,
    /// float16, half the bytes.
    F16,
}

impl OutputDtype {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    /// Its name in `.npy` files.
    pub(crate) fn npy_name(self) -> &'static str {
        match self {
            Self::F32 => "<f4",
            Self::F16 => "<f2",
        }
    }

    /// Its name in safetensors files.
    pub(crate) fn safetensors_dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
        }
    }

    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// A form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// numpy's format for one array.
    Npy,
    /// numpy's archive of named arrays.
    Npz,
    /// Named arrays as libraries of models store them.
    Safetensors,
    /// JSON lines, an object a row.
    JsonLines,
    /// A Parquet table, a row a row.
    Parquet,
    /// A folder of numbered `.npy` files of embeddings and `.parquet` files of what they belong to, as clip-retrieval
    /// writes and embedding-reader reads it.
    Folder,
}

impl OutputFormat {
    /// All forms but the folder, with the names that the command line and file extensions have for them.
    pub const FILES: [(&'static str, Self); 5] = [
        ("npy", Self::Npy),
        ("npz", Self::Npz),
        ("safetensors", Self::Safetensors),
        ("jsonl", Self::JsonLines),
        ("parquet", Self::Parquet),
    ];

    /// The form that a file name asks for; `.npy` for standard output.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the extension is missing or unknown.
    pub fn of_path(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::Npy);
        }
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let known = Self::FILES.iter().find(|(name, _)| extension.as_deref() == Some(name));
        known.map(|(_, format)| *format).ok_or_else(|| {
            bad_input!(
                "{path:?} does not end in .npy, .npz, .safetensors, .jsonl or .parquet; rename it, or say --format"
            )
        })
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        Self::FILES.iter().find(|(_, format)| *format == self).map_or("folder", |(name, _)| name)
    }

    /// Whether one output holds several arrays by name.
    pub fn holds_several(self) -> bool {
        self != Self::Npy
    }

    /// Whether it holds ids, prompts and seeds.
    pub fn holds_rows(self) -> bool {
        matches!(self, Self::JsonLines | Self::Parquet | Self::Folder)
    }
}

/// An output: where it goes, its form and its arrays.
#[derive(Debug, Clone)]
pub struct Output {
    /// A file, a folder for [`OutputFormat::Folder`], or `-` for standard output.
    pub path: PathBuf,
    /// Its form.
    pub format: OutputFormat,
    /// What it holds.
    pub arrays: Arrays,
}

/// What to write, where and how.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// The main output, then others that hold arrays of the same rows. When the main one is there, all are.
    pub outputs: Vec<Output>,
    /// How numbers are written.
    pub out_dtype: OutputDtype,
    /// Whether embeddings are brought to length one; a row of zeros stays one.
    pub normalize: bool,
    /// Rows in each numbered file of a folder.
    pub rows_per_file: u64,
    /// Whether what is there already may be replaced, and rows of an earlier run dropped.
    pub overwrite: bool,
    /// Whether to go on with the rows of an earlier run.
    pub resume: bool,
    /// Whether rows that an earlier run with the same fingerprint left may be dropped: where they are made again quickly.
    pub restart: bool,
    /// Whether the rows of a run that ends early are kept for one that goes on; if not, not even those of a run that
    /// was killed are in the way of the next.
    pub keep: bool,
    /// What decides the rows, beside what is in here.
    pub fingerprint: Fingerprint,
    /// Numbers in a row, if known; needed for an output without rows.
    pub dim: Option<usize>,
    /// Rows of the whole (of all shards), if known.
    pub total_rows: Option<u64>,
    /// The share of the rows that these are, if they are not all.
    pub shard: Option<Shard>,
    /// Set by whoever wants the writing to stop soon.
    pub interrupt: Arc<AtomicBool>,
}

impl WriteOptions {
    /// Options for the outputs, all others as the command line has them by default.
    pub fn new(outputs: Vec<Output>) -> Self {
        Self {
            outputs,
            out_dtype: OutputDtype::F32,
            normalize: false,
            rows_per_file: 1_000_000,
            overwrite: false,
            resume: false,
            restart: false,
            keep: true,
            fingerprint: Fingerprint::default(),
            dim: None,
            total_rows: None,
            shard: None,
            interrupt: Arc::default(),
        }
    }

    /// Checks that the options fit together.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if they do not.
    pub(crate) fn check(&self) -> Result<()> {
        if self.rows_per_file == 0 {
            return Err(bad_input!("--rows-per-file 0 leaves no room for rows; give 1 or more"));
        }
        let streamed = self.outputs.iter().find(|output| stream::is_stream(&output.path));
        if let Some(Output { path, .. }) = streamed
            && (self.resume || self.shard.is_some())
        {
            let option = if self.resume { "--resume" } else { "--shard" };
            return Err(bad_input!("{option} needs files, and {path:?} is a stream; leave it out, or name a file"));
        }
        for output in &self.outputs {
            if output.arrays == Arrays::Both && !output.format.holds_several() {
                let path = &output.path;
                return Err(bad_input!("{path:?}: .npy holds one array, and there are two; give --negative-out too"));
            }
        }
        Ok(())
    }

    /// What decides the rows, without what decides how these outputs hold them.
    fn row_fingerprint(&self) -> Fingerprint {
        let mut fingerprint = self.fingerprint.clone();
        fingerprint.push("--normalize", self.normalize);
        fingerprint
    }

    /// Whether a record goes beside an output that is no shard, by which the same run finds it done when it is sent again.
    pub(crate) fn leaves_record(&self) -> bool {
        self.resume && self.shard.is_none()
    }

    /// What an output's record says of the settings. Shards may be joined to another form than they have.
    pub(crate) fn record_fingerprint(&self) -> Fingerprint {
        if self.shard.is_some() { self.row_fingerprint() } else { self.whole_fingerprint() }
    }

    /// What decides the rows and how they are written.
    pub(crate) fn whole_fingerprint(&self) -> Fingerprint {
        let mut fingerprint = self.row_fingerprint();
        fingerprint.push("--out-dtype", self.out_dtype.name());
        for (place, output) in self.outputs.iter().enumerate() {
            let name = if place == 0 { "the output" } else { "--negative-out" };
            let arrays: Vec<&str> = output.arrays.names().iter().map(|array| array.name()).collect();
            let format = format!("{} of {}", output.format.name(), arrays.join(" and "));
            fingerprint.push(&format!("{name}'s form"), format);
            if place > 0 {
                fingerprint.push(name, output.path.display());
            }
            if output.format == OutputFormat::Folder {
                fingerprint.push("--rows-per-file", self.rows_per_file);
            }
        }
        fingerprint.push("--shard", self.shard.map_or_else(|| "not set".to_string(), |shard| shard.to_string()));
        fingerprint
    }
}
