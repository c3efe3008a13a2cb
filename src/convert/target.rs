//! A folder that appears whole or not at all.

use crate::bad_input;
use crate::error::{OrBadInput, some_of};
use crate::files::parent;
use crate::hub::layout::ZERO_IMAGE_EMBED;
use anyhow::{Context, Result};
use std::ffi::OsString;
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
    overwrite: bool,
}

impl Target {
    /// Makes the folder that becomes `path`. `sources` are the files and folders that may not be lost on the way.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if something is there that may not be replaced, or nothing can be written there.
    pub(super) fn open(path: &Path, overwrite: bool, sources: &[&Path]) -> Result<Self> {
        let shown = format!("{:?}", path.display().to_string());
        let Some(name) = path.file_name() else {
            return Err(bad_input!("{shown} is no name for a new folder; give one"));
        };
        check_replaceable(path, overwrite, sources)?;
        let folder = parent(path);
        if !folder.is_dir() {
            return Err(bad_input!("cannot write {shown}: there is no folder {folder:?}; make it first"));
        }
        let mut builder = Builder::new();
        let prefix = hidden(name);
        builder.prefix(&prefix).suffix(".part");
        // The permissions of any new folder, which the user's umask narrows; a temporary one's own would be private.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let part = builder
            .tempdir_in(folder)
            .or_bad_input(|| format!("cannot write {shown}: folder {folder:?} cannot be written to"))?;
        Ok(Self { path: path.to_path_buf(), part, overwrite })
    }

    /// Where to write until then.
    pub(super) fn path(&self) -> &Path {
        self.part.path()
    }

    /// Puts the folder into its place, in place of a model that may be there.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if something appeared there meanwhile; an error if it cannot be put there.
    pub(super) fn finish(self) -> Result<()> {
        let Self { path, part, overwrite } = self;
        let failed = || format!("cannot write {}: is the disk full?", path.display());
        check_replaceable(&path, overwrite, &[])?;
        let old = if path.exists() {
            let name = path.file_name().map(hidden).unwrap_or_default();
            let old = Builder::new().prefix(&name).suffix(".old").tempdir_in(parent(&path)).with_context(failed)?;
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
        sync(parent(&path))
    }
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
    let entries = path.read_dir().into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut others: Vec<String> = names.filter(|name| !WRITTEN.contains(&name.as_str())).collect();
    others.sort();
    if others.is_empty() {
        return Ok(());
    }
    Err(bad_input!(
        "{shown} also holds {}, which no conversion writes, and is not replaced; give another name",
        some_of(&others)
    ))
}

/// Waits until a file or folder is on disk.
pub(super) fn sync(path: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(path)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot write {}: is the disk full?", path.display()))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

fn hidden(name: &std::ffi::OsStr) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden
}
