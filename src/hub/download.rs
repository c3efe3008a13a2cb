//! One file from the hub into the cache: resumed where an earlier try stopped, checked, and there whole or not at all.

use super::cache::{RepositoryCache, is_disk_full, random};
use super::client::{Client, FileMetadata, SMALL_FILE};
use super::digest::Digest;
use super::failure::Failure;
use super::pace::{Growth, Pace};
use super::patience::Patience;
use crate::bad_input;
use crate::weights::checkpoint::candidates::is_weights;
use anyhow::{Context, Error, anyhow};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Instant;

/// How long a process that holds a file's lock may bring nothing of it, as a multiple of how long a server may be silent.
const STANDSTILL: u32 = 10;

/// Hears how a download gets on.
pub trait Watcher {
    /// So many bytes in so many files are about to come.
    fn begin(&mut self, _model: &str, _files: usize, _bytes: u64) {}
    /// Of all those bytes, so many are here.
    fn position(&mut self, _path: &str, _bytes: u64) {}
    /// Something that the user may wonder about.
    fn note(&mut self, _line: &str) {}
    /// All files are here.
    fn end(&mut self) {}
}

/// For those who do not want to hear.
impl Watcher for () {}

/// A file on the hub.
#[derive(Debug, Clone)]
pub struct RemoteFile {
    /// Where in the repository it is.
    pub path: String,
    /// What it is.
    pub metadata: FileMetadata,
}

/// A download into the cache.
pub struct Download<'a> {
    /// The hub.
    pub client: &'a Client,
    /// How long it may still let us wait.
    pub patience: &'a Patience,
    /// Where the file goes.
    pub cache: &'a RepositoryCache,
    /// `owner/name`.
    pub repository: &'a str,
    /// The commit that the file is of.
    pub commit: &'a str,
    /// The file.
    pub file: &'a RemoteFile,
    /// Bytes of other files that are here already, for the progress that is told.
    pub before: u64,
    /// Whether a content that is there is not what it should be.
    pub replaces: bool,
}

