//! A small output: a file that appears whole or not at all, standard output, or a device.

use super::paths::whole;
use crate::atomic;
use crate::bad_input;
use crate::bad_input::{BadInput, OrBadInput};
use crate::files::parent;
use anyhow::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};
use tempfile::tempfile_in;

/// An output that is checked, and if possible opened, before the work starts.
#[derive(Debug)]
pub struct Destination {
    name: String,
    /// What is made for it, as messages call it.
    what: &'static str,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Stdout,
    /// A pipe or a device, which cannot be renamed into place.
    Special(File),
    /// Written under another name and renamed.
    Replacing {
        target: PathBuf,
        overwrite: bool,
    },
}

impl Destination {
    /// Checks that `path` can be written, `-` being standard output.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if a file exists and `overwrite` is not set, or nothing can be written there.
    pub fn open(path: &Path, overwrite: bool) -> Result<Self> {
        Self::open_for("embeddings", path, overwrite)
    }

    /// [`Destination::open`] of an output of something else than embeddings, as messages call it: `pictures`.
    ///
    /// # Errors
    /// As [`Destination::open`].
    pub fn open_for(what: &'static str, path: &Path, overwrite: bool) -> Result<Self> {
        let name = format!("{:?}", path.display().to_string());
        if path.as_os_str() == "-" {
            if stdout().is_terminal() {
                return Err(bad_input!(
                    "standard output is a terminal, and {what} are binary; give a file name or a pipe"
                ));
            }
            return Ok(Self { name: "standard output".into(), what, kind: Kind::Stdout });
        }
        // The target of a link is replaced, not the link.
        let target = atomic::resolve(path)?;
        let kind = match std::fs::metadata(&target) {
            Ok(metadata) if metadata.is_dir() => return Err(bad_input!("{name} is a folder; give a file name")),
            Ok(metadata) if !metadata.is_file() => {
                let file = OpenOptions::new().write(true).open(&target);
                Kind::Special(file.or_bad_input(|| format!("cannot write to {name}"))?)
            }
            Ok(_) if !overwrite => {
                return Err(bad_input!("{name} is there already; give another name, or --overwrite to replace it"));
            }
            _ => {
                check_folder(&target, &name)?;
                Kind::Replacing { target, overwrite }
            }
        };
        Ok(Self { name, what, kind })
    }

    /// Whether an output at `path` would be the same file.
    pub fn is_at(&self, path: &Path) -> bool {
        match &self.kind {
            Kind::Stdout => path.as_os_str() == "-",
            Kind::Special(_) => false,
            Kind::Replacing { target, .. } => {
                let path = atomic::resolve(path).unwrap_or_else(|_| path.to_path_buf());
                whole(target).is_some_and(|target| Some(target) == whole(&path))
            }
        }
    }

    /// Writes the output and moves a file into place. A closed pipe is not an error.
    ///
    /// # Errors
    /// If writing fails, because the disk is full for example. No file is left behind.
    pub fn write(self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let line = format!("cannot write {}: is the disk full?", self.name);
        // What is wrong with the contents is no failure to write them.
        let failed = |error: Error| match error.is::<BadInput>() || error.is::<crate::Error>() {
            true => error,
            false => error.context(line),
        };
        match self.kind {
            Kind::Stdout => ignore_broken_pipe(buffered(stdout().lock(), write)).map_err(failed),
            Kind::Special(file) => ignore_broken_pipe(buffered(file, write)).map_err(failed),
            Kind::Replacing { target, overwrite } => {
                let (name, what) = (&self.name, self.what);
                atomic::write(&target, overwrite, |part| buffered(part, write)).map_err(|error: Error| {
                    match error.downcast_ref::<std::io::Error>() {
                        Some(cause) if cause.kind() == ErrorKind::AlreadyExists => bad_input!(
                            "{name} appeared while the {what} were computed; give another name, or --overwrite"
                        ),
                        _ => failed(error),
                    }
                })
            }
        }
    }
}

/// Checks that a file can be created beside `target`, with one that has no name and that a killed process does not
/// leave.
fn check_folder(target: &Path, name: &str) -> Result<()> {
    let folder = parent(target);
    if !folder.is_dir() {
        return Err(bad_input!("cannot write {name}: there is no folder {folder:?}; make it first"));
    }
    let made = tempfile_in(folder);
    made.map(drop).or_bad_input(|| format!("cannot write {name}: folder {folder:?} cannot be written to"))
}

fn buffered(output: impl Write, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut output = BufWriter::new(output);
    write(&mut output)?;
    Ok(output.flush()?)
}

fn ignore_broken_pipe(result: Result<()>) -> Result<()> {
    let is_broken_pipe = |error: &anyhow::Error| {
        error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .any(|cause| cause.kind() == ErrorKind::BrokenPipe)
    };
    result.or_else(|error| if is_broken_pipe(&error) { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn nothing_is_there_before_it_is_written() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("s".repeat(250) + ".json");
        let destination = Destination::open(&path, false).unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        destination.write(|output| Ok(output.write_all(b"{}")?)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }
}
