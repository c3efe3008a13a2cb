//! Who owns a hidden folder: one run at a time works in it, and only if this program made it for this user.
//!
//! It is ours if it is a folder and not a link to one, belongs to the owner of new files here, and holds a journal of
//! ours. An empty one, or one with nothing but an empty journal, is what a run leaves that is killed as it starts.
//! Anything else is foreign: it is left alone and the run is refused.

use super::fingerprint::Fingerprint;
use super::journal::{End, Line, Reader};
use crate::atomic::owner_of_new_files;
use crate::bad_input;
use crate::bad_input::OrBadInput;
use crate::dir::{Access, Dir, WrongKind};
use crate::files::parent;
use anyhow::{Error, Result};
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The name of the journal, which is locked.
pub(crate) const JOURNAL: &str = "journal.jsonl";

/// How often to retry when another run has just finished and removed the folder.
const MAX_ATTEMPTS: usize = 100;

/// Creates or finds the folder at `path` and locks its journal, which is open for reading and appending. `name` is what
/// messages call the output.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the folder cannot be created, is not ours, or another run works in it.
pub(crate) fn claim(path: &Path, name: &str) -> Result<(Dir, File)> {
    let failed = || format!("cannot write {name}: folder {:?} cannot be written to", parent(path));
    for _ in 0..MAX_ATTEMPTS {
        match Dir::make_private(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error).or_bad_input(failed),
            _ => {}
        }
        let Some((dir, journal)) = find(path, name)? else { continue };
        let journal = match journal {
            Some(journal) => journal,
            None => match dir.create(JOURNAL, Access::Append) {
                // Another run was quicker, or has just finished.
                Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => continue,
                journal => journal.or_bad_input(failed)?,
            },
        };
        match journal.try_lock() {
            Ok(()) if dir.is_in_place() && is_at(&journal, &dir) => return Ok((dir, journal)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(bad_input!("{name} is being written by another run; wait for it, or give another name"));
            }
            Err(TryLockError::Error(error)) => {
                log::warn!("{path:?} cannot be locked ({error}); let no other run write {name}");
                return Ok((dir, journal));
            }
        }
    }
    Err(bad_input!("cannot write {name}: {path:?} keeps changing; let no other program write there"))
}

/// Checks that the folder at `path`, if there is one, is ours, without touching it.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if it is not.
pub(crate) fn check(path: &Path, name: &str) -> Result<()> {
    find(path, name).map(drop)
}

/// The settings of the run that works or was stopped in the folder at `path`.
pub(crate) fn stopped_run(path: &Path) -> Option<Fingerprint> {
    let (_, journal) = find(path, "").ok()??;
    match Reader::new(&journal?).ok()?.next_line() {
        Ok(Some(Line::Header(header))) => Some(header.fingerprint),
        _ => None,
    }
}

/// The folder at `path` and its journal, if they exist.
fn find(path: &Path, name: &str) -> Result<Option<(Dir, Option<File>)>> {
    let not_ours = |why: &str| -> Error {
        bad_input!(
            "{path:?} is in the way: {why}; the rows of {name} are gathered there: move it away, or give another name"
        )
    };
    let unusable = |what: &str, error: io::Error| match WrongKind::of(&error) {
        Some(kind) => not_ours(&format!("{what} {kind}")),
        None => not_ours(&format!("{what} cannot be opened ({error})")),
    };
    let its_journal = format!("its {JOURNAL}");
    let dir = match Dir::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        dir => dir.map_err(|error| unusable("it", error))?,
    };
    let owner = owner_of_new_files(parent(path))
        .or_bad_input(|| format!("cannot write {name}: folder {:?} cannot be written to", parent(path)))?;
    let owned = |uid: io::Result<u32>| uid.is_ok_and(|uid| uid == owner);
    if !owned(dir.owner()) {
        return Err(not_ours("it is another user's"));
    }
    let names = dir.names().map_err(|error| unusable("it", error))?;
    if names.is_empty() {
        return Ok(Some((dir, None)));
    }
    let journal = match dir.open_file(JOURNAL, Access::Append) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // Unless another run is removing it.
            let is_gone = !dir.is_in_place() || dir.names().is_ok_and(|names| names.is_empty());
            return if is_gone { Ok(None) } else { Err(not_ours("this program did not make it")) };
        }
        journal => journal.map_err(|error| unusable(&its_journal, error))?,
    };
    if !owned(journal.metadata().map(|metadata| metadata.uid())) {
        return Err(not_ours(&format!("{its_journal} is another user's")));
    }
    let mut lines = Reader::new(&journal).or_bad_input(|| format!("cannot read {:?}", path.join(JOURNAL)))?;
    let first = lines.next_line().or_bad_input(|| format!("cannot read {:?}", path.join(JOURNAL)))?;
    match first {
        Some(Line::Header(_)) => {}
        // Still empty.
        None if lines.end() != Some(End::Damaged) && names.len() == 1 => {}
        _ => return Err(not_ours(&format!("{its_journal} is damaged, or another program's"))),
    }
    Ok(Some((dir, Some(journal))))
}

/// Whether a journal is still the one in its folder: the run that held the lock may have removed that.
fn is_at(journal: &File, dir: &Dir) -> bool {
    let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
    dir.open_file(JOURNAL, Access::Read).is_ok_and(|there| identity(&there) == identity(journal))
}
