//! Pictures as rows: files, folders of them, `.tar` shards of them (webdataset), and lists of paths.

use super::input::Input;
use super::listing::{self, Filter};
use super::picture_file::{PictureFile, modified};
use super::record::{Place, PromptRecord, PromptRow};
use crate::bad_input;
use crate::bad_input::OrBadInput;
use anyhow::Result;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The extensions of pictures, by which they are found in folders and shards.
const EXTENSIONS: [&str; 12] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff"];

/// Bytes of a path in a list at most.
const MAX_PATH: u64 = 1 << 16;

/// Where pictures come from.
#[derive(Debug, Clone, Default)]
pub struct PictureInputs {
    /// Files, folders, shards and patterns such as `photos/*.jpg`, in this order; `-` for a list on standard input.
    pub paths: Vec<PathBuf>,
    /// A list of paths, which follow the others.
    pub list: Option<PathBuf>,
    /// Whether the paths of a list end in a NUL, not in a line feed.
    pub is_nul_separated: bool,
    /// Ends a read from a pipe.
    pub interrupt: Arc<AtomicBool>,
}

/// Whether a path has an extension of pictures.
fn is_picture(path: &Path) -> bool {
    has_extension(path, &EXTENSIONS)
}

fn is_shard(path: &Path) -> bool {
    has_extension(path, &["tar"])
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| extensions.iter().any(|known| known.eq_ignore_ascii_case(extension)))
}

impl PictureInputs {
    /// The pictures, in order. Nothing of a pipe is read yet.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if a path does not exist, or a pattern matches nothing.
    pub fn open(&self) -> Result<PictureReader> {
        let mut sources = VecDeque::new();
        for path in &self.paths {
            if path.as_os_str() == "-" {
                sources.push_back(Source::List(self.open_list(path)?));
                continue;
            }
            match (fs::metadata(path), path.to_str().filter(|text| listing::is_pattern(text))) {
                (Ok(metadata), _) if metadata.is_dir() => sources.push_back(Source::Folder(path.clone())),
                (Ok(_), _) => sources.push_back(Source::File(path.clone())),
                (Err(_), Some(pattern)) => sources.extend(matches(pattern)?.into_iter().map(Source::File)),
                (Err(error), None) => {
                    return Err(error).or_bad_input(|| format!("cannot read {:?}", path.display().to_string()));
                }
            }
        }
        if let Some(list) = &self.list {
            sources.push_back(Source::List(self.open_list(list)?));
        }
        Ok(PictureReader { sources, found: VecDeque::new(), rows: 0 })
    }

    fn open_list(&self, path: &Path) -> Result<List> {
        let (name, reader) = Input::open_list(path, &self.interrupt)?;
        Ok(List { name, reader, end: if self.is_nul_separated { 0 } else { b'\n' }, is_empty: true })
    }

    /// Whether the pictures can be listed only once: the list is a pipe or a terminal.
    pub fn is_stream(&self) -> bool {
        let is_pipe = |path: &PathBuf| path.as_os_str() == "-" || fs::metadata(path).is_ok_and(|file| !file.is_file());
        self.paths.iter().any(|path| path.as_os_str() == "-") || self.list.as_ref().is_some_and(is_pipe)
    }
}

/// The files that a pattern matches.
fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut paths = listing::matches(pattern)?;
    paths.retain(|path| path.is_file());
    if paths.is_empty() { Err(bad_input!("{pattern:?} matches no files")) } else { Ok(paths) }
}

enum Source {
    File(PathBuf),
    Folder(PathBuf),
    List(List),
}

struct List {
    name: String,
    reader: Box<dyn BufRead + Send>,
    end: u8,
    is_empty: bool,
}