impl Download<'_> {
    /// Brings the file's content into the cache, if it is not there or to be replaced.
    ///
    /// # Errors
    /// A [`Failure`] if it cannot be had, is not what the hub says it is, or cannot be written. What came so far stays, and
    /// another try goes on from there.
    pub fn run(&self, watcher: &mut dyn Watcher) -> Result<(), Failure> {
        self.check_size(self.file.metadata.size)?;
        if self.is_here() && !self.replaces {
            return Ok(());
        }
        self.cache.create().map_err(Failure::unwritable)?;
        let mut growth = Growth::new(self.client.timeout().saturating_mul(STANDSTILL), Instant::now());
        let leftover = || largest_leftover(self.cache, &self.file.metadata).map_or(0, |(len, _)| len);
        let _lock = self.cache.lock(&self.file.metadata.etag, watcher, || growth.goes_on(leftover(), Instant::now()));
        // The other process may have brought it meanwhile.
        if self.is_here() && !self.replaces {
            return Ok(());
        }
        let part = Part::open(self.cache, &self.file.metadata).with_context(|| self.cache.cannot_write());
        let mut part = part.map_err(Failure::unwritable)?;
        let filled = self.fill(&mut part, watcher);
        if filled.is_err() && (part.len == 0 || !part.digest.is_hash()) {
            // No other try would go on from there.
            let _ = fs::remove_file(&part.path);
        }
        filled?;
        self.put_in_place(part)
    }

    fn is_here(&self) -> bool {
        let FileMetadata { etag, size } = &self.file.metadata;
        let metadata = fs::metadata(self.cache.blob(etag));
        metadata.is_ok_and(|metadata| metadata.is_file() && size.is_none_or(|size| size == metadata.len()))
    }

    fn check_size(&self, size: Option<u64>) -> Result<(), Failure> {
        let path = &self.file.path;
        match size {
            Some(size) if size > SMALL_FILE && !is_weights(path) => Err(Failure::lasting(bad_input!(
                "{path} of {} has {size} bytes, far more than such a file needs; it is not safe to use",
                self.repository
            ))),
            _ => Ok(()),
        }
    }

    /// Downloads until all is there and right. What brings the file further than ever before counts as success, so that a
    /// bad line wins in the end, and a server that repeats itself does not.
    fn fill(&self, part: &mut Part, watcher: &mut dyn Watcher) -> Result<(), Failure> {
        let FileMetadata { etag, size } = &self.file.metadata;
        let mut furthest = part.len;
        let mut tries = 0;
        let mut has_restarted = false;
        loop {
            let start = Instant::now();
            let failure = match self.receive(part, watcher) {
                Ok(()) if part.is_right(etag, *size).map_err(|error| self.write_failure(error))? => return Ok(()),
                Ok(()) if has_restarted => return Err(self.not_as_promised(part)),
                Ok(()) => {
                    has_restarted = true;
                    let path = &self.file.path;
                    log::info!("{path} is not what the hub says it is; downloading it once more");
                    part.restart().map_err(|error| self.write_failure(error))?;
                    continue;
                }
                Err(failure) => failure,
            };
            if Patience::is_progress(part.len.saturating_sub(furthest), start.elapsed()) {
                (furthest, tries) = (part.len, 0);
            }
            tries += 1;
            if !failure.is_passing() || !self.patience.wait(&failure, tries, watcher) {
                return Err(failure);
            }
            if failure.is_range_refused() {
                part.restart().map_err(|error| self.write_failure(error))?;
            }
        }
    }

    /// One request, from where the file ends so far.
    fn receive(&self, part: &mut Part, watcher: &mut dyn Watcher) -> Result<(), Failure> {
        let (path, size) = (&self.file.path, self.file.metadata.size);
        if size.is_some_and(|size| part.len >= size && part.len > 0) {
            return Ok(());
        }
        let (Self { client, repository, commit, .. }, etag) = (self, part.server_etag.clone());
        let is_large = is_weights(path);
        let content = client.content(repository, commit, path, part.len, etag.as_deref(), is_large)?;
        part.go_back_to(content.start).map_err(|error| self.write_failure(error))?;
        part.server_etag = content.etag;
        let mut pace = Pace::new(client.timeout(), Instant::now());
        let mut reader = content.reader;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.client.broken_off(error, path)),
            };
            part.write(&buffer[..count]).map_err(|error| self.write_failure(error))?;
            watcher.position(path, self.before.saturating_add(part.len));
            if size.is_some_and(|size| part.len > size) {
                // More than there is: the check that follows will say so.
                return Ok(());
            }
            self.check_size(Some(part.len))?;
            if is_large && !pace.keeps_up(count, Instant::now()) {
                return Err(client.drips(path));
            }
        }
        match size {
            // If it is what the server means to send, the check that follows will say so.
            Some(size) if part.len < size && content.end != Some(part.len) => {
                let error = std::io::Error::from(ErrorKind::UnexpectedEof);
                Err(self.client.broken_off(error, path))
            }
            _ => Ok(()),
        }
    }

    fn put_in_place(&self, part: Part) -> Result<(), Failure> {
        let blob = self.cache.blob(&self.file.metadata.etag);
        part.file.sync_all().map_err(|error| self.write_failure(error))?;
        match fs::rename(&part.path, &blob) {
            Ok(()) => Ok(()),
            // Where locks do nothing, another process may have taken the part up and finished it.
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_here() => Ok(()),
            Err(error) => Err(self.write_failure(error)),
        }
    }

    fn not_as_promised(&self, part: &Part) -> Failure {
        // Nothing of it can be used.
        let _ = fs::remove_file(&part.path);
        let Self { repository, file: RemoteFile { path, metadata }, .. } = self;
        let expected = metadata.size.map_or_else(String::new, |size| format!(" ({size} bytes)"));
        Failure::lasting(anyhow!(
            "what came as {path} of {repository} ({} bytes) is not the content {}{expected} that the hub names; {}",
            part.len,
            metadata.etag,
            super::failure::CHECK_ENDPOINT
        ))
    }

    fn write_failure(&self, error: std::io::Error) -> Failure {
        let line = if is_disk_full(&error) { disk_full(self.cache, None) } else { self.cache.cannot_write() };
        Failure::unwritable(Error::new(error).context(line))
    }
}

