//! Downloads one file into the cache: resumed where an earlier attempt stopped, checked, and there whole or not at all.

use super::cache::RepositoryCache;
use super::client::{Client, MAX_SMALL_FILE};
use super::etag;
use super::etag::FileMetadata;
use super::failure::{Resource, kind_of};
use super::name::RepositoryKind;
use super::pace::Pace;
use super::progress::DownloadProgress;
use super::retry::{RetryPolicy, is_progress};
use crate::error::{Error, HubErrorKind, Result};
use crate::weights::checkpoint::candidates::is_weights;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Instant;
use tempfile::{Builder, TempPath};

/// How long a process that holds a file's lock may make no progress, as a multiple of the idle timeout.
const MAX_STANDSTILL: u32 = 10;

/// The download of a file.
pub struct Download<'a> {
    /// The hub.
    pub client: &'a Client,
    /// How long to retry.
    pub retry: &'a RetryPolicy,
    /// The cache that the file goes to.
    pub cache: &'a RepositoryCache,
    /// The file, at a commit.
    pub file: Resource<'a>,
    /// Its metadata.
    pub metadata: &'a FileMetadata,
    /// Bytes of earlier files, added to the reported position.
    pub offset: u64,
    /// Whether to replace a blob that the cache has already.
    pub replaces: bool,
}

impl Download<'_> {
    /// Downloads the blob, if the cache does not have it.
    ///
    /// # Errors
    /// If it cannot be downloaded, has another hash than the hub says, or cannot be written. The received part is kept for
    /// the next attempt.
    pub fn run(&self, progress: &mut dyn DownloadProgress) -> Result<()> {
        self.check_size(self.metadata.size)?;
        if self.is_done() {
            return Ok(());
        }
        self.cache.create()?;
        let _lock = self.cache.lock(&self.metadata.etag, progress, self.others_progress());
        // Another process may have downloaded it meanwhile.
        if self.is_done() {
            return Ok(());
        }
        let mut part = Part::open(self.cache, self.metadata).map_err(|error| self.write_error(error))?;
        match self.fill(&mut part, progress) {
            Ok(()) => self.persist(part),
            Err(error) => {
                if part.len > 0 && etag::is_hash(&self.metadata.etag) {
                    let _ = part.path.keep();
                }
                Err(error)
            }
        }
    }

    /// Tells whether another process makes progress with the file.
    fn others_progress(&self) -> impl FnMut() -> bool {
        let mut pace = Pace::new(self.client.limits().idle.saturating_mul(MAX_STANDSTILL), Instant::now());
        let mut len = 0;
        move || {
            let before = std::mem::replace(&mut len, leftover(self.cache, self.metadata).map_or(0, |(len, _)| len));
            pace.keeps_up(len.saturating_sub(before), Instant::now())
        }
    }

    fn is_done(&self) -> bool {
        !self.replaces && has_blob(self.cache, self.metadata)
    }

    fn check_size(&self, size: Option<u64>) -> Result<()> {
        match size {
            Some(size) if size > MAX_SMALL_FILE && !self.is_large() => {
                let reason =
                    format!("{} has {size} bytes, far more than such a file needs; it is not safe to use", self.file);
                Err(self.file.error(HubErrorKind::Unsafe, reason, None).into())
            }
            _ => Ok(()),
        }
    }

    fn is_large(&self) -> bool {
        self.file.kind == RepositoryKind::Dataset || self.file.path.is_some_and(is_weights)
    }

    /// Downloads until the content is whole and right. An attempt that gets further than all before resets the count,
    /// so that a bad line succeeds in the end and a server that repeats itself does not.
    fn fill(&self, part: &mut Part, progress: &mut dyn DownloadProgress) -> Result<()> {
        let mut furthest = part.len;
        let mut attempts = 0;
        let mut is_second = false;
        loop {
            let start = Instant::now();
            let error = match self.receive(part, progress) {
                Ok(()) if part.matches(self.metadata).map_err(|error| self.write_error(error))? => return Ok(()),
                Ok(()) if is_second => return Err(self.mismatch(part)),
                Ok(()) => {
                    is_second = true;
                    log::info!("{} has another hash than the hub says; downloading it once more", self.file);
                    part.truncate(0).map_err(|error| self.write_error(error))?;
                    continue;
                }
                Err(error) => error,
            };
            if is_progress(part.len.saturating_sub(furthest), start.elapsed()) {
                (furthest, attempts) = (part.len, 0);
            }
            attempts += 1;
            let kind = kind_of(&error);
            if !kind.is_some_and(HubErrorKind::is_temporary) || !self.retry.wait(&error, attempts, progress) {
                return Err(error);
            }
            if kind == Some(HubErrorKind::RangeNotSatisfiable) {
                part.truncate(0).map_err(|error| self.write_error(error))?;
            }
        }
    }

    /// Sends one request, from the end of the part.
    fn receive(&self, part: &mut Part, progress: &mut dyn DownloadProgress) -> Result<()> {
        let size = self.metadata.size;
        if size.is_some_and(|size| part.len >= size && part.len > 0) {
            return Ok(());
        }
        let content = self.client.content(&self.file, part.len, part.server_etag.as_deref(), self.is_large())?;
        if content.start != part.len {
            part.truncate(content.start).map_err(|error| self.write_error(error))?;
        }
        part.server_etag = content.etag;
        let mut pace = Pace::new(self.client.limits().idle, Instant::now());
        let mut reader = content.reader;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.client.read_error(error, &self.file)),
            };
            part.write(&buffer[..count]).map_err(|error| self.write_error(error))?;
            progress.position(self.file.path.unwrap_or_default(), self.offset.saturating_add(part.len));
            if size.is_some_and(|size| part.len > size) {
                // Too long: it fails the check.
                return Ok(());
            }
            self.check_size(Some(part.len))?;
            if self.is_large() && !pace.keeps_up(count as u64, Instant::now()) {
                return Err(self.client.too_slow(&self.file));
            }
        }
        match size {
            // If the server meant to send no more, it fails the check.
            Some(size) if part.len < size && content.end != Some(part.len) => {
                Err(self.client.read_error(ErrorKind::UnexpectedEof.into(), &self.file))
            }
            _ => Ok(()),
        }
    }

    fn persist(&self, part: Part) -> Result<()> {
        part.file.sync_all().map_err(|error| self.write_error(error))?;
        match part.path.persist(self.cache.blob(&self.metadata.etag)) {
            Ok(()) => Ok(()),
            // Without locks another process may have taken over the part and finished it.
            Err(error) if error.error.kind() == ErrorKind::NotFound && has_blob(self.cache, self.metadata) => Ok(()),
            Err(error) => Err(self.write_error(error.error)),
        }
    }

    fn mismatch(&self, part: &mut Part) -> Error {
        let FileMetadata { etag, size } = self.metadata;
        let expected = size.map_or_else(String::new, |size| format!(" ({size} bytes)"));
        let (file, received) = (self.file, part.len);
        // Nothing of it can be used.
        part.len = 0;
        let reason =
            format!("what came as {file} ({received} bytes) is not the content {etag}{expected} that the hub names");
        file.protocol_error(reason).into()
    }

    fn write_error(&self, error: io::Error) -> Error {
        self.cache.write_error(error)
    }
}

