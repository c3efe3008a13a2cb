//! A model's files: in a folder on disk, or built into the program.
//!
//! Whatever reads a model takes a [`Folder`], the model's or a component's, and does not know which of the two it is.
//! The contents of a file are [`Bytes`]: mapped into memory rather than copied, where the file system supports that.

use crate::error::{Error, Result};
use memmap2::Mmap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

/// A model that is built into the program.
#[derive(Debug)]
pub struct BuiltinModel {
    /// Its name on the command line.
    pub name: &'static str,
    /// All its files.
    pub files: &'static [BuiltinFile],
}

impl PartialEq for BuiltinModel {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for BuiltinModel {}

/// A file that is built into the program.
#[derive(Debug, Clone, Copy)]
pub struct BuiltinFile {
    /// Its path in the model's folder, separated by `/`.
    pub path: &'static str,
    /// Its contents. Weights are aligned to 8 bytes, so that they can be read in place.
    pub bytes: &'static [u8],
}

/// The folder of a model or of one of its components.
///
/// Its `Display` is its name in messages.
#[derive(Debug, Clone)]
pub struct Folder {
    place: Place,
    /// The file that a component's weights are in, if it was named; else they are searched.
    weights: Option<String>,
}

#[derive(Debug, Clone)]
enum Place {
    Disk(PathBuf),
    Builtin {
        model: &'static BuiltinModel,
        /// The path in the model, empty for the model's own folder.
        path: String,
    },
}

impl Folder {
    /// The folder of a built-in model.
    pub fn builtin(model: &'static BuiltinModel) -> Self {
        Self { place: Place::Builtin { model, path: String::new() }, weights: None }
    }

    /// The folder `name` in this one, whether it exists or not.
    pub fn join(&self, name: &str) -> Self {
        let place = match &self.place {
            Place::Disk(path) => Place::Disk(path.join(name)),
            Place::Builtin { model, path } => Place::Builtin { model, path: join(path, name) },
        };
        Self { place, weights: None }
    }

    /// The folder of the file at `path`, as a component whose weights are in this file alone.
    ///
    /// # Errors
    /// [`Error::File`] if its name is not UTF-8.
    pub fn of_weights(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::file(path.display().to_string(), "has a name that is not UTF-8"))?;
        Ok(Self { weights: Some(name.into()), ..Self::from(parent(path)) })
    }

    /// The file that a component's weights are in, if it was named.
    pub fn weights(&self) -> Option<&str> {
        self.weights.as_deref()
    }

    /// Its path, if it is on disk.
    pub fn as_path(&self) -> Option<&Path> {
        match &self.place {
            Place::Disk(path) => Some(path),
            Place::Builtin { .. } => None,
        }
    }

