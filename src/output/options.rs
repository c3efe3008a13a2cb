//! What to write, where and how.

use super::arrays::{ArrayName, Arrays};
use super::dtype::{Encoding, OutputDtype};
use super::fingerprint::Fingerprint;
use super::formats::OutputFormat;
use super::shard::Shard;
use crate::bad_input;
use anyhow::Result;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The name of the setting that the shards of a run differ in.
pub(crate) const SHARD: &str = "--shard";

/// Whether `path` is written front to back and cannot be moved into place: standard output, a pipe or a device.
pub fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-" || fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// An output.
#[derive(Debug, Clone)]
pub struct Output {
    /// A file, a folder for [`OutputFormat::Folder`], or `-` for standard output.
    pub path: PathBuf,
    /// Its format.
    pub format: OutputFormat,
    /// The arrays that it holds.
    pub arrays: Arrays,
}

/// What to write, where and how.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// The main output, then others with arrays of the same rows. The main one is moved into place last.
    pub outputs: Vec<Output>,
    /// The type that numbers are written in.
    pub out_dtype: OutputDtype,
    /// Whether embeddings are scaled to unit length; a row of zeros stays one.
    pub normalize: bool,
    /// Rows in each file of a numbered folder.
    pub rows_per_file: u64,
    /// Whether existing outputs may be replaced, and the rows of an earlier run dropped.
    pub overwrite: bool,
    /// Whether to resume an earlier run.
    pub resume: bool,
    /// Whether the rows of an earlier run with the same fingerprint may be dropped, because they are quickly computed.
    pub restart: bool,
    /// Whether the rows of a run that ends early are kept to be resumed. If not, even those of a killed run are not in
    /// the way of the next.
    pub keep: bool,
    /// What decides the rows, besides these options.
    pub fingerprint: Fingerprint,
    /// The embedding dimension, if known; needed for an output without rows.
    pub dim: Option<usize>,
    /// The shape of a row that is no vector; only `.npy` holds such.
    pub row_shape: Option<[usize; 2]>,
    /// Numbers in a row of scores, if they are not the only array.
    pub draws: Option<usize>,
    /// Whether formats that prefer to hold the negative embeddings too do without.
    pub no_negative: bool,
    /// Rows of the whole (of all shards), if known.
    pub total_rows: Option<u64>,
    /// The shard that the rows are, if they are not all.
    pub shard: Option<Shard>,
    /// What the rows were made of, as JSON: for safetensors and for records.
    pub provenance: Option<Arc<str>>,
    /// Set to ask for an early end.
    pub interrupt: Arc<AtomicBool>,
}

impl WriteOptions {
    /// The command line's defaults for these outputs.
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
            row_shape: None,
            draws: None,
            no_negative: false,
            total_rows: None,
            shard: None,
            provenance: None,
            interrupt: Arc::default(),
        }
    }

    /// The path that the names of other files about the main output extend. Shards of a folder share its path, and have
    /// one of their own here.
    pub fn base_path(&self) -> PathBuf {
        let Some(main) = self.outputs.first() else { return PathBuf::new() };
        match self.shard {
            Some(Shard { index, count }) if main.format == OutputFormat::Folder => {
                let mut path = main.path.components().as_path().as_os_str().to_os_string();
                path.push(format!(".shard-{index}-of-{count}"));
                path.into()
            }
            _ => main.path.clone(),
        }
    }

    /// Numbers in a row of an output's arrays, where embeddings have `dim`.
    pub(crate) fn width(&self, arrays: Arrays, dim: usize) -> usize {
        self.draws.filter(|_| arrays == Arrays::SCORES).unwrap_or(dim)
    }

    pub(crate) fn encoding(&self) -> Encoding {
        Encoding { dtype: self.out_dtype, normalize: self.normalize }
    }

    /// Checks that the options agree.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if they do not.
    pub(crate) fn check(&self) -> Result<()> {
        if self.rows_per_file == 0 {
            return Err(bad_input!("--rows-per-file 0 leaves no room for rows; give 1 or more"));
        }
        let streamed = self.outputs.iter().find(|output| is_stream(&output.path));
        if let Some(Output { path, .. }) = streamed
            && (self.resume || self.shard.is_some())
        {
            let option = if self.resume { "--resume" } else { "--shard" };
            return Err(bad_input!("{option} needs files, and {path:?} is a stream; leave it out, or name a file"));
        }
        for output in &self.outputs {
            let path = &output.path;
            let is_folder = output.format == OutputFormat::Folder;
            if output.arrays.has(ArrayName::Scores) && (is_folder || output.arrays != Arrays::SCORES) {
                return Err(bad_input!("{path:?}: scores take a file of their own; give the name of one"));
            }
            if output.arrays.names().len() > 1 && !output.format.holds_several() {
                return Err(bad_input!(
                    "{path:?}: .{} holds one array, and there are more; give files of their own with --negative-out \
                     and --text-out",
                    output.format.name()
                ));
            }
        }
        Ok(())
    }

    /// Whether to write negative embeddings if they can be made: an option asks for them, or the format holds them and no
    /// option is against it.
    pub fn wants_negative(&self) -> bool {
        let main = self.outputs.first();
        self.needs_negative() || !self.no_negative && main.is_some_and(|main| main.format.prefers_both())
    }

    /// Whether an option asks for negative embeddings.
    pub fn needs_negative(&self) -> bool {
        self.outputs.iter().any(|output| output.arrays.has(ArrayName::Negative))
    }

    /// Adds the negative embeddings to the main output if they have no output of their own.
    pub fn add_negative(&mut self) {
        if !self.needs_negative()
            && let [main, ..] = self.outputs.as_mut_slice()
        {
            main.arrays = main.arrays.union(Arrays::NEGATIVE);
        }
    }

    /// What decides the rows, whatever format they are written in.
    fn row_fingerprint(&self) -> Fingerprint {
        let mut fingerprint = self.fingerprint.clone();
        fingerprint.push("--normalize", self.normalize);
        fingerprint
    }

    /// Whether an unsharded output gets a record, by which the same run recognizes it as finished.
    pub(crate) fn leaves_record(&self) -> bool {
        self.resume && self.shard.is_none()
    }

    /// The settings in an output's record. Shards in files can be merged into another format; those of a folder share
    /// it.
    pub(crate) fn record_fingerprint(&self) -> Fingerprint {
        match self.outputs.first() {
            Some(output) if self.shard.is_some() && output.format != OutputFormat::Folder => self.row_fingerprint(),
            _ if self.shard.is_some() => self.whole_fingerprint().without(SHARD),
            _ => self.whole_fingerprint(),
        }
    }

    /// What decides the rows and how they are written.
    pub(crate) fn whole_fingerprint(&self) -> Fingerprint {
        let mut fingerprint = self.row_fingerprint();
        fingerprint.push("--out-dtype", self.out_dtype.name());
        for (place, output) in self.outputs.iter().enumerate() {
            let name = match output.arrays {
                _ if place == 0 => "the output",
                Arrays::TEXT => "--text-out",
                Arrays::SCORES => "--scores",
                Arrays::IMAGE => "--picture",
                _ => "--negative-out",
            };
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
        // A file's header has room for it from the start.
        if let Some(provenance) = self.provenance.as_ref().filter(|_| self.shard.is_none())
            && self.outputs.iter().any(|output| output.format == OutputFormat::Safetensors)
        {
            fingerprint.push("the provenance's hash", format!("{:.32x}", Sha256::digest(provenance.as_bytes())));
        }
        fingerprint.push(SHARD, self.shard.map_or_else(|| "not set".to_string(), |shard| shard.to_string()));
        fingerprint
    }
}
