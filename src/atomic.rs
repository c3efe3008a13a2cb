//! Files that appear whole or not at all: written under another name, synced, renamed.

use crate::bad_input;
use crate::dir::{Access, Dir, if_supported};
use crate::files::parent;
use anyhow::Result;
use rustix::fs::{AtFlags, CWD, RenameFlags, linkat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile, tempfile_in};

/// Links that are followed one after the other, as in Linux.
const MAX_LINKS: usize = 40;

/// The path that `path` leads to with all links followed, even to a file that does not exist yet: the target is written
/// and the link stays.
///
/// # Errors
/// [`crate::bad_input::BadInput`] for a loop of links, and for a link that another user left in a folder that everybody can
/// write to.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf> {
    // Without a trailing slash, which would follow the link at once.
    let mut path: PathBuf = path.components().collect();
    for _ in 0..MAX_LINKS {
        let Ok(metadata) = fs::symlink_metadata(&path) else { return Ok(path) };
        if !metadata.is_symlink() {
            return Ok(fs::canonicalize(&path).unwrap_or(path));
        }
        if is_of_a_stranger(&path, &metadata) {
            return Err(bad_input!("{path:?} is a link that another user made; give another name"));
        }
        let Ok(target) = fs::read_link(&path) else { return Ok(path) };
        path = parent(&path).join(target);
    }
    Err(bad_input!("{path:?} is a loop of links; give another name"))
}

/// Whether a link is in a sticky folder that everybody can write to, such as `/tmp`, and belongs neither to this user
/// nor to the folder's owner: Linux's own rule under `fs.protected_symlinks`.
fn is_of_a_stranger(link: &Path, metadata: &fs::Metadata) -> bool {
    const STICKY_FOR_ALL: u32 = 0o1002;
    let folder = parent(link);
    fs::metadata(folder).is_ok_and(|folder_metadata| {
        folder_metadata.mode() & STICKY_FOR_ALL == STICKY_FOR_ALL
            && metadata.uid() != folder_metadata.uid()
            && owner_of_new_files(folder).is_ok_and(|owner| owner != metadata.uid())
    })
}

/// The user that owns files which this process creates in `folder`: itself or, on some network file systems, another.
///
/// # Errors
/// If none can be created there.
pub(crate) fn owner_of_new_files(folder: &Path) -> io::Result<u32> {
    Ok(tempfile_in(folder)?.metadata()?.uid())
}

/// Syncs a file to disk.
///
/// # Errors
/// If the disk fails.
pub(crate) fn sync_all(file: &File) -> io::Result<()> {
    if_supported(file.sync_all())
}

/// Syncs a file's contents to disk.
///
/// # Errors
/// If the disk fails.
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    if_supported(file.sync_data())
}

/// Syncs a file, or the names in a folder, to disk.
///
/// # Errors
/// If the disk fails.
pub(crate) fn sync_path(path: &Path) -> io::Result<()> {
    if_supported(File::open(path)?.sync_all())
}

/// Syncs a folder and everything below it to disk.
///
/// # Errors
/// If the disk fails.
pub(crate) fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.is_dir() { sync_tree(&path)? } else { sync_path(&path)? }
    }
    sync_path(folder)
}

/// Writes a file beside `target` and renames it there, synced. On an error nothing is left behind.
///
/// # Errors
/// Those of `write`; if it cannot be created or moved; [`ErrorKind::AlreadyExists`] if something is there and
/// `overwrite` is not set.
pub(crate) fn write<E: From<io::Error>>(
    target: &Path,
    overwrite: bool,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let mut part = create_part(target)?;
    write(part.as_file_mut())?;
    Ok(persist(part, target, overwrite)?)
}

/// A temporary file beside `target`, removed unless it is persisted.
fn create_part(target: &Path) -> io::Result<NamedTempFile> {
    // The permissions of any new file, which the user's umask narrows; a temporary file's own would be private.
    let mode = Permissions::from_mode(0o666);
    Builder::new().prefix(".prior-embed-").suffix(".part").permissions(mode).tempfile_in(parent(target))
}

fn persist(part: NamedTempFile, target: &Path, overwrite: bool) -> io::Result<()> {
    sync_all(part.as_file())?;
    let persisted = if overwrite {
        keep_permissions(part.as_file(), target);
        part.persist(target)
    } else {
        part.persist_noclobber(target)
    };
    persisted.map(drop).map_err(|error| error.error)
}

/// Gives a file the permissions of the one that it replaces, if that is this user's.
fn keep_permissions(part: &File, target: &Path) {
    let (Ok(old), Ok(new)) = (fs::symlink_metadata(target), part.metadata()) else { return };
    if old.is_file() && old.uid() == new.uid() {
        // As far as that is allowed. The group first, since some of the permissions are the group's.
        let _ = fchown(part, None, Some(old.gid()));
        let _ = part.set_permissions(Permissions::from_mode(old.mode() & 0o777));
    }
}