    /// The last part of its path.
    pub fn name(&self) -> String {
        match &self.place {
            Place::Disk(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Place::Builtin { model, path } => {
                path.rsplit('/').find(|name| !name.is_empty()).unwrap_or(model.name).into()
            }
        }
    }

    /// Whether the folder exists.
    pub fn is_dir(&self) -> bool {
        match &self.place {
            Place::Disk(path) => path.is_dir(),
            Place::Builtin { model, path } => model.files.iter().any(|file| inside(path, file).is_some()),
        }
    }

    /// Whether the folder holds a file of this name.
    pub fn has_file(&self, name: &str) -> bool {
        match &self.place {
            Place::Disk(path) => path.join(name).is_file(),
            Place::Builtin { model, path } => builtin_file(model, path, name).is_ok(),
        }
    }

    /// Whether there is a file at `path` below the folder, separated by `/`.
    pub fn has_path(&self, path: &str) -> bool {
        match path.rsplit_once('/') {
            Some((folder, name)) => self.join(folder).has_file(name),
            None => self.has_file(path),
        }
    }

    /// The size in bytes of the file at `path` below the folder; `None` if there is no such file.
    pub fn file_len(&self, path: &str) -> Option<u64> {
        match &self.place {
            Place::Disk(folder) => std::fs::metadata(folder.join(path)).ok().map(|metadata| metadata.len()),
            Place::Builtin { model, path: folder } => {
                builtin_file(model, folder, path).ok().map(|bytes| bytes.len() as u64)
            }
        }
    }

    /// The names of the folder's entries, without those of folders in it; empty if it cannot be read.
    pub fn file_names(&self) -> Vec<String> {
        match &self.place {
            Place::Disk(path) => {
                let entries = path.read_dir().into_iter().flatten().flatten();
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            }
            Place::Builtin { model, path } => {
                let names = model.files.iter().filter_map(|file| inside(path, file));
                names.filter(|name| !name.contains('/')).map(str::to_string).collect()
            }
        }
    }

    /// The name in messages of the file `name` in this folder.
    pub fn path_of(&self, name: &str) -> String {
        match &self.place {
            Place::Disk(path) => path.join(name).display().to_string(),
            Place::Builtin { .. } => self.join(name).to_string(),
        }
    }

    /// The text of the file `name`.
    ///
    /// # Errors
    /// [`Error::File`] if there is no such file, it cannot be read, or it is not UTF-8.
    pub fn read_text(&self, name: &str) -> Result<String> {
        let text = match &self.place {
            Place::Disk(path) => std::fs::read_to_string(path.join(name)),
            Place::Builtin { model, path } => builtin_file(model, path, name).and_then(|bytes| {
                String::from_utf8(bytes.to_vec()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
            }),
        };
        text.map_err(|error| Error::unreadable(self.path_of(name), error))
    }

    /// The text of the file `name`, or `None` if there is no such file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read or is not UTF-8.
    pub fn find_text(&self, name: &str) -> Result<Option<String>> {
        if self.has_file(name) { self.read_text(name).map(Some) } else { Ok(None) }
    }

    /// The contents of the file `name`, mapped rather than read.
    ///
    /// # Errors
    /// [`Error::File`] if there is no such file or it cannot be opened.
    pub fn open(&self, name: &str) -> Result<Bytes> {
        let bytes = match &self.place {
            Place::Disk(path) => Bytes::of_file(&path.join(name)),
            Place::Builtin { model, path } => {
                builtin_file(model, path, name).map(|bytes| Bytes(Backing::Builtin(bytes)))
            }
        };
        bytes.map_err(|error| Error::unreadable(self.path_of(name), error))
    }
}

impl From<&Folder> for Folder {
    fn from(folder: &Folder) -> Self {
        folder.clone()
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for Folder {
    fn from(path: &P) -> Self {
        Self { place: Place::Disk(path.as_ref().to_path_buf()), weights: None }
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, &self.weights) {
            (Place::Disk(path), None) => path.display().fmt(formatter),
            (Place::Disk(path), Some(weights)) => path.join(weights).display().fmt(formatter),
            (Place::Builtin { model, path }, _) => {
                write!(formatter, "the built-in model {}", join(model.name, path))
            }
        }
    }
}

/// The folder that holds the file at `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Joins two paths, either of which may be empty.
fn join(path: &str, name: &str) -> String {
    match (path, name) {
        ("", one) | (one, "") => one.to_string(),
        _ => format!("{path}/{name}"),
    }
}

/// A file's path in the folder `path` of its model, if it is in there.
fn inside<'a>(path: &str, file: &'a BuiltinFile) -> Option<&'a str> {
    if path.is_empty() { Some(file.path) } else { file.path.strip_prefix(path)?.strip_prefix('/') }
}

fn builtin_file(model: &'static BuiltinModel, path: &str, name: &str) -> io::Result<&'static [u8]> {
    let path = join(path, name);
    let file = model.files.iter().find(|file| file.path == path);
    Ok(file.ok_or(io::ErrorKind::NotFound)?.bytes)
}

/// The contents of a file.
#[derive(Debug)]
pub struct Bytes(Backing);

#[derive(Debug)]
enum Backing {
    Mapped(Mmap),
    Read(Vec<u8>),
    Builtin(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Backing::Mapped(mmap) => mmap,
            Backing::Read(bytes) => bytes,
            Backing::Builtin(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Backing::Read(bytes))
    }
}

impl Bytes {
    /// The contents of the file at `path`, mapped rather than read.
    ///
    /// # Errors
    /// If there is no such file or it cannot be opened.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        // SAFETY: the mapping is read-only. If another process truncates the file, reading it raises SIGBUS, which the
        // program turns into a message. The alternative would be to copy gigabytes first.
        #[allow(unsafe_code)]
        let mapped = unsafe { Mmap::map(&file) };
        match mapped {
            Ok(mmap) => Ok(Self(Backing::Mapped(mmap))),
            // Not every file system supports mapping.
            Err(_) if file.metadata()?.is_file() => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                Ok(Self(Backing::Read(bytes)))
            }
            Err(error) => Err(error),
        }
    }

