//! A folder that is held open.
//!
//! Others who can write where an output goes can plant links, pipes and folders there, and swap them while a run is at
//! work. A [`Dir`] resolves names relative to its descriptor and never follows a link: whatever becomes of its path,
//! what is created, opened, moved or removed through it is in this folder. Only regular files with a single name are
//! opened.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawMode, fstat, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The permissions of any new file, which the user's umask narrows.
const FILE_MODE: RawMode = 0o666;

/// A folder that is held open.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// A name that is not of the kind it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WrongKind {
    /// A link, a pipe, a device, a folder.
    #[error("is not a regular file")]
    NotAFile,
    /// A link, a file.
    #[error("is not a folder")]
    NotAFolder,
    /// Writing to it would change a file in another folder.
    #[error("has a second name elsewhere (a hard link)")]
    HardLinked,
}

impl WrongKind {
    /// The reason, if `error` is one of these.
    pub(crate) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<WrongKind> for io::Error {
    fn from(kind: WrongKind) -> Self {
        Self::other(kind)
    }
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// For reading and writing.
    Write,
    /// For reading, and writing at the end.
    Append,
}

impl Dir {
    /// Opens the folder at `path`, whose last component is not followed if it is a link.
    ///
    /// # Errors
    /// [`WrongKind`] if it is not a folder; or the system's error.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::open_at(CWD, path.as_os_str(), path.to_path_buf())
    }