/// Moves the file `name` of `dir` to `target`, copying it if that is on another device. Idempotent: a killed run may
/// have got as far as the second link or the copy.
///
/// # Errors
/// If it cannot be moved; [`ErrorKind::AlreadyExists`] if something else is there and `overwrite` is not set.
pub(crate) fn move_file(dir: &Dir, name: &OsStr, target: &Path, overwrite: bool) -> io::Result<()> {
    if overwrite && let Ok(part) = dir.open_file(name, Access::Read) {
        keep_permissions(&part, target);
    }
    let moved = if overwrite { rename(dir, name, target) } else { rename_noreplace(dir, name, target) };
    match moved {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && holds_the_same(dir, name, target) => dir.remove(name),
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let mut source = dir.open_file(name, Access::Read)?;
            match write(target, overwrite, |part| io::copy(&mut source, part).map(drop)) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists || !holds_the_same(dir, name, target) => {
                    Err(error)
                }
                _ => dir.remove(name),
            }
        }
        moved => moved,
    }
}

fn rename(dir: &Dir, name: &OsStr, target: &Path) -> io::Result<()> {
    Ok(renameat(dir, name, CWD, target)?)
}

/// [`rename`], if nothing is there.
fn rename_noreplace(dir: &Dir, name: &OsStr, target: &Path) -> io::Result<()> {
    match renameat_with(dir, name, CWD, target, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
        moved => return Ok(moved?),
    }
    match linkat(dir, name, CWD, target, AtFlags::empty()) {
        // Neither is supported: look first.
        Err(Errno::PERM | Errno::NOSYS | Errno::NOTSUP | Errno::MLINK) => match fs::symlink_metadata(target) {
            Ok(_) => Err(ErrorKind::AlreadyExists.into()),
            Err(_) => rename(dir, name, target),
        },
        linked => Ok(linked.and_then(|()| unlinkat(dir, name, AtFlags::empty()))?),
    }
}

/// Lets two folders trade places, so that there is a whole one at any time.
///
/// # Errors
/// If they cannot be moved, or the system has no such call.
#[cfg(target_os = "linux")]
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// Lets two folders trade places: not supported here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Whether `target` is a file with the same contents: a run was killed while it moved it.
fn holds_the_same(dir: &Dir, name: &OsStr, target: &Path) -> bool {
    let same = || -> io::Result<bool> {
        // Once linked, the file has two names.
        let new = dir.open_any_file(name, Access::Read)?;
        let old = fs::symlink_metadata(target)?;
        Ok(old.is_file() && old.len() == new.metadata()?.len() && same_bytes(new, File::open(target)?)?)
    };
    same().unwrap_or(false)
}

/// Whether two files hold the same bytes from their positions on.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn same_bytes(one: File, other: File) -> io::Result<bool> {
    let mut other = BufReader::new(other).bytes();
    for byte in BufReader::new(one).bytes() {
        if other.next().transpose()? != Some(byte?) {
            return Ok(false);
        }
    }
    Ok(other.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    /// Two folders, on two devices where the machine has them.
    fn places() -> [TempDir; 2] {
        let elsewhere = ["/dev/shm", "/run"].iter().find_map(|folder| TempDir::new_in(folder).ok());
        [TempDir::new().unwrap(), elsewhere.unwrap_or_else(|| TempDir::new().unwrap())]
    }

    #[test]
    fn links_are_resolved_even_to_a_missing_file() {
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        fs::write(at("there"), "").unwrap();
        fs::create_dir(at("below")).unwrap();
        for (link, target) in [("a", "b"), ("b", "below/none"), ("c", "there"), ("d", "d"), ("e/", "below")] {
            symlink(target, at(link.trim_end_matches('/'))).unwrap();
        }
        for (link, target) in
            [("a", "below/none"), ("c", "there"), ("e/", "below"), ("there", "there"), ("new", "new"), ("new/", "new")]
        {
            assert_eq!(resolve(&at(link)).unwrap(), at(target));
        }
        assert!(resolve(&at("d")).unwrap_err().to_string().contains("a loop of links"));
    }

    #[test]
    fn a_file_can_move_to_another_device() {
        for overwrite in [false, true] {
            let [from, to] = places();
            let (dir, target) = (Dir::open(from.path()).unwrap(), to.path().join("e.npy"));
            let part = || fs::write(from.path().join("part"), "new").unwrap();
            part();
            move_file(&dir, OsStr::new("part"), &target, overwrite).unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"new");
            // A run that was killed before it removed the part does it again.
            part();
            move_file(&dir, OsStr::new("part"), &target, overwrite).unwrap();
            part();
            fs::write(&target, "old").unwrap();
            fs::set_permissions(&target, Permissions::from_mode(0o640)).unwrap();
            let moved = move_file(&dir, OsStr::new("part"), &target, overwrite);
            assert_eq!(moved.is_ok(), overwrite);
            if overwrite {
                assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o640);
                assert_eq!(fs::read(&target).unwrap(), b"new");
            } else {
                assert_eq!(moved.unwrap_err().kind(), ErrorKind::AlreadyExists);
                assert_eq!(fs::read(&target).unwrap(), b"old");
            }
            assert_eq!(from.path().join("part").exists(), !overwrite, "what is not moved stays");
            assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
        }
    }
}