    /// Has a range read from its disk, without waiting for all of it. Pages that are read when they are first touched come
    /// a few at a time.
    pub fn read_ahead(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Backing::Mapped(mmap) = &self.0 {
            // A failure costs time and nothing else.
            let _ = mmap.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Drops the pages of a range from the process' memory. They can still be read, from the file again.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Backing::Mapped(mmap) = &self.0 {
            const PAGE: usize = 4096;
            let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
            if start < end {
                // SAFETY: the mapping is read-only and of a file, from which these pages are read again. A failure
                // costs memory and nothing else.
                #[allow(unsafe_code)]
                let _ = unsafe { mmap.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static MODEL: BuiltinModel = BuiltinModel {
        name: "toy",
        files: &[
            BuiltinFile { path: "index.json", bytes: b"{}" },
            BuiltinFile { path: "prior/config.json", bytes: b"{\"a\": 1}" },
            BuiltinFile { path: "prior/weights", bytes: b"\x00\xff" },
            BuiltinFile { path: "prior_scheduler/config.json", bytes: b"{}" },
        ],
    };

    /// The same files on disk.
    fn on_disk() -> tempfile::TempDir {
        let folder = tempfile::TempDir::new().unwrap();
        for file in MODEL.files {
            let path = folder.path().join(file.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file.bytes).unwrap();
        }
        folder
    }

    fn kind(error: &Error) -> io::ErrorKind {
        std::error::Error::source(error).unwrap().downcast_ref::<io::Error>().unwrap().kind()
    }

    #[test]
    fn files_are_found_on_disk_and_in_the_program_alike() {
        let disk = on_disk();
        for model in [Folder::from(disk.path()), Folder::builtin(&MODEL)] {
            let prior = model.join("prior");
            assert!(model.is_dir() && prior.is_dir() && !model.join("pri").is_dir(), "{model}");
            assert!(!model.join("index.json").is_dir(), "a file is no folder");
            assert_eq!(prior.name(), "prior");
            assert!(model.has_file("index.json") && prior.has_file("config.json"), "{model}");
            assert!(!model.has_file("prior") && !model.has_file("config.json") && !prior.has_file("index.json"));
            let mut names = prior.file_names();
            names.sort();
            assert_eq!(names, ["config.json", "weights"]);
            assert_eq!(prior.read_text("config.json").unwrap(), "{\"a\": 1}");
            assert_eq!(prior.find_text("config.json").unwrap().unwrap(), "{\"a\": 1}");
            assert_eq!(prior.find_text("index.json").unwrap(), None);
            assert_eq!(&*prior.open("weights").unwrap(), b"\x00\xff");
            let missing = [prior.read_text("none").map(drop), prior.open("none").map(drop)];
            for error in missing.map(Result::unwrap_err) {
                assert_eq!((kind(&error), error.path()), (io::ErrorKind::NotFound, Some(&*prior.path_of("none"))));
            }
            assert_eq!(kind(&prior.read_text("weights").unwrap_err()), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn messages_say_where_a_file_is() {
        let model = Folder::builtin(&MODEL);
        assert_eq!(model.to_string(), "the built-in model toy");
        assert_eq!(model.name(), "toy");
        assert_eq!(model.join("prior").to_string(), "the built-in model toy/prior");
        assert_eq!(model.join("prior").path_of("weights"), "the built-in model toy/prior/weights");
        let disk = Folder::from("models/toy");
        assert_eq!(disk.to_string(), "models/toy");
        assert_eq!(disk.join("prior").path_of("weights"), "models/toy/prior/weights");
    }

    /// `/proc` has files that no program can map.
    #[cfg(target_os = "linux")]
    #[test]
    fn files_that_cannot_be_mapped_are_read() {
        let bytes = Bytes::of_file(Path::new("/proc/version")).unwrap();
        assert!(matches!(bytes.0, Backing::Read(_)));
        assert_eq!(&*bytes, std::fs::read("/proc/version").unwrap());
        bytes.release(0..bytes.len());
        assert!(Bytes::of_file(Path::new("/proc")).is_err(), "a folder");
        assert!(Bytes::of_file(Path::new("/dev/urandom")).is_err(), "a file without end");
    }

    #[test]
    fn released_bytes_can_be_read_again() {
        let folder = tempfile::TempDir::new().unwrap();
        let content: Vec<u8> = (0..20_000_u32).map(|number| number as u8).collect();
        std::fs::write(folder.path().join("weights"), &content).unwrap();
        let bytes = Folder::from(folder.path()).open("weights").unwrap();
        bytes.release(5..content.len());
        assert_eq!(&*bytes, content);
    }
}
