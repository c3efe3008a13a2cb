//! Files that appear whole or not at all: made elsewhere, synced, moved into place.

use super::dir::{Access, Dir};
use crate::bad_input;
use crate::files::parent;
use anyhow::Result;
use rustix::fs::{AtFlags, CWD, FileType, RenameFlags, linkat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile, tempfile_in};

/// The most links that are followed one after the other, as in Linux.
const MOST_LINKS: usize = 40;

/// Where `path` leads, all links followed, also one to a file that is not there yet: what it leads to is written, and the
/// link stays.
///
/// # Errors
/// [`crate::bad_input::BadInput`] for links in a circle, and for a link that another user left in a folder in which everybody
/// may leave one.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf> {
    // Without the slash that a folder's name may end with, which would follow the link at once.
    let mut path: PathBuf = path.components().collect();
    for _ in 0..MOST_LINKS {
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
    Err(bad_input!("{path:?} is a link that leads back to itself; give another name"))
}

/// Whether a link is in a folder in which everybody may leave one, such as `/tmp`, and neither this user nor the folder's
/// owner did: Linux's own rule where `fs.protected_symlinks` is on.
fn is_of_a_stranger(link: &Path, metadata: &fs::Metadata) -> bool {
    const STICKY_FOR_ALL: u32 = 0o1002;
    let folder = parent(link);
    fs::metadata(folder).is_ok_and(|folder_metadata| {
        folder_metadata.mode() & STICKY_FOR_ALL == STICKY_FOR_ALL
            && metadata.uid() != folder_metadata.uid()
            && owner_of_new_files(folder).is_ok_and(|owner| owner != metadata.uid())
    })
}

/// The user to whom files belong that this process makes in `folder`: itself or, on some network file systems, another.
///
/// # Errors
/// If none can be made there.
pub(crate) fn owner_of_new_files(folder: &Path) -> io::Result<u32> {
    Ok(tempfile_in(folder)?.metadata()?.uid())
}

/// Success, where the file system cannot do what was asked for: some network file systems sync on their own.
///
/// # Errors
/// All others.
pub(crate) fn if_supported(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| match Errno::from_io_error(&error) {
        Some(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS | Errno::NOTTY | Errno::ROFS) => Ok(()),
        _ => Err(error),
    })
}

/// Waits until a file is on the disk.
///
/// # Errors
/// If the disk fails.
pub(crate) fn sync_all(file: &File) -> io::Result<()> {
    if_supported(file.sync_all())
}

/// The same of its contents alone.
///
/// # Errors
/// If the disk fails.
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    if_supported(file.sync_data())
}

/// Waits until a file, or the names in a folder, are on the disk.
///
/// # Errors
/// If the disk fails.
pub(crate) fn sync_path(path: &Path) -> io::Result<()> {
    if_supported(File::open(path)?.sync_all())
}

/// A file that is removed unless it is moved into place, beside its place.
///
/// # Errors
/// If it cannot be made.
pub(crate) fn create_part(target: &Path) -> io::Result<NamedTempFile> {
    // The permissions of any new file, which the user's umask narrows; a temporary file's own would be private.
    let mode = Permissions::from_mode(0o666);
    Builder::new().prefix(".prior-embed-").suffix(".part").permissions(mode).tempfile_in(parent(target))
}

/// Moves a file that was written beside `target` there.
///
/// # Errors
/// If it cannot be moved; [`ErrorKind::AlreadyExists`] if something is there and is not to be replaced.
pub(crate) fn persist(part: NamedTempFile, target: &Path, overwrite: bool) -> io::Result<()> {
    sync_all(part.as_file())?;
    let persisted = if overwrite {
        keep_permissions(part.as_file(), target);
        part.persist(target)
    } else {
        part.persist_noclobber(target)
    };
    persisted.map(drop).map_err(|error| error.error)
}

/// Gives what takes the place of another file of this user its permissions.
fn keep_permissions(part: &File, target: &Path) {
    let (Ok(old), Ok(new)) = (fs::symlink_metadata(target), part.metadata()) else { return };
    if old.is_file() && old.uid() == new.uid() {
        // As far as that is allowed. The group first, for which some of the permissions are.
        let _ = fchown(part, None, Some(old.gid()));
        let _ = part.set_permissions(Permissions::from_mode(old.mode() & 0o777));
    }
}

