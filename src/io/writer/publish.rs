//! Moves what is complete into its place.

use crate::bad_input;
use crate::files::parent;
use anyhow::{Context, Error, Result};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use tempfile::TempPath;

/// What to do where something is in the way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    /// Whether it is replaced.
    pub(super) overwrite: bool,
    /// Whether what was to go there is kept for a run that goes on, if it must stay.
    pub(super) keep: bool,
    /// Where folders go that are replaced.
    pub(super) trash: &'a Path,
}

impl Rules<'_> {
    /// The error for what must stay.
    fn appeared(self, target: &Path) -> Error {
        let name = target.display().to_string();
        let way_out = if self.keep {
            "--resume --overwrite replaces it, or move it away and --resume"
        } else {
            "run again with another name, or --overwrite"
        };
        bad_input!("{name:?} appeared while the embeddings were computed; {way_out}")
    }
}

/// A complete file or folder, and its place.
#[derive(Debug)]
pub(super) struct Publication {
    pub(super) part: PathBuf,
    pub(super) target: PathBuf,
}

impl Publication {
    /// Moves it into place; what is there already is an error or replaced. Done twice it is done once: an earlier run may
    /// have come this far.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if something is there and must stay; or if the move fails.
    pub(super) fn publish(&self, rules: Rules) -> Result<()> {
        let Self { part, target } = self;
        let failed = || format!("cannot move {part:?} to {target:?}");
        let Ok(metadata) = fs::symlink_metadata(part) else {
            return fs::symlink_metadata(target).map(drop).with_context(failed);
        };
        let moved = match (metadata.is_dir(), rules.overwrite) {
            (true, _) => move_folder(part, target, rules),
            (false, true) => fs::rename(part, target),
            (false, false) => move_to_free_place(part, target),
        };
        match moved {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(rules.appeared(target)),
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
fn move_folder(part: &Path, target: &Path, rules: Rules) -> io::Result<()> {
    if fs::symlink_metadata(target).is_ok() {
        if !rules.overwrite {
            return Err(ErrorKind::AlreadyExists.into());
        }
        move_away(target, rules.trash)?;
    }
    fs::rename(part, target)
}

fn move_away(target: &Path, trash: &Path) -> io::Result<()> {
    fs::create_dir_all(trash)?;
    let old = trash.join(target.file_name().unwrap_or_default());
    if old.is_dir() {
        fs::remove_dir_all(&old)?;
    }
    fs::rename(target, old)
}

/// Removes what belongs to an output that is replaced, and would be taken for a part of the new one.
///
/// # Errors
/// [`crate::error::BadInput`] if it is there and must stay; or if it cannot be removed.
pub(super) fn remove_stale(place: &Path, rules: Rules) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(place) else { return Ok(()) };
    if !rules.overwrite {
        return Err(rules.appeared(place));
    }
    let removed = if metadata.is_dir() { move_away(place, rules.trash) } else { fs::remove_file(place) };
    removed.and_then(|()| sync_folder(parent(place))).with_context(|| format!("cannot remove {place:?}"))
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

    fn rules(overwrite: bool, trash: &Path) -> Rules<'_> {
        Rules { overwrite, keep: true, trash }
    }

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
        let trash = folder.path().join("trash");
        let error = publication.publish(rules(false, &trash)).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2, "{error}");
        assert_eq!(fs::read(&publication.part).unwrap(), b"new");
        assert_eq!(fs::read(&publication.target).unwrap(), b"old");
        publication.publish(rules(true, &trash)).unwrap();
        assert_eq!(fs::read(&publication.target).unwrap(), b"new");
        // A second time there is nothing left to do.
        publication.publish(rules(false, &trash)).unwrap();
    }

    #[test]
    fn a_folder_takes_the_place_of_another_only_if_it_may() {
        let (folder, publication) = parts("img_emb");
        let trash = folder.path().join("trash");
        for (path, name) in [(&publication.part, "new"), (&publication.target, "old")] {
            fs::create_dir(path).unwrap();
            fs::write(path.join(name), "").unwrap();
        }
        assert!(publication.publish(rules(false, &trash)).is_err());
        assert!(publication.part.join("new").exists() && publication.target.join("old").exists());
        publication.publish(rules(true, &trash)).unwrap();
        assert!(publication.target.join("new").exists() && !publication.target.join("old").exists());
    }

    #[test]
    fn what_is_stale_is_removed_only_if_it_may_be() {
        let folder = TempDir::new().unwrap();
        let trash = folder.path().join("trash");
        let (file, inside) = (folder.path().join("e.npy.shard.json"), folder.path().join("negative_img_emb"));
        fs::write(&file, "old").unwrap();
        fs::create_dir(&inside).unwrap();
        for place in [&file, &inside] {
            assert!(remove_stale(place, rules(false, &trash)).is_err() && place.exists());
            remove_stale(place, rules(true, &trash)).unwrap();
            assert!(!place.exists());
            remove_stale(place, rules(false, &trash)).unwrap();
        }
    }

    #[test]
    fn nothing_to_move_and_nothing_there_is_an_error() {
        let (folder, publication) = parts("e.npy");
        assert!(publication.publish(rules(true, folder.path())).is_err());
    }
}
