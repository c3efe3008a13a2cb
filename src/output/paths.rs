//! Where files lie: outputs, what is beside them, and what must not be there already.

use super::atomic;
use super::shard::ShardRecord;
use super::{Arrays, Output, OutputFormat, WriteOptions, folder};
use crate::bad_input;
use crate::bad_input::OrBadInput;
use crate::files::parent;
use anyhow::Result;
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// What the name of a file with a shard's record adds to the output's.
pub(crate) const SHARD_SUFFIX: &str = ".shard.json";

/// What the name of the record of an output that is no shard adds to the output's.
const RECORD_SUFFIX: &str = ".run.json";

/// The longest record that is read.
const LONGEST_RECORD: u64 = 64 << 20;

/// Bytes of the longest name that common file systems take.
pub(crate) const LONGEST_NAME: usize = 255;

/// Characters of a name that is shortened: of four bytes each, they still leave room for a suffix.
const SHORT_NAME: usize = 48;

/// Whether a form of output has a place for a shard's record.
pub(crate) fn holds_record(format: OutputFormat) -> bool {
    matches!(format, OutputFormat::Safetensors | OutputFormat::Parquet)
}

/// A path as messages show it.
pub(crate) fn shown(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// The output with links followed, so that what they lead to is written and not the link replaced.
pub(crate) fn resolve(output: Output) -> Result<Output> {
    Ok(Output { path: atomic::resolve(&output.path)?, ..output })
}

/// The hidden folder in which rows gather: beside a file, inside a folder.
pub(crate) fn working_folder(output: &Output) -> PathBuf {
    match output.format {
        OutputFormat::Folder => output.path.join(".prior-embed"),
        _ => parent(&output.path).join(hidden_name(&output.path, ".prior-embed")),
    }
}

/// Whether an earlier run that writes the output, whose links are followed, has not come to its end. What is there may be
/// another's; but an empty folder is what a run left that was killed when all was done.
pub(crate) fn has_stopped_run(output: &Output) -> bool {
    let folder = working_folder(output);
    fs::symlink_metadata(&folder).is_ok() && !fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// The file with a shard's record that goes with an output.
pub(crate) fn shard_file(path: &Path, format: OutputFormat) -> PathBuf {
    match format {
        OutputFormat::Folder => path.join(&SHARD_SUFFIX[1..]),
        _ => with_suffix(path, SHARD_SUFFIX),
    }
}

/// The file with the record of an output that is no shard; `None` if its name would be too long.
pub(crate) fn record_file(path: &Path) -> Option<PathBuf> {
    let file = with_suffix(path, RECORD_SUFFIX);
    file.file_name().is_some_and(|name| name.len() <= LONGEST_NAME).then_some(file)
}

/// The record of an output in a file, if there is one.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if it is none.
pub(crate) fn read_record(file: &Path) -> Result<Option<ShardRecord>> {
    if !fs::metadata(file).is_ok_and(|metadata| metadata.is_file()) {
        return Ok(None);
    }
    let name = shown(file);
    let mut text = Vec::new();
    let read = fs::File::open(file).and_then(|file| file.take(LONGEST_RECORD).read_to_end(&mut text));
    read.or_bad_input(|| format!("cannot read {name}"))?;
    serde_json::from_slice(&text).map(Some).or_bad_input(|| format!("{name} is no record of an output"))
}

/// Whether a file is the record of an output that is no shard: it goes with that output.
pub(crate) fn is_record(file: &Path) -> bool {
    file.to_string_lossy().ends_with(RECORD_SUFFIX) && matches!(read_record(file), Ok(Some(_)))
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

/// The name of a path between a dot and `suffix`, shortened if no file name may be as long as that of a shard's record
/// beside it.
fn hidden_name(path: &Path, suffix: &str) -> OsString {
    let name = path.file_name().unwrap_or_default();
    let mut hidden = OsString::from(".");
    if 1 + name.len() + suffix.len() + SHARD_SUFFIX.len() <= LONGEST_NAME {
        hidden.push(name);
    } else {
        let start: String = name.to_string_lossy().chars().take(SHORT_NAME).collect();
        hidden.push(format!("{start}-{:08x}", crc32fast::hash(name.as_encoded_bytes())));
    }
    hidden.push(suffix);
    hidden
}

/// Refuses places where nothing can be written, and two outputs in one place.
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
            return Err(bad_input!("{name} is no file name"));
        }
        let record = shard_file(path, output.format);
        let longest = if options.shard.is_some() && !holds_record(output.format) { &record } else { path };
        if longest.file_name().is_some_and(|name| name.len() > LONGEST_NAME) {
            let name = shown(longest);
            return Err(bad_input!("{name} is longer than a file's name may be; give a shorter one"));
        }
        if outputs[..place].iter().any(|other| whole(&other.path) == whole(path)) {
            return Err(bad_input!("{name} is named twice as an output; give two names"));
        }
    }
    Ok(())
}

/// A path of a file that may not be there yet, without links and dots.
pub(crate) fn whole(path: &Path) -> Option<PathBuf> {
    Some(fs::canonicalize(parent(path)).ok()?.join(path.file_name()?))
}

/// Refuses outputs that are there already, if they must stay.
pub(crate) fn check_free(outputs: &[Output], options: &WriteOptions) -> Result<()> {
    if options.overwrite {
        return Ok(());
    }
    let records = outputs.iter().filter(|_| options.leaves_record()).filter_map(|output| record_file(&output.path));
    let records = records.filter(|record| !is_record(record));
    for place in outputs.iter().flat_map(places).chain(records) {
        if fs::symlink_metadata(&place).is_ok() {
            let name = shown(&place);
            return Err(if options.resume {
                bad_input!(
                    "{name} is there already, and no stopped run of it to go on with; it does not say with which settings it was made: keep it, or give --overwrite to make it again"
                )
            } else {
                bad_input!("{name} is there already; give another name, or --overwrite to replace it")
            });
        }
    }
    Ok(())
}

/// All places that a form of output has, whatever this one puts there: what is left there of another output would be
/// taken for a part of this one.
pub(crate) fn places(output: &Output) -> Vec<PathBuf> {
    let path = &output.path;
    let mut places = match output.format {
        OutputFormat::Folder => folder::parts(Arrays::Both).iter().map(|part| path.join(part)).collect(),
        _ => vec![path.clone()],
    };
    if !holds_record(output.format) {
        places.push(shard_file(path, output.format));
    }
    places
}

/// A folder that was made for an output, and goes if nothing comes of it.
#[derive(Debug)]
pub(crate) struct MadeFolder(Option<PathBuf>);

impl MadeFolder {
    /// Makes the folder of an output that is one, if it is not there.
    pub(crate) fn make(output: &Output) -> Result<Self> {
        if output.format != OutputFormat::Folder {
            return Ok(Self(None));
        }
        match fs::create_dir(&output.path) {
            Ok(()) => Ok(Self(Some(output.path.clone()))),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self(None)),
            Err(error) => Err(error).or_bad_input(|| format!("cannot make the folder {}", shown(&output.path))),
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