    fn open_at(at: BorrowedFd, name: &OsStr, path: PathBuf) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(at, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path }),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(WrongKind::NotAFolder.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Creates the folder at `path` for this user alone.
    ///
    /// # Errors
    /// If something is there already, or it cannot be created.
    pub(crate) fn make_private(path: &Path) -> io::Result<()> {
        Ok(mkdirat(CWD, path, Mode::from_raw_mode(0o700))?)
    }

    /// The same folder, with a descriptor of its own.
    ///
    /// # Errors
    /// If the process has no more descriptors.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, path: self.path.clone() })
    }

    /// Where it was when it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The user it belongs to.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn owner(&self) -> io::Result<u32> {
        Ok(fstat(&self.fd)?.st_uid)
    }

    /// Whether its path still leads to it.
    pub(crate) fn is_in_place(&self) -> bool {
        let (Ok(here), Ok(there)) = (fstat(&self.fd), statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW)) else {
            return false;
        };
        (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
    }

    /// The names in it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_os_string());
            }
        }
        Ok(names)
    }

    /// Opens an existing file.
    ///
    /// # Errors
    /// [`WrongKind`] if it is not a regular file with a single name; or the system's error.
    pub(crate) fn open_file(&self, name: impl AsRef<OsStr>, access: Access) -> io::Result<File> {
        let file = self.open_any_file(name.as_ref(), access)?;
        if file.metadata()?.nlink() > 1 {
            return Err(WrongKind::HardLinked.into());
        }
        Ok(file)
    }

    /// [`Dir::open_file`] of a file that may have several names.
    ///
    /// # Errors
    /// [`WrongKind`] if it is not a regular file; or the system's error.
    pub(crate) fn open_any_file(&self, name: &OsStr, access: Access) -> io::Result<File> {
        let access = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
            Access::Append => OFlags::RDWR | OFlags::APPEND,
        };
        // Opening a pipe would block.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            // A link; a pipe or a socket without another end; a folder.
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(WrongKind::NotAFile.into()),
            Err(error) => return Err(error.into()),
        };
        if !file.metadata()?.is_file() {
            return Err(WrongKind::NotAFile.into());
        }
        Ok(file)
    }

    /// Creates a file for reading and writing.
    ///
    /// # Errors
    /// If the name is taken, or it cannot be created.
    pub(crate) fn create(&self, name: impl AsRef<OsStr>, access: Access) -> io::Result<File> {
        let append = if access == Access::Append { OFlags::APPEND } else { OFlags::empty() };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | append;
        Ok(openat(&self.fd, name.as_ref(), flags, Mode::from_raw_mode(FILE_MODE))?.into())
    }

    /// [`Dir::create`], replacing what has that name.
    ///
    /// # Errors
    /// If it cannot be removed or created.
    pub(crate) fn create_anew(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.remove(name.as_ref())?;
        self.create(name, Access::Write)
    }

    /// Opens an existing folder.
    ///
    /// # Errors
    /// [`WrongKind`] if it is not a folder; or the system's error.
    pub(crate) fn open_dir(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        Self::open_at(self.fd.as_fd(), name, self.path.join(name))
    }

    /// What has that name, without following links; `None` if nothing has.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn kind(&self, name: impl AsRef<OsStr>) -> io::Result<Option<FileType>> {
        match statat(&self.fd, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a file, or a folder with everything in it. A missing name is not an error.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(crate) fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = name.as_ref();
        if self.kind(name)? == Some(FileType::Directory) {
            let dir = self.open_dir(name)?;
            dir.names()?.iter().try_for_each(|name| dir.remove(name))?;
            return Ok(unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?);
        }
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Err(Errno::NOENT) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Syncs the names in it to disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if_supported(rustix::fs::fsync(&self.fd).map_err(Into::into))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Turns "not supported" into success: some network file systems sync on their own and refuse to be asked.
///
/// # Errors
/// All others.
pub(crate) fn if_supported(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| match Errno::from_io_error(&error) {
        Some(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS | Errno::NOTTY | Errno::ROFS) => Ok(()),
        _ => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    #[test]
    fn only_regular_files_are_opened_and_nothing_blocks() {
        let (folder, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let precious = elsewhere.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink(&precious, at("link")).unwrap();
        symlink(elsewhere.path().join("none"), at("dangling")).unwrap();
        fs::hard_link(&precious, at("linked")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        rustix::fs::mknodat(CWD, at("pipe"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let dir = Dir::open(folder.path()).unwrap();
        for name in ["link", "dangling", "linked", "folder", "pipe", "socket"] {
            for access in [Access::Read, Access::Write, Access::Append] {
                let error = dir.open_file(name, access).unwrap_err();
                assert!(WrongKind::of(&error).is_some(), "{name}: {error}");
            }
            assert!(dir.create(name, Access::Write).is_err(), "{name}");
        }
        assert!(dir.open_dir("link").is_err() && Dir::open(&at("link")).is_err());
        for name in ["link", "dangling", "linked", "folder", "pipe", "socket", "nothing"] {
            dir.remove(name).unwrap();
        }
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn removing_a_folder_does_not_follow_its_links() {
        let (folder, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        fs::write(elsewhere.path().join("precious"), "precious").unwrap();
        fs::create_dir_all(folder.path().join("output/below")).unwrap();
        fs::write(folder.path().join("output/below/file"), "").unwrap();
        symlink(elsewhere.path(), folder.path().join("output/below/link")).unwrap();
        let dir = Dir::open(folder.path()).unwrap();
        dir.remove("output").unwrap();
        assert!(dir.names().unwrap().is_empty());
        assert!(elsewhere.path().join("precious").exists());
    }

    #[test]
    fn names_are_resolved_in_the_opened_folder_even_if_its_path_changes() {
        let (folder, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (path, moved) = (folder.path().join("work"), folder.path().join("moved"));
        fs::create_dir(&path).unwrap();
        let dir = Dir::open(&path).unwrap();
        assert!(dir.is_in_place());
        fs::rename(&path, &moved).unwrap();
        symlink(elsewhere.path(), &path).unwrap();
        assert!(!dir.is_in_place());
        dir.create("file", Access::Write).unwrap();
        assert!(moved.join("file").exists() && !elsewhere.path().join("file").exists());
    }

    #[test]
    fn an_unsupported_sync_is_not_an_error() {
        let of = |errno: Errno| if_supported(Err(errno.into()));
        for errno in [Errno::INVAL, Errno::NOTSUP, Errno::NOSYS, Errno::ROFS] {
            assert!(of(errno).is_ok(), "{errno}");
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::BADF] {
            assert!(of(errno).is_err(), "{errno}");
        }
    }
}
