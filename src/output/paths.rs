//! Where files lie: outputs, what goes beside them, and what must not be there already.

use super::formats::OutputFormat;
use super::options::{Output, WriteOptions};
use super::record::OutputRecord;
use super::shard::Shard;
use crate::atomic::{self, sync_path};
use crate::bad_input;
use crate::bad_input::OrBadInput;
use crate::files::parent;
use anyhow::Result;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What a shard's record adds to the name of its output.
const SHARD_SUFFIX: &str = ".shard.json";

/// What an unsharded output's record adds to its name.
const RECORD_SUFFIX: &str = ".run.json";

/// Bytes of a name at most, on common file systems.
pub(crate) const MAX_NAME: usize = 255;

/// Characters of a shortened name: even of four bytes each, they leave room for a suffix.
const SHORT_NAME: usize = 48;

/// A path as messages show it.
pub(crate) fn shown(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// The output with links followed: their target is written, and the link is not replaced.
///
/// # Errors
/// Those of [`atomic::resolve`].
pub(crate) fn resolve(output: Output) -> Result<Output> {
    Ok(Output { path: atomic::resolve(&output.path)?, ..output })
}

/// The hidden folder in which rows are gathered: beside a file, inside a folder.
pub(crate) fn working_folder(output: &Output, shard: Option<Shard>) -> PathBuf {
    match (output.format, shard) {
        (OutputFormat::Folder, Some(shard)) => output.path.join(format!(".prior-embed-{}", of_shard(shard))),
        (OutputFormat::Folder, None) => output.path.join(".prior-embed"),
        _ => parent(&output.path).join(hidden_name(&output.path, ".prior-embed")),
    }
}

/// Whether an earlier run of an output, whose links are resolved, has not come to its end. What is there may be
/// foreign; an empty folder is what a run leaves that is killed when all is done.
pub(crate) fn has_stopped_run(output: &Output, shard: Option<Shard>) -> bool {
    let folder = working_folder(output, shard);
    fs::symlink_metadata(&folder).is_ok() && !fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// The file of a shard's record.
pub(crate) fn shard_file(output: &Output, shard: Shard) -> PathBuf {
    match output.format {
        OutputFormat::Folder => output.path.join(format!("shard-{}.json", of_shard(shard))),
        _ => with_suffix(&output.path, SHARD_SUFFIX),
    }
}

/// A shard in the names of files.
fn of_shard(shard: Shard) -> String {
    format!("{}-of-{}", shard.index, shard.count)
}

/// The shard that a file in a folder belongs to, by its name.
pub(crate) fn shard_of_name(name: &str) -> Option<Shard> {
    let record = name.strip_prefix("shard-").and_then(|name| name.strip_suffix(".json"));
    let (index, count) = record.or_else(|| name.strip_prefix(".prior-embed-"))?.split_once("-of-")?;
    Some(Shard { index: index.parse().ok()?, count: count.parse().ok()? })
}

/// The file of an unsharded output's record; `None` if its name would be too long.
pub(crate) fn record_file(path: &Path) -> Option<PathBuf> {
    let file = with_suffix(path, RECORD_SUFFIX);
    file.file_name().is_some_and(|name| name.len() <= MAX_NAME).then_some(file)
}

/// Whether a file is the record of an unsharded output, which goes with that output.
pub(crate) fn is_record(file: &Path) -> bool {
    file.to_string_lossy().ends_with(RECORD_SUFFIX) && matches!(OutputRecord::read(file), Ok(Some(_)))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

/// The name of a path between a dot and `suffix`, shortened if a shard's record beside it would exceed the maximum.
fn hidden_name(path: &Path, suffix: &str) -> OsString {
    let name = path.file_name().unwrap_or_default();
    let mut hidden = OsString::from(".");
    if 1 + name.len() + suffix.len() + SHARD_SUFFIX.len() <= MAX_NAME {
        hidden.push(name);
    } else {
        let start: String = name.to_string_lossy().chars().take(SHORT_NAME).collect();
        hidden.push(format!("{start}-{:08x}", crc32fast::hash(name.as_encoded_bytes())));
    }
    hidden.push(suffix);
    hidden
}

/// Refuses places where nothing can be written, and two outputs in one place.
///
/// # Errors
/// [`crate::bad_input::BadInput`] with the reason.
pub(crate) fn check_paths(outputs: &[Output], options: &WriteOptions) -> Result<()> {
    for (place, output) in outputs.iter().enumerate() {
        let path = &output.path;
        let name = shown(path);
        let is_folder = output.format == OutputFormat::Folder;
        if path.is_dir() && !is_folder {
            return Err(bad_input!("{name} is a folder; give a file name"));
        }
        if path.exists() && !path.is_dir() && is_folder {
            return Err(bad_input!("{name} is a file; give the name of a folder"));
        }
        if !parent(path).is_dir() {
            return Err(bad_input!("cannot write {name}: there is no folder {:?}; make it first", parent(path)));
        }
        if !is_folder && path.file_name().is_none() {
            return Err(bad_input!("{name} is not a file name"));
        }
        let record = options.shard.filter(|_| !output.format.sink().holds_record());
        let longest = record.map_or_else(|| path.clone(), |shard| shard_file(output, shard));
        if longest.file_name().is_some_and(|name| name.len() > MAX_NAME) {
            let name = shown(&longest);
            return Err(bad_input!("{name} is longer than a file's name may be; give a shorter one"));
        }
        if outputs[..place].iter().any(|other| whole(&other.path) == whole(path)) {
            return Err(bad_input!("{name} is named twice as an output; give two names"));
        }
    }
    Ok(())
}

/// A path of a file that may not exist yet, without links and dots.
pub(crate) fn whole(path: &Path) -> Option<PathBuf> {
    Some(fs::canonicalize(parent(path)).ok()?.join(path.file_name()?))
}

/// A folder that was created for an output, and goes if nothing comes of it.
#[derive(Debug)]
pub(crate) struct MadeFolder(Option<PathBuf>);

impl MadeFolder {
    /// Creates the folder of an output that is one, if it does not exist.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it cannot be created.
    pub(crate) fn make(output: &Output) -> Result<Self> {
        if output.format != OutputFormat::Folder {
            return Ok(Self(None));
        }
        let failed = || format!("cannot make the folder {}", shown(&output.path));
        match fs::create_dir(&output.path) {
            Ok(()) => {
                let made = Self(Some(output.path.clone()));
                sync_path(parent(&output.path)).or_bad_input(failed)?;
                Ok(made)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self(None)),
            Err(error) => Err(error).or_bad_input(failed),
        }
    }
}

impl Drop for MadeFolder {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            // Not if something is in it.
            let _ = fs::remove_dir(folder);
        }
    }
}