/// Moves the file `name` of `dir` to `target`, by copying it where that is on another device. Done twice it is done once,
/// also if a link was made and its first name is still there.
///
/// # Errors
/// If it cannot be moved; [`ErrorKind::AlreadyExists`] if something else is there and is not to be replaced.
pub(crate) fn move_file(dir: &Dir, name: &OsStr, target: &Path, overwrite: bool) -> io::Result<()> {
    if overwrite && let Ok(part) = dir.open_file(name, Access::Read) {
        keep_permissions(&part, target);
    }
    let moved = if overwrite { rename(dir, name, target) } else { rename_to_free_place(dir, name, target) };
    match moved {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && holds_the_same(dir, name, target) => dir.remove(name),
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let mut part = create_part(target)?;
            io::copy(&mut dir.open_file(name, Access::Read)?, part.as_file_mut())?;
            match persist(part, target, overwrite) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists || !holds_the_same(dir, name, target) => {
                    return Err(error);
                }
                _ => {}
            }
            dir.remove(name)
        }
        moved => moved,
    }
}

/// Moves the folder `name` of `dir` to `target`, where nothing is, by copying it where that is on another device.
///
/// # Errors
/// If it cannot be moved.
pub(crate) fn move_folder(dir: &Dir, name: &OsStr, target: &Path) -> io::Result<()> {
    match rename(dir, name, target) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let from = dir.open_dir(name)?;
            let part = Builder::new().prefix(".prior-embed-").suffix(".part").tempdir_in(parent(target))?;
            let folder = part.path().join("whole");
            copy_folder(&from, &Dir::open(part.path())?.make_dir("whole")?)?;
            fs::rename(folder, target)?;
            dir.remove(name)
        }
        moved => moved,
    }
}

fn copy_folder(from: &Dir, to: &Dir) -> io::Result<()> {
    for name in from.names()? {
        if from.kind(&name)? == Some(FileType::Directory) {
            copy_folder(&from.open_dir(&name)?, &to.make_dir(&name)?)?;
        } else {
            let mut file = to.create(&name, Access::Write)?;
            io::copy(&mut from.open_file(&name, Access::Read)?, &mut file)?;
            sync_all(&file)?;
        }
    }
    to.sync()
}

fn rename(dir: &Dir, name: &OsStr, target: &Path) -> io::Result<()> {
    Ok(renameat(dir, name, CWD, target)?)
}

/// The same, if nothing is there.
fn rename_to_free_place(dir: &Dir, name: &OsStr, target: &Path) -> io::Result<()> {
    match renameat_with(dir, name, CWD, target, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
        moved => return Ok(moved?),
    }
    match linkat(dir, name, CWD, target, AtFlags::empty()) {
        // Without a way to make sure, a look has to do.
        Err(Errno::PERM | Errno::NOSYS | Errno::NOTSUP | Errno::MLINK) => match fs::symlink_metadata(target) {
            Ok(_) => Err(ErrorKind::AlreadyExists.into()),
            Err(_) => rename(dir, name, target),
        },
        linked => Ok(linked.and_then(|()| unlinkat(dir, name, AtFlags::empty()))?),
    }
}

/// Whether what is at `target` already is a file with the same contents: a run that was killed while it moved it.
fn holds_the_same(dir: &Dir, name: &OsStr, target: &Path) -> bool {
    let same = || -> io::Result<bool> {
        // Not by [`Dir::open_file`]: after a link was made, the file has its second name at `target`.
        let new = File::from(rustix::fs::openat(
            dir,
            name,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?);
        let old = fs::symlink_metadata(target)?;
        if !old.is_file() || old.len() != new.metadata()?.len() {
            return Ok(false);
        }
        same_bytes(new, File::open(target)?)
    };
    same().unwrap_or(false)
}

/// Whether two files hold the same bytes from where they stand.
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
    fn links_are_followed_to_what_is_not_there_yet() {
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
        assert!(resolve(&at("d")).unwrap_err().to_string().contains("back to itself"));
    }

    #[test]
    fn a_file_is_moved_to_another_device_too() {
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

    #[test]
    fn a_folder_is_moved_to_another_device_too() {
        let [from, to] = places();
        fs::create_dir_all(from.path().join("output/below")).unwrap();
        fs::write(from.path().join("output/below/file"), "bytes").unwrap();
        let target = to.path().join("img_emb");
        move_folder(&Dir::open(from.path()).unwrap(), OsStr::new("output"), &target).unwrap();
        assert_eq!(fs::read(target.join("below/file")).unwrap(), b"bytes");
        assert_eq!([from, to].map(|folder| fs::read_dir(folder.path()).unwrap().count()), [0, 1]);
    }

    #[test]
    fn what_cannot_be_synced_is_no_error_and_what_fails_is() {
        let of = |errno: Errno| if_supported(Err(errno.into()));
        for errno in [Errno::INVAL, Errno::NOTSUP, Errno::NOSYS, Errno::ROFS] {
            assert!(of(errno).is_ok(), "{errno}");
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::BADF] {
            assert!(of(errno).is_err(), "{errno}");
        }
    }
}