impl List {
    /// The next path; blank lines are skipped.
    fn next(&mut self) -> Result<Option<PathBuf>> {
        loop {
            let mut line = Vec::new();
            let read = self.reader.by_ref().take(MAX_PATH).read_until(self.end, &mut line);
            if read.or_bad_input(|| format!("{}: read error", self.name))? == 0 {
                return match self.is_empty {
                    true => Err(bad_input!("{} holds no paths; write one a line", self.name)),
                    false => Ok(None),
                };
            }
            if line.last() == Some(&self.end) {
                line.pop();
            } else if line.len() as u64 == MAX_PATH {
                return Err(bad_input!("{}: a path is longer than {MAX_PATH} bytes; write one a line", self.name));
            }
            if self.end == b'\n' && line.last() == Some(&b'\r') {
                line.pop();
            }
            if !line.is_empty() {
                self.is_empty = false;
                return Ok(Some(path_of(line)));
            }
        }
    }
}

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> PathBuf {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// The rows of [`PictureInputs`]: the id of each is its path or, in a shard, its name without the extension. An error is
/// the last item.
pub struct PictureReader {
    sources: VecDeque<Source>,
    found: VecDeque<PromptRecord>,
    /// Rows so far.
    rows: u64,
}

impl PictureReader {
    fn next_record(&mut self) -> Result<Option<PromptRecord>> {
        loop {
            if let Some(record) = self.found.pop_front() {
                return Ok(Some(record));
            }
            match self.sources.pop_front() {
                None => return Ok(None),
                Some(Source::File(path)) => self.add_file(&path)?,
                Some(Source::Folder(folder)) => {
                    let mut files = Vec::new();
                    let takes = |path: &Path| is_picture(path) || is_shard(path);
                    Filter { hidden: b".", takes: &takes }.walk(&folder, &mut files)?;
                    if files.is_empty() {
                        let (name, known) = (folder.display().to_string(), EXTENSIONS.join(", ."));
                        return Err(bad_input!("{name:?} holds no pictures (.{known}, or .tar of these)"));
                    }
                    files.into_iter().rev().for_each(|file| self.sources.push_front(Source::File(file)));
                }
                Some(Source::List(mut list)) => {
                    if let Some(path) = list.next()? {
                        self.sources.push_front(Source::List(list));
                        self.add_file(&path)?;
                    }
                }
            }
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        if is_shard(path) {
            self.found.extend(members(path)?);
        } else {
            let file = PictureFile::of_file(path);
            self.found.push_back(record(file.name.clone(), file));
        }
        Ok(())
    }
}

fn record(id: String, file: PictureFile) -> PromptRecord {
    PromptRecord { id: Some(id), picture: Some(Arc::new(file)), ..PromptRecord::default() }
}

impl Iterator for PictureReader {
    type Item = Result<PromptRow>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.next_record().transpose()?;
        if record.is_err() {
            (self.sources, self.found) = (VecDeque::new(), VecDeque::new());
        }
        self.rows += 1;
        Some(record.map(|record| PromptRow::Prompt { place: Place::Row(self.rows), record }))
    }
}

/// The pictures in a shard, in its order. Only headers are read.
fn members(path: &Path) -> Result<Vec<PromptRecord>> {
    let name = path.display().to_string();
    let file = File::open(path).or_bad_input(|| format!("cannot read {name:?}"))?;
    let metadata = file.metadata().or_bad_input(|| format!("cannot read {name:?}"))?;
    if !metadata.is_file() {
        return Err(bad_input!("{name:?} is no file; a .tar must be one that can be sought in"));
    }
    let (modified, whole) = (modified(&metadata), metadata.len());
    let damaged = || format!("{name:?} is not a valid tar archive, or it is truncated; get it again");
    let mut archive = tar::Archive::new(file);
    let mut found = Vec::new();
    for entry in archive.entries_with_seek().or_bad_input(damaged)? {
        let entry = entry.or_bad_input(damaged)?;
        let member = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let (start, len) = (entry.raw_file_position(), entry.size());
        let is_sparse = entry.header().entry_type().is_gnu_sparse();
        if start.checked_add(len).is_none_or(|end| end > whole && !is_sparse) {
            return Err(bad_input!("{}: {member:?} is cut off", damaged()));
        }
        let inner = Path::new(&member);
        if !is_picture(inner) || !(entry.header().entry_type().is_file() || is_sparse) {
            continue;
        }
        let len = if is_sparse { Err("is stored as a sparse file, which is not supported".into()) } else { Ok(len) };
        let id = member.rsplit_once('.').map_or(member.as_str(), |(stem, _)| stem).to_string();
        let file = PictureFile { name: format!("{name}: {member}"), path: path.to_path_buf(), start, len, modified };
        found.push(record(id, file));
    }
    if found.is_empty() { Err(bad_input!("{name:?} holds no pictures")) } else { Ok(found) }
}
