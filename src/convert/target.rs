//! A folder that appears whole or not at all.

use crate::bad_input;
use crate::error::{OrBadInput, some_of};
use crate::files::parent;
use crate::output::atomic::sync_path;
use crate::pipeline::layout::{INDEX, ZERO_IMAGE_EMBED};
use anyhow::{Context, Result};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tempfile::{Builder, TempDir};

/// All that a conversion writes. A folder with anything else in it is not replaced.
const WRITTEN: [&str; 8] =
    [INDEX, ZERO_IMAGE_EMBED, "prior", "text_encoder", "image_encoder", "tokenizer", "scheduler", "image_processor"];

/// A temporary folder beside its final path.
pub(super) struct Target {
    path: PathBuf,
    part: TempDir,
    /// Held until the end, so that another conversion to the same path can tell this folder from the remains of a
    /// killed one.
    lock: Option<File>,
    overwrite: bool,
}

/// The suffix of a folder that is being written.
const PART: &str = ".part";

/// The suffix of a folder that is being replaced.
const OLD: &str = ".old";

impl Target {
    /// Makes the temporary folder of `path`, and removes the remains of killed conversions to the same path. `inputs`
    /// must not be replaced.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if `path` exists and may not be replaced, or cannot be written.
    pub(super) fn open(path: &Path, overwrite: bool, inputs: &[&Path]) -> Result<Self> {
        let shown = format!("{:?}", path.display().to_string());
        let Some(name) = path.file_name() else {
            return Err(bad_input!("{shown} is no name for a new folder; give one"));
        };
        remove_leftovers(path, name);
        check_replaceable(path, overwrite, inputs)?;
        let folder = parent(path);
        if !folder.is_dir() {
            return Err(bad_input!("cannot write {shown}: there is no folder {folder:?}; make it first"));
        }
        let mut builder = Builder::new();
        let prefix = hidden(name);
        builder.prefix(&prefix).suffix(PART).rand_bytes(RANDOM_CHARACTERS);
        // Those of any new folder, less the umask; by default a temporary folder is private.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let part = builder
            .tempdir_in(folder)
            .or_bad_input(|| format!("cannot write {shown}: folder {folder:?} cannot be written to"))?;
        let lock = lock(part.path());
        Ok(Self { path: path.to_path_buf(), part, lock, overwrite })
    }

    /// The temporary folder.
    pub(super) fn path(&self) -> &Path {
        self.part.path()
    }

    /// Syncs the folder to disk and renames it to its final path, replacing a model that may be there.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if something appeared there meanwhile; an error if it cannot be renamed.
    pub(super) fn finish(self) -> Result<()> {
        let Self { path, part, lock, overwrite } = self;
        let failed = || cannot_write(&path);
        sync_all(part.path())?;
        check_replaceable(&path, overwrite, &[])?;
        if path.exists() && exchange(part.path(), &path).is_ok() {
            // The temporary name now has what was replaced.
            sync(parent(&path))?;
            drop(part);
            return Ok(());
        }
        let old = if path.exists() {
            let name = path.file_name().map(hidden).unwrap_or_default();
            let mut builder = Builder::new();
            builder.prefix(&name).suffix(OLD).rand_bytes(RANDOM_CHARACTERS);
            let old = builder.tempdir_in(parent(&path)).with_context(failed)?;
            // Renaming to an empty folder replaces it.
            fs::rename(&path, old.path()).with_context(failed)?;
            Some(old)
        } else {
            None
        };
        let renamed = fs::rename(part.path(), &path);
        if let (Err(_), Some(old)) = (&renamed, &old) {
            // Restores what was there; if this fails too, the first error is the one to report.
            let _ = fs::rename(old.path(), &path);
        }
        renamed.with_context(failed)?;
        // The temporary name is gone.
        let _ = part.keep();
        drop(lock);
        sync(parent(&path))
    }
}

/// Swaps two folders atomically, so that there is a whole one at any time.
#[cfg(target_os = "linux")]
fn exchange(one: &Path, other: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Locks a folder; `None` if another process holds the lock, or the file system has none.
fn lock(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

/// Removes the remains of killed conversions to `path`. If one was killed while it replaced a model, that model is
/// restored. Errors are ignored: remains do no harm.
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

/// Random characters in the name of a temporary folder.
const RANDOM_CHARACTERS: usize = 6;

/// Whether `entry` is the name of a temporary folder of the target `name`.
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

/// Refuses to replace anything but, with `overwrite`, an empty folder or a model.
fn check_replaceable(path: &Path, overwrite: bool, inputs: &[&Path]) -> Result<()> {
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
    let is_inside = |input: &&Path| match (path.canonicalize(), input.canonicalize()) {
        (Ok(whole), Ok(input)) => input.starts_with(whole),
        _ => false,
    };
    if inputs.iter().any(is_inside) {
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

/// Syncs a folder and its contents to disk.
fn sync_all(folder: &Path) -> Result<()> {
    let entries = folder.read_dir().and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    for entry in entries.with_context(|| cannot_write(folder))? {
        let path = entry.path();
        if path.is_dir() { sync_all(&path)? } else { sync(&path)? }
    }
    sync(folder)
}

/// Syncs a file or folder to disk, if the file system supports it.
fn sync(path: &Path) -> Result<()> {
    sync_path(path).with_context(|| cannot_write(path))
}

pub(super) fn cannot_write(path: &Path) -> String {
    format!("cannot write {}: is the disk full?", path.display())
}

fn hidden(name: &OsStr) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden
}
