//! Moves finished files into place.

use super::paths::shown;
use crate::atomic::{self, sync_path};
use crate::bad_input;
use crate::dir::Dir;
use crate::files::parent;
use anyhow::{Context, Error, Result};
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What to do where something is in the way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules<'a> {
    /// Whether it is replaced.
    pub(crate) overwrite: bool,
    /// Whether a run that is refused can be resumed.
    pub(crate) keep: bool,
    /// The hidden folder.
    pub(crate) dir: &'a Dir,
}

impl Rules<'_> {
    /// The error for what must stay.
    fn appeared(self, target: &Path) -> Error {
        let name = shown(target);
        let way_out = if self.keep {
            "--resume --overwrite replaces it, or move it away and --resume"
        } else {
            "run again with another name, or --overwrite"
        };
        bad_input!("{name} appeared while the embeddings were computed; {way_out}")
    }
}

/// A finished file in the hidden folder, and its place.
#[derive(Debug)]
pub(crate) struct Publication {
    pub(crate) part: String,
    pub(crate) target: PathBuf,
}

impl Publication {
    /// Moves the file into place. Idempotent: an earlier run may have got this far.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if something is there and must stay; or if the move fails.
    pub(crate) fn publish(&self, rules: Rules) -> Result<()> {
        let Self { part, target } = self;
        let failed = || format!("cannot move {:?} to {target:?}", rules.dir.path().join(part));
        if rules.dir.kind(part).with_context(failed)?.is_none() {
            return fs::symlink_metadata(target).map(drop).with_context(failed);
        }
        match atomic::move_file(rules.dir, OsStr::new(part), target, rules.overwrite) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(rules.appeared(target)),
            moved => moved.with_context(failed)?,
        }
        sync_path(parent(target)).with_context(failed)
    }
}

/// Removes what belongs to an output that is replaced, and would be taken for a part of the new one.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if it is there and must stay; or if it cannot be removed.
pub(crate) fn remove_stale(place: &Path, rules: Rules) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(place) else { return Ok(()) };
    if !rules.overwrite {
        return Err(rules.appeared(place));
    }
    let removed = if metadata.is_dir() { fs::remove_dir_all(place) } else { fs::remove_file(place) };
    removed.and_then(|()| sync_path(parent(place))).with_context(|| format!("cannot remove {place:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn rules(overwrite: bool, dir: &Dir) -> Rules<'_> {
        Rules { overwrite, keep: true, dir }
    }

    /// A hidden folder, and a part in it with a place beside it.
    fn parts(name: &str) -> (TempDir, Dir, Publication) {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("hidden")).unwrap();
        let dir = Dir::open(&folder.path().join("hidden")).unwrap();
        let publication = Publication { part: "part".into(), target: folder.path().join(name) };
        (folder, dir, publication)
    }

    #[test]
    fn an_existing_file_stays_and_so_does_the_part() {
        let (_folder, dir, publication) = parts("e.npy");
        let part = dir.path().join("part");
        fs::write(&part, "new").unwrap();
        fs::write(&publication.target, "old").unwrap();
        let error = publication.publish(rules(false, &dir)).unwrap_err();
        assert_eq!(crate::cli::errors::exit_code(&error), 2, "{error}");
        assert_eq!(fs::read(&part).unwrap(), b"new");
        assert_eq!(fs::read(&publication.target).unwrap(), b"old");
        publication.publish(rules(true, &dir)).unwrap();
        assert_eq!(fs::read(&publication.target).unwrap(), b"new");
        // A second time there is nothing left to do.
        publication.publish(rules(false, &dir)).unwrap();
    }

    #[test]
    fn stale_files_are_removed_only_with_overwrite() {
        let (folder, dir, _) = parts("");
        let (file, inside) = (folder.path().join("e.npy.shard.json"), folder.path().join("below"));
        fs::write(&file, "old").unwrap();
        fs::create_dir(&inside).unwrap();
        for place in [&file, &inside] {
            assert!(remove_stale(place, rules(false, &dir)).is_err() && place.exists());
            remove_stale(place, rules(true, &dir)).unwrap();
            assert!(!place.exists());
            remove_stale(place, rules(false, &dir)).unwrap();
        }
    }

    #[test]
    fn nothing_to_move_and_nothing_there_is_an_error() {
        let (_folder, dir, publication) = parts("e.npy");
        assert!(publication.publish(rules(true, &dir)).is_err());
    }
}
