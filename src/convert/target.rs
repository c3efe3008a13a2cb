//! A folder that appears whole or not at all.

use super::cannot_write;
use crate::atomic::{exchange, sync_path, sync_tree};
use crate::bad_input;
use crate::error::{OrBadInput, some_of};
use crate::files::parent;
use crate::pipeline::layout::ZERO_IMAGE_EMBED;
use anyhow::{Context, Result};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tempfile::{Builder, TempDir};

/// The file that tells a model's folder from any other, which is never replaced.
const INDEX: &str = "model_index.json";

/// All that a conversion writes. A folder with anything else in it is more than what takes its place.
const WRITTEN: [&str; 8] =
    [INDEX, ZERO_IMAGE_EMBED, "prior", "text_encoder", "image_encoder", "tokenizer", "scheduler", "image_processor"];

/// A folder under another name beside its final place.
pub(super) struct Target {
    path: PathBuf,
    part: TempDir,
    /// Held until the end, so that another conversion to the same place can tell this folder from what a kill left behind.
    lock: Option<File>,
    overwrite: bool,
}

/// How the name of a folder ends that is still being written.
const PART: &str = ".part";

/// How the name of a folder ends whose place is being taken.
const OLD: &str = ".old";

impl Target {
    /// Makes the folder that becomes `path`, and removes what a killed conversion to the same place left there. `sources` are
    /// the files and folders that may not be lost on the way.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if something is there that may not be replaced, or nothing can be written there.
    pub(super) fn open(path: &Path, overwrite: bool, sources: &[&Path]) -> Result<Self> {
        let shown = format!("{:?}", path.display().to_string());
        let Some(name) = path.file_name() else {
            return Err(bad_input!("{shown} is no name for a new folder; give one"));
        };
        remove_leftovers(path, name);
        check_replaceable(path, overwrite, sources)?;
        let folder = parent(path);
        if !folder.is_dir() {
            return Err(bad_input!("cannot write {shown}: there is no folder {folder:?}; make it first"));
        }
        let mut builder = Builder::new();
        let prefix = hidden(name);
        builder.prefix(&prefix).suffix(PART).rand_bytes(RANDOM_CHARACTERS);
        // The permissions of any new folder, which the user's umask narrows; a temporary one's own would be private.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let part = builder
            .tempdir_in(folder)
            .or_bad_input(|| format!("cannot write {shown}: folder {folder:?} cannot be written to"))?;
        let lock = lock(part.path());
        Ok(Self { path: path.to_path_buf(), part, lock, overwrite })
    }

    /// Where to write until then.
    pub(super) fn path(&self) -> &Path {
        self.part.path()
    }

    /// Puts the folder into its place, in place of a model that may be there, when all of it is on disk.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if something appeared there meanwhile; an error if it cannot be put there.
    pub(super) fn finish(self) -> Result<()> {
        let Self { path, part, lock, overwrite } = self;
        let failed = || cannot_write(&path);
        sync_tree(part.path()).with_context(|| cannot_write(part.path()))?;
        check_replaceable(&path, overwrite, &[])?;
        if path.exists() && exchange(part.path(), &path).is_ok() {
            // Under the temporary name there is now what was replaced.
            sync_path(parent(&path)).with_context(failed)?;
            drop(part);
            return Ok(());
        }
        let old = if path.exists() {
            let name = path.file_name().map(hidden).unwrap_or_default();
            let mut builder = Builder::new();
            builder.prefix(&name).suffix(OLD).rand_bytes(RANDOM_CHARACTERS);
            let old = builder.tempdir_in(parent(&path)).with_context(failed)?;
            // A folder takes an empty folder's place.
            fs::rename(&path, old.path()).with_context(failed)?;
            Some(old)
        } else {
            None
        };
        let renamed = fs::rename(part.path(), &path);
        if let (Err(_), Some(old)) = (&renamed, &old) {
            // What was there goes back; that this fails too is beyond mending, and the first error says enough.
            let _ = fs::rename(old.path(), &path);
        }
        renamed.with_context(failed)?;
        // There is nothing under the temporary name any more.
        let _ = part.keep();
        drop(lock);
        sync_path(parent(&path)).with_context(failed)
    }
}

/// Takes the lock on a folder; `None` if another process has it, or the file system has no locks.
fn lock(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

/// Removes what conversions to `path` left behind that were killed. One that was about to put its folder into the place of
/// another gets that other back. What cannot be removed is in nobody's way.
fn remove_leftovers(path: &Path, name: &OsStr) {
    let folder = parent(path);
    let entries = folder.read_dir().into_iter().flatten().flatten();
    for leftover in entries.filter(|entry| is_leftover(&entry.file_name(), name)).map(|entry| entry.path()) {
        let is_folder = fs::symlink_metadata(&leftover).is_ok_and(|metadata| metadata.is_dir());
        if !is_folder || !others_in(&leftover).is_empty() {
            continue;
        }
        let Some(_lock) = lock(&leftover) else { continue };
        let is_old = leftover.extension().is_some_and(|extension| OLD.ends_with(&*extension.to_string_lossy()));
        if is_old && leftover.join(INDEX).is_file() && fs::symlink_metadata(path).is_err() {
            let _ = fs::rename(&leftover, path);
        } else {
            let _ = fs::remove_dir_all(&leftover);
        }
    }
}

/// Characters by which the names of temporary folders for the same place differ.
const RANDOM_CHARACTERS: usize = 6;

/// Whether `entry` is the name of a temporary folder for the target `name`.
fn is_leftover(entry: &OsStr, name: &OsStr) -> bool {
    let (Some(entry), Some(name)) = (entry.to_str(), name.to_str()) else { return false };
    let inner = entry.strip_prefix('.').and_then(|entry| entry.strip_prefix(name));
    let random = inner.and_then(|inner| inner.strip_suffix(PART).or_else(|| inner.strip_suffix(OLD)));
    random.is_some_and(|random| random.len() == RANDOM_CHARACTERS && random.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// The names in a folder that no conversion writes.
fn others_in(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut others: Vec<String> = names.filter(|name| !WRITTEN.contains(&name.as_str())).collect();
    others.sort();
    others
}

/// Refuses to replace anything but an empty folder, or a model if the user wishes so.
fn check_replaceable(path: &Path, overwrite: bool, sources: &[&Path]) -> Result<()> {
    let shown = format!("{:?}", path.display().to_string());
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    if !overwrite {
        return Err(bad_input!("{shown} is there already; give another name, or --overwrite to replace it"));
    }
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_dir()) {
        return Err(bad_input!("{shown} is no folder, and not replaced; give another name"));
    }
    let is_empty = path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty && !path.join(INDEX).is_file() {
        return Err(bad_input!("{shown} holds no model ({INDEX} is missing), and is not replaced; give another name"));
    }
    let is_inside = |source: &&Path| match (path.canonicalize(), source.canonicalize()) {
        (Ok(whole), Ok(source)) => source.starts_with(whole),
        _ => false,
    };
    if sources.iter().any(is_inside) {
        return Err(bad_input!("{shown} holds what is converted, and is not replaced; give another name"));
    }
    let others = others_in(path);
    if others.is_empty() {
        return Ok(());
    }
    Err(bad_input!(
        "{shown} also holds {}, which no conversion writes, and is not replaced; give another name",
        some_of(&others)
    ))
}

fn hidden(name: &OsStr) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden
}
