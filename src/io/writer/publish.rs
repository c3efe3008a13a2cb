//! Moves what is complete into its place.

use crate::bad_input;
use anyhow::{Context, Result};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use tempfile::TempPath;

/// A complete file or folder, and its place.
#[derive(Debug)]
pub(super) struct Publication {
    pub(super) part: PathBuf,
    pub(super) target: PathBuf,
}

impl Publication {
    /// Moves it into place; what is there already is an error or, with `overwrite`, replaced. Done twice it is done once:
    /// an earlier run may have come this far.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if something is there and must stay; or if the move fails.
    pub(super) fn publish(&self, overwrite: bool, trash: &Path) -> Result<()> {
        let Self { part, target } = self;
        let failed = || format!("cannot move {part:?} to {target:?}");
        let Ok(metadata) = fs::symlink_metadata(part) else {
            return fs::symlink_metadata(target).map(drop).with_context(failed);
        };
        let moved = match (metadata.is_dir(), overwrite) {
            (true, _) => move_folder(part, target, overwrite, trash),
            (false, true) => fs::rename(part, target),
            (false, false) => move_to_free_place(part, target),
        };
        match moved {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let name = target.display().to_string();
                return Err(bad_input!(
                    "{name:?} appeared while the embeddings were computed; --resume --overwrite replaces it, or move it away and --resume"
                ));
            }
            moved => moved.with_context(failed)?,
        }
        sync_folder(parent(target)).with_context(failed)
    }
}

fn move_to_free_place(part: &Path, target: &Path) -> io::Result<()> {
    let Err(error) = TempPath::try_from_path(part)?.persist_noclobber(target) else { return Ok(()) };
    // Or it would be removed.
    let _ = error.path.keep();
    Err(error.error)
}

/// Folders cannot replace each other: the old one moves out of the way first.
fn move_folder(part: &Path, target: &Path, overwrite: bool, trash: &Path) -> io::Result<()> {
    if fs::symlink_metadata(target).is_ok() {
        if !overwrite {
            return Err(ErrorKind::AlreadyExists.into());
        }
        fs::create_dir_all(trash)?;
        let old = trash.join(target.file_name().unwrap_or_default());
        if old.is_dir() {
            fs::remove_dir_all(&old)?;
        }
        fs::rename(target, old)?;
    }
    fs::rename(part, target)
}

/// The folder that a path is in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits until the names in a folder are on the disk.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    // Elsewhere a folder cannot be opened, nor needs to be.
    if cfg!(unix) {
        match fs::File::open(folder)?.sync_all() {
            // Some file systems cannot.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {}
            synced => synced?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn parts(name: &str) -> (TempDir, Publication) {
        let folder = TempDir::new().unwrap();
        let publication = Publication { part: folder.path().join("part"), target: folder.path().join(name) };
        (folder, publication)
    }

    #[test]
    fn a_file_that_is_there_stays_and_so_does_the_part() {
        let (folder, publication) = parts("e.npy");
        fs::write(&publication.part, "new").unwrap();
        fs::write(&publication.target, "old").unwrap();
        let error = publication.publish(false, &folder.path().join("trash")).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2, "{error}");
        assert_eq!(fs::read(&publication.part).unwrap(), b"new");
        assert_eq!(fs::read(&publication.target).unwrap(), b"old");
        publication.publish(true, &folder.path().join("trash")).unwrap();
        assert_eq!(fs::read(&publication.target).unwrap(), b"new");
        // A second time there is nothing left to do.
        publication.publish(false, &folder.path().join("trash")).unwrap();
    }

    #[test]
    fn a_folder_takes_the_place_of_another_only_if_it_may() {
        let (folder, publication) = parts("img_emb");
        let trash = folder.path().join("trash");
        for (path, name) in [(&publication.part, "new"), (&publication.target, "old")] {
            fs::create_dir(path).unwrap();
            fs::write(path.join(name), "").unwrap();
        }
        assert!(publication.publish(false, &trash).is_err());
        assert!(publication.part.join("new").exists() && publication.target.join("old").exists());
        publication.publish(true, &trash).unwrap();
        assert!(publication.target.join("new").exists() && !publication.target.join("old").exists());
    }

    #[test]
    fn nothing_to_move_and_nothing_there_is_an_error() {
        let (folder, publication) = parts("e.npy");
        assert!(publication.publish(true, folder.path()).is_err());
    }
}
