//! Moves what is complete into its place.

use super::atomic::{self, sync_path};
use super::dir::Dir;
use crate::bad_input;
use crate::files::parent;
use anyhow::{Context, Error, Result};
use rustix::fs::FileType;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Where folders go that are replaced, in the hidden folder.
const TRASH: &str = "replaced";

/// What to do where something is in the way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules<'a> {
    /// Whether it is replaced.
    pub(crate) overwrite: bool,
    /// Whether what was to go there is kept for a run that goes on, if it must stay.
    pub(crate) keep: bool,
    /// The hidden folder.
    pub(crate) dir: &'a Dir,
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
pub(crate) struct Publication {
    /// Where it is in the hidden folder.
    pub(crate) part: PathBuf,
    pub(crate) target: PathBuf,
}

impl Publication {
    /// Moves it into place; what is there already is an error or replaced. Done twice it is done once: an earlier run may
    /// have come this far.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if something is there and must stay; or if the move fails.
    pub(crate) fn publish(&self, rules: Rules) -> Result<()> {
        let Self { part, target } = self;
        let failed = || format!("cannot move {:?} to {target:?}", rules.dir.path().join(part));
        let Some((dir, name, kind)) = self.find(rules.dir).with_context(failed)? else {
            return fs::symlink_metadata(target).map(drop).with_context(failed);
        };
        let moved = match kind {
            FileType::Directory => move_folder(&dir, &name, target, rules),
            _ => atomic::move_file(&dir, &name, target, rules.overwrite),
        };
        match moved {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(rules.appeared(target)),
            moved => moved.with_context(failed)?,
        }
        sync_path(parent(target)).with_context(failed)
    }

    /// Whether it is there to be moved.
    pub(crate) fn is_there(&self, dir: &Dir) -> bool {
        matches!(self.find(dir), Ok(Some(_)))
    }

    fn find(&self, dir: &Dir) -> io::Result<Option<(Dir, std::ffi::OsString, FileType)>> {
        let (dir, name) = match dir.descend(&self.part) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let kind = dir.kind(&name)?;
        Ok(kind.map(|kind| (dir, name, kind)))
    }
}

/// Folders cannot replace each other: the old one moves out of the way first.
fn move_folder(dir: &Dir, name: &OsStr, target: &Path, rules: Rules) -> io::Result<()> {
    if fs::symlink_metadata(target).is_ok() {
        if !rules.overwrite {
            return Err(ErrorKind::AlreadyExists.into());
        }
        move_away(target, rules.dir)?;
    }
    atomic::move_folder(dir, name, target)
}

/// Moves what is to be removed out of the way at once, where that can be done.
fn move_away(target: &Path, dir: &Dir) -> io::Result<()> {
    if dir.kind(TRASH)?.is_none() {
        dir.make_dir(TRASH)?;
    }
    let trash = dir.open_dir(TRASH)?;
    let name = target.file_name().unwrap_or_default();
    trash.remove(name)?;
    match rustix::fs::renameat(rustix::fs::CWD, target, &trash, name) {
        Err(rustix::io::Errno::XDEV) => fs::remove_dir_all(target),
        moved => Ok(moved?),
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
    let removed = if metadata.is_dir() { move_away(place, rules.dir) } else { fs::remove_file(place) };
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
    fn a_file_that_is_there_stays_and_so_does_the_part() {
        let (_folder, dir, publication) = parts("e.npy");
        let part = dir.path().join("part");
        fs::write(&part, "new").unwrap();
        fs::write(&publication.target, "old").unwrap();
        let error = publication.publish(rules(false, &dir)).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2, "{error}");
        assert_eq!(fs::read(&part).unwrap(), b"new");
        assert_eq!(fs::read(&publication.target).unwrap(), b"old");
        publication.publish(rules(true, &dir)).unwrap();
        assert_eq!(fs::read(&publication.target).unwrap(), b"new");
        // A second time there is nothing left to do.
        publication.publish(rules(false, &dir)).unwrap();
    }

    #[test]
    fn a_folder_takes_the_place_of_another_only_if_it_may() {
        let (_folder, dir, publication) = parts("img_emb");
        let part = dir.path().join("part");
        for (path, name) in [(&part, "new"), (&publication.target, "old")] {
            fs::create_dir(path).unwrap();
            fs::write(path.join(name), "").unwrap();
        }
        assert!(publication.publish(rules(false, &dir)).is_err());
        assert!(part.join("new").exists() && publication.target.join("old").exists());
        publication.publish(rules(true, &dir)).unwrap();
        assert!(publication.target.join("new").exists() && !publication.target.join("old").exists());
    }

    #[test]
    fn what_is_stale_is_removed_only_if_it_may_be() {
        let (folder, dir, _) = parts("");
        let (file, inside) = (folder.path().join("e.npy.shard.json"), folder.path().join("negative_img_emb"));
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
