//! The lock of a hidden folder: one run at a time works in it.

use crate::bad_input;
use crate::error::OrBadInput;
use crate::files::parent;
use anyhow::Result;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

/// The name of the file that is locked.
pub(super) const LOCK: &str = "lock";

/// Makes the folder and locks it; `None` where the file system has no locks.
pub(super) fn lock(folder: &Path, name: &str) -> Result<Option<File>> {
    let failed = || format!("cannot write {name}: folder {:?} cannot be written to", parent(folder));
    let path = folder.join(LOCK);
    loop {
        match fs::create_dir(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error).or_bad_input(failed),
            _ => {}
        }
        let file = match File::options().write(true).create(true).truncate(false).open(&path) {
            // Another run has just finished, and removed the folder.
            Err(error) if error.kind() == ErrorKind::NotFound && !folder.exists() => continue,
            file => file.or_bad_input(failed)?,
        };
        match file.try_lock() {
            Ok(()) if is_at(&file, &path) => return Ok(Some(file)),
            Ok(()) => continue,
            Err(TryLockError::WouldBlock) => {
                return Err(bad_input!("{name} is being written by another run; wait for it, or give another name"));
            }
            Err(TryLockError::Error(error)) => {
                log::warn!("{folder:?} cannot be locked ({error}); let no other run write {name}");
                return Ok(None);
            }
        }
    }
}

/// Whether a file is still the one at `path`: the run that held the lock may have removed it.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        matches!((file.metadata(), fs::metadata(path)), (Ok(file), Ok(there)) if identity(file.clone()) == identity(there.clone()))
    }
    #[cfg(not(unix))]
    {
        file.metadata().is_ok() && path.exists()
    }
}