/// The line for a disk with too little room; `lacking` is how much more it would take.
pub fn disk_full(cache: &RepositoryCache, lacking: Option<u64>) -> String {
    let folder = cache.folder();
    let lacking = lacking.map_or_else(String::new, |bytes| format!(" {:.1} GB more are needed:", bytes as f64 / 1e9));
    format!("the disk of {folder:?} is full;{lacking} make room, or give --cache-dir; what is there already stays")
}

/// The part of a file that is here, under a name that no other process uses.
struct Part {
    path: PathBuf,
    file: File,
    len: u64,
    digest: Digest,
    fresh_digest: Digest,
    /// What the server that sent the last bytes calls the content.
    server_etag: Option<String>,
}

impl Part {
    /// Takes up what an earlier process left, or begins anew.
    ///
    /// Should a process that looked dead go on, then both write the same bytes to the same places: the etag is a hash.
    fn open(cache: &RepositoryCache, metadata: &FileMetadata) -> anyhow::Result<Self> {
        let FileMetadata { etag, size } = metadata;
        let path = cache.blob(&format!("{etag}.{:08x}.incomplete", random() as u32));
        let digest = Digest::new(etag, *size);
        let is_adopted = digest.is_hash()
            && largest_leftover(cache, metadata).is_some_and(|(_, leftover)| fs::rename(leftover, &path).is_ok());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(!is_adopted);
        let file = options.open(&path)?;
        let mut part = Self { path, file, len: 0, digest: digest.clone(), fresh_digest: digest, server_etag: None };
        if is_adopted {
            part.len = part.digest.update_from(&part.file)?;
        }
        Ok(part)
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.digest.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Drops what is beyond the place from which a server goes on.
    fn go_back_to(&mut self, start: u64) -> std::io::Result<()> {
        if start == self.len {
            return Ok(());
        }
        self.digest = self.fresh_digest.clone();
        self.file.seek(SeekFrom::Start(0))?;
        let kept = (&self.file).take(start);
        self.len = self.digest.update_from(kept).map_err(std::io::Error::other)?;
        Ok(())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        self.server_etag = None;
        self.go_back_to(0)
    }

    /// Whether this is the whole content that `etag` names. What a longer file left at the end is cut off.
    fn is_right(&mut self, etag: &str, size: Option<u64>) -> std::io::Result<bool> {
        let is_whole = size.is_none_or(|size| size == self.len);
        Ok(is_whole && self.whole_digest(etag, size)?.matches(etag) && self.file.set_len(self.len).is_ok())
    }

    /// The digest of all that is here. Git's begins with the size, so where nobody told it all is read once more.
    fn whole_digest(&mut self, etag: &str, size: Option<u64>) -> std::io::Result<Digest> {
        if size.is_some() {
            return Ok(self.digest.clone());
        }
        let mut digest = Digest::new(etag, Some(self.len));
        self.file.seek(SeekFrom::Start(0))?;
        digest.update_from((&self.file).take(self.len)).map_err(std::io::Error::other)?;
        Ok(digest)
    }
}

/// The most that any process left of a content; none that is longer than the content.
fn largest_leftover(cache: &RepositoryCache, metadata: &FileMetadata) -> Option<(u64, PathBuf)> {
    let entries = cache.blob("").read_dir().ok()?.flatten();
    let prefix = format!("{}.", metadata.etag);
    let leftovers = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with(&prefix) && name.ends_with("incomplete"))
    });
    // Of a link this tells that it is none of them; written to, it would lead elsewhere.
    let files = leftovers.filter_map(|entry| Some((entry.metadata().ok()?, entry.path())));
    let sizes = files.filter(|(metadata, _)| metadata.is_file()).map(|(metadata, path)| (metadata.len(), path));
    let fits = |len: u64| metadata.size.is_none_or(|size| len <= size);
    sizes.filter(|(len, _)| *len > 0 && fits(*len)).max()
}

/// Bytes of a content that an earlier process left, which need not be downloaded again.
pub fn left_over(cache: &RepositoryCache, metadata: &FileMetadata) -> u64 {
    let is_hash = Digest::new(&metadata.etag, metadata.size).is_hash();
    largest_leftover(cache, metadata).filter(|_| is_hash).map_or(0, |(len, _)| len)
}
