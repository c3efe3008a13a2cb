//! An encoded picture on disk.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Bytes of an encoded picture at most.
const MAX_BYTES: u64 = 1 << 30;

/// An encoded picture: a file, or a part of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureFile {
    /// Its name in messages.
    pub name: String,
    /// The file that it is in.
    pub(super) path: PathBuf,
    /// Where it begins in there.
    pub(crate) start: u64,
    /// Its length in bytes, or why it cannot be read.
    pub(crate) len: Result<u64, String>,
    /// When the file was changed, in nanoseconds since 1970.
    pub(crate) modified: u64,
}

impl PictureFile {
    /// The picture in the file at `path`.
    pub(super) fn of_file(path: &Path) -> Self {
        let metadata = fs::metadata(path);
        let modified = metadata.as_ref().map_or(0, modified);
        let len = match metadata {
            Ok(metadata) if metadata.is_dir() => Err("is a folder".into()),
            Ok(metadata) if !metadata.is_file() => Err("is no file but a pipe or a device".into()),
            Ok(metadata) => Ok(metadata.len()),
            Err(error) => Err(unreadable(&error)),
        };
        Self { name: path.display().to_string(), path: path.to_path_buf(), start: 0, len, modified }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// Why it cannot be read, as a predicate.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        let len = self.len.clone()?;
        if len > MAX_BYTES {
            return Err(format!("has {len} bytes, and {MAX_BYTES} are the maximum"));
        }
        let read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.start))?;
            let mut bytes = Vec::new();
            file.take(len).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error: std::io::Error| unreadable(&error))?;
        if bytes.len() as u64 == len { Ok(bytes) } else { Err("has become shorter since it was listed".into()) }
    }
}

fn unreadable(error: &std::io::Error) -> String {
    let text = error.to_string();
    format!("cannot be read ({})", text.split(" (os error").next().unwrap_or_default())
}

/// When a file was changed, in nanoseconds since 1970; 0 if that is not known.
pub(super) fn modified(metadata: &fs::Metadata) -> u64 {
    let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0)
}
