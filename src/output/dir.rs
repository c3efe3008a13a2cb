//! A folder that is held open.
//!
//! Whoever may write where an output goes may put links, pipes and folders there, and exchange them while a run is at
//! work. Names in a [`Dir`] are looked up from its descriptor and never followed: whatever becomes of its path, what is
//! made, opened, moved or removed through it is in this folder. Only regular files with a single name are opened.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawMode, fstat, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// The permissions of any new file and folder, which the user's umask narrows.
const FILE_MODE: RawMode = 0o666;
const FOLDER_MODE: RawMode = 0o777;

/// A folder that is held open.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// What is wrong with a name that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Strange {
    /// A link, a pipe, a device, a folder.
    #[error("is no regular file")]
    NoFile,
    /// A link, a file.
    #[error("is no folder")]
    NoFolder,
    /// What is written to it would be in another folder too.
    #[error("has a second name elsewhere (a hard link)")]
    Linked,
}

impl Strange {
    /// What is wrong with a name, if it was that.
    pub(crate) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<Strange> for io::Error {
    fn from(strange: Strange) -> Self {
        Self::other(strange)
    }
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// To be read.
    Read,
    /// To be read and written.
    Write,
    /// To be read, and written at its end.
    Append,
}

impl Dir {
    /// Opens the folder at `path`, whose last part is not followed if it is a link.
    ///
    /// # Errors
    /// [`Strange`] if it is no folder; or what the system says.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::open_at(CWD, path.as_os_str(), path.to_path_buf())
    }

    fn open_at(at: BorrowedFd, name: &OsStr, path: PathBuf) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(at, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path }),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(Strange::NoFolder.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the folder at `path` for this user alone.
    ///
    /// # Errors
    /// If something is there already, or it cannot be made.
    pub(crate) fn make_private(path: &Path) -> io::Result<()> {
        Ok(mkdirat(CWD, path, Mode::from_raw_mode(0o700))?)
    }

    /// The same folder, with a descriptor of its own.
    ///
    /// # Errors
    /// If the system has no more of them.
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
    /// What the system says.
    pub(crate) fn owner(&self) -> io::Result<u32> {
        Ok(fstat(&self.fd)?.st_uid)
    }

    /// Whether it still is what its path leads to.
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

    /// Opens a file that is there.
    ///
    /// # Errors
    /// [`Strange`] if it is no regular file with a single name; or what the system says.
    pub(crate) fn open_file(&self, name: impl AsRef<OsStr>, access: Access) -> io::Result<File> {
        let access = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
            Access::Append => OFlags::RDWR | OFlags::APPEND,
        };
        // A pipe would be waited for.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(&self.fd, name.as_ref(), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            // A link; a pipe or a socket without another end; a folder.
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(Strange::NoFile.into()),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Strange::NoFile.into());
        }
        if metadata.nlink() > 1 {
            return Err(Strange::Linked.into());
        }
        Ok(file)
    }

    /// Makes a file, to be read and written.
    ///
    /// # Errors
    /// If the name is taken, or it cannot be made.
    pub(crate) fn create(&self, name: impl AsRef<OsStr>, access: Access) -> io::Result<File> {
        let append = if access == Access::Append { OFlags::APPEND } else { OFlags::empty() };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | append;
        Ok(openat(&self.fd, name.as_ref(), flags, Mode::from_raw_mode(FILE_MODE))?.into())
    }

    /// Makes a folder.
    ///
    /// # Errors
    /// If the name is taken, or it cannot be made.
    pub(crate) fn make_dir(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        mkdirat(&self.fd, name.as_ref(), Mode::from_raw_mode(FOLDER_MODE))?;
        self.open_dir(name)
    }

    /// Opens a folder that is there.
    ///
    /// # Errors
    /// [`Strange`] if it is no folder; or what the system says.
    pub(crate) fn open_dir(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        Self::open_at(self.fd.as_fd(), name, self.path.join(name))
    }

    /// The folder that `path`, below this one, is in, and its name there.
    ///
    /// # Errors
    /// If a part of it is no folder, or no name.
    pub(crate) fn descend(&self, path: &Path) -> io::Result<(Self, OsString)> {
        let mut dir = self.try_clone()?;
        let mut parts = path.components().peekable();
        while let Some(Component::Normal(part)) = parts.next() {
            if parts.peek().is_none() {
                return Ok((dir, part.to_os_string()));
            }
            dir = dir.open_dir(part)?;
        }
        Err(io::ErrorKind::InvalidInput.into())
    }

    /// Whether a file or folder has that name.
    pub(crate) fn kind(&self, name: impl AsRef<OsStr>) -> io::Result<Option<rustix::fs::FileType>> {
        match statat(&self.fd, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(rustix::fs::FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a file, or a folder with all that is in it. What is not there is no error.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(crate) fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = name.as_ref();
        if self.kind(name)? == Some(rustix::fs::FileType::Directory) {
            let dir = self.open_dir(name)?;
            dir.names()?.iter().try_for_each(|name| dir.remove(name))?;
            return Ok(unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?);
        }
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Err(Errno::NOENT) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the names in it are on the disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn sync(&self) -> io::Result<()> {
        super::atomic::if_supported(rustix::fs::fsync(&self.fd).map_err(Into::into))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    #[test]
    fn what_is_no_regular_file_is_not_opened_nor_waited_for() {
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
                assert!(Strange::of(&error).is_some(), "{name}: {error}");
            }
            assert!(dir.create(name, Access::Write).is_err() && dir.make_dir(name).is_err(), "{name}");
        }
        assert!(dir.open_dir("link").is_err() && Dir::open(&at("link")).is_err());
        for name in ["link", "dangling", "linked", "folder", "pipe", "socket", "nothing"] {
            dir.remove(name).unwrap();
        }
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_is_removed_without_what_its_links_lead_to() {
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
    fn names_are_of_the_folder_that_was_opened_whatever_its_path_leads_to_now() {
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
        let (below, name) = dir.descend(Path::new("file")).unwrap();
        assert_eq!((below.path(), name.as_os_str()), (path.as_path(), OsStr::new("file")));
        assert!(dir.descend(Path::new("../file")).is_err());
    }
}