/// Whether the cache has the blob, in the right size.
pub fn has_blob(cache: &RepositoryCache, FileMetadata { etag, size }: &FileMetadata) -> bool {
    let metadata = fs::metadata(cache.blob(etag));
    metadata.is_ok_and(|metadata| metadata.is_file() && size.is_none_or(|size| size == metadata.len()))
}

/// The received part of a file, under a name that no other process uses. It is removed unless it is kept or persisted.
struct Part {
    path: TempPath,
    file: File,
    len: u64,
    /// The ETag of the server that sent the last bytes.
    server_etag: Option<String>,
}

impl Part {
    /// Takes over the part that an earlier process left, or starts a new one.
    ///
    /// Should a process that seemed dead go on, both write the same bytes to the same offsets: the ETag is a hash.
    fn open(cache: &RepositoryCache, metadata: &FileMetadata) -> io::Result<Self> {
        let leftover = leftover(cache, metadata).filter(|_| etag::is_hash(&metadata.etag)).map(|(_, path)| path);
        let open = |path: &std::path::Path| {
            let is_adopted = leftover.as_ref().is_some_and(|leftover| fs::rename(leftover, path).is_ok());
            OpenOptions::new().read(true).write(true).create_new(!is_adopted).open(path)
        };
        let prefix = format!("{}.", metadata.etag);
        let mut builder = Builder::new();
        let builder = builder.prefix(&prefix).suffix(".incomplete").rand_bytes(8);
        let (mut file, path) = builder.make_in(cache.blob(""), open)?.into_parts();
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { path, file, len, server_etag: None })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Drops what is beyond `len`.
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.server_etag = None;
        self.file.set_len(len)?;
        self.len = self.file.seek(SeekFrom::Start(len))?;
        Ok(())
    }

    /// Whether it has the whole content.
    fn matches(&mut self, FileMetadata { etag, size }: &FileMetadata) -> io::Result<bool> {
        // A process that seemed dead may have written beyond the end.
        self.file.set_len(self.len)?;
        Ok(size.is_none_or(|size| size == self.len) && etag::matches(etag, &self.file)?)
    }
}

/// The longest part of a blob that a process left, and its length; none that is longer than the blob.
fn leftover(cache: &RepositoryCache, metadata: &FileMetadata) -> Option<(u64, PathBuf)> {
    let entries = cache.blob("").read_dir().ok()?.flatten();
    let prefix = format!("{}.", metadata.etag);
    let leftovers = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with(&prefix) && name.ends_with("incomplete"))
    });
    // The entry's metadata are the link's own, so that a link is none of them: written to, it would lead elsewhere.
    let files = leftovers.filter_map(|entry| Some((entry.metadata().ok()?, entry.path())));
    let sizes = files.filter(|(metadata, _)| metadata.is_file()).map(|(metadata, path)| (metadata.len(), path));
    let fits = |len: u64| metadata.size.is_none_or(|size| len <= size);
    sizes.filter(|(len, _)| *len > 0 && fits(*len)).max()
}

/// How many bytes of a blob are still to be downloaded.
pub fn remaining(cache: &RepositoryCache, metadata: &FileMetadata) -> u64 {
    let leftover = leftover(cache, metadata).filter(|_| etag::is_hash(&metadata.etag)).map_or(0, |(len, _)| len);
    metadata.size.unwrap_or(0).saturating_sub(leftover)
}
