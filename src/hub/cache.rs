//! The cache, in the layout of Python's huggingface_hub.
//!
//! ```text
//! models--owner--name/
//!     blobs/<etag>                        contents of files
//!     snapshots/<commit>/<path>           links to blobs
//!     refs/<branch or tag>                a commit
//!     .no_exist/<commit>/<path>           empty: this commit has no such file
//!     trees/<commit>.json                 all files of a commit
//! .locks/models--owner--name/<etag>.lock  locked while the blob is written
//! ```
//!
//! A data set's folder begins with `datasets--`. Source: huggingface_hub 2.4 `file_download.py`, `_tree_cache.py`.

use super::failure::Resource;
use super::name::{HubName, RepositoryKind, is_commit};
use super::plan::{Presence, Tree, is_safe_path};
use super::progress::DownloadProgress;
use super::tree::{self, Files};
use crate::error::{Cause, Error, Hint, HubErrorKind, Result};
use crate::files::Folder;
use crate::pipeline::layout::INDEX;
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::Builder;

/// The longest reference in bytes: a commit, and room for a line break.
const MAX_REFERENCE: u64 = 64;

/// The longest listing of a commit, in bytes.
const MAX_TREE: u64 = 512 << 20;

/// How often to try a lock that another process holds.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// The cache's folder of one repository.
#[derive(Debug)]
pub struct RepositoryCache {
    root: PathBuf,
    folder_name: String,
    repository: CacheRepo,
    name: HubName,
}

impl RepositoryCache {
    /// The folder in the cache at `root`; it need not exist.
    pub fn new(root: &Path, name: &HubName) -> Self {
        let kind = match name.kind {
            RepositoryKind::Model => RepoType::Model,
            RepositoryKind::Dataset => RepoType::Dataset,
        };
        let repo = Repo::with_revision(name.repository.clone(), kind, name.revision.clone());
        let folder_name = repo.folder_name();
        let repository = Cache::new(root.to_path_buf()).repo(repo);
        Self { root: root.to_path_buf(), folder_name, repository, name: name.clone() }
    }

    /// Its path.
    pub fn folder(&self) -> PathBuf {
        self.root.join(&self.folder_name)
    }

    /// The commit that the revision was at the last time the hub was asked.
    pub fn commit(&self) -> Option<String> {
        if is_commit(&self.name.revision) {
            return Some(self.name.revision.clone());
        }
        let path = self.folder().join("refs").join(&self.name.revision);
        let mut text = String::new();
        // Reading a pipe might never end.
        if path.is_file() {
            File::open(path).and_then(|file| file.take(MAX_REFERENCE).read_to_string(&mut text)).ok()?;
        }
        // It becomes a part of a path.
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_string())
    }

    /// Sets the commit that the revision is at.
    ///
    /// # Errors
    /// [`HubErrorKind::CacheNotWritable`].
    pub fn set_commit(&self, commit: &str) -> Result<()> {
        if self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder().join("refs").join(&self.name.revision);
        // A temporary file among the references would be taken for one.
        replace(&path, &self.folder(), |fresh| fs::write(fresh, commit)).map_err(|error| self.write_error(error))
    }

    /// The files of a commit.
    pub fn snapshot(&self, commit: &str) -> Snapshot {
        let path = self.repository.pointer_path(commit);
        let absent = self.folder().join(".no_exist").join(commit);
        Snapshot { title: path.display().to_string(), path, absent }
    }

    /// All files of a commit, if they were listed before.
    pub fn tree(&self, commit: &str) -> Option<Files> {
        let path = self.tree_path(commit);
        let mut text = Vec::new();
        // Reading a pipe might never end.
        if path.is_file() {
            File::open(path).and_then(|file| file.take(MAX_TREE).read_to_end(&mut text)).ok()?;
        }
        tree::parse_cached(&text)
    }

    /// Keeps the list of all files of a commit. It is best effort: without it, the hub is asked again.
    pub fn set_tree(&self, commit: &str, files: &Files) {
        let path = self.tree_path(commit);
        if let Some(folder) = path.parent() {
            let _ = replace(&path, folder, |fresh| fs::write(fresh, tree::to_cached(files)));
        }
    }

    fn tree_path(&self, commit: &str) -> PathBuf {
        self.folder().join("trees").join(format!("{commit}.json"))
    }

    /// The path of the blob with this name.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// Creates the folder of the blobs.
    ///
    /// # Errors
    /// [`HubErrorKind::CacheNotWritable`].
    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(self.folder().join("blobs")).map_err(|error| self.write_error(error))
    }

    /// Makes a blob a file of a commit.
    ///
    /// # Errors
    /// [`HubErrorKind::CacheNotWritable`], also if a folder of the snapshot is a link to elsewhere.
    pub fn link(&self, commit: &str, path: &str, etag: &str) -> Result<()> {
        let snapshot = self.snapshot(commit).path;
        let pointer = snapshot.join(path);
        let is_the_blob = |place: PathBuf| self.blob(etag).canonicalize().is_ok_and(|blob| blob == place);
        if pointer.canonicalize().is_ok_and(is_the_blob) {
            return Ok(());
        }
        let parent = pointer.parent().unwrap_or(&snapshot);
        let mut folders = parent.ancestors().take_while(|folder| folder.starts_with(&snapshot));
        if let Some(folder) = folders.find(|folder| folder.is_symlink()) {
            let reason = format!("{folder:?} in the cache is a link to elsewhere");
            return Err(self.error(HubErrorKind::CacheNotWritable, reason, Hint::Other("remove it".into()), None));
        }
        let depth = path.split('/').count();
        let target: PathBuf = std::iter::repeat_n("..", depth + 1).chain(["blobs", etag]).collect();
        let blob = self.blob(etag);
        replace(&pointer, parent, |fresh| symlink_or_copy(&target, &blob, fresh))
            .map_err(|error| self.write_error(error))
    }

    /// Notes that a commit has no such file. It is best effort: without the note, the hub is asked again.
    pub fn mark_absent(&self, commit: &str, path: &str) {
        let marker = self.snapshot(commit).absent.join(path);
        if let Some(folder) = marker.parent()
            && fs::create_dir_all(folder).is_ok()
        {
            let _ = OpenOptions::new().create(true).append(true).open(marker);
        }
    }

    /// Waits until no other process writes the blob, as long as `goes_on` says that one does. The lock is released with the
    /// file that is returned.
    ///
    /// The lock only avoids double work: without one, as on file systems that have none, processes that download the same
    /// blob do not disturb each other.
    pub fn lock(
        &self,
        etag: &str,
        progress: &mut dyn DownloadProgress,
        mut goes_on: impl FnMut() -> bool,
    ) -> Option<File> {
        let folder = self.root.join(".locks").join(&self.folder_name);
        fs::create_dir_all(&folder).ok()?;
        let path = folder.join(format!("{etag}.lock"));
        if fs::symlink_metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
            // Opening a pipe might never end.
            return None;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).ok()?;
        let mut has_told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Some(file),
                Err(TryLockError::Error(_)) => return None,
                Err(TryLockError::WouldBlock) if !has_told => {
                    progress.note("another process is downloading the same file; waiting for it");
                    has_told = true;
                }
                Err(TryLockError::WouldBlock) if goes_on() => std::thread::sleep(LOCK_INTERVAL),
                Err(TryLockError::WouldBlock) => {
                    progress.note("the other process makes no progress; downloading the file without it");
                    return None;
                }
            }
        }
    }

    /// A failed write.
    pub fn write_error(&self, error: io::Error) -> Error {
        if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            return self.disk_full(None, Some(error.into()));
        }
        let reason = format!("cannot write to the cache in {:?}", self.root);
        self.error(HubErrorKind::CacheNotWritable, reason, Hint::ChooseCache, Some(error.into()))
    }

    /// The disk has too little room; `lacking` is how many bytes more are needed.
    pub fn disk_full(&self, lacking: Option<u64>, source: Option<Cause>) -> Error {
        let lacking =
            lacking.map_or_else(String::new, |bytes| format!(", {:.1} GB more are needed", bytes as f64 / 1e9));
        let hint = Hint::Other("make room, or give --cache-dir; finished downloads are kept".into());
        self.error(HubErrorKind::DiskFull, format!("the disk of {:?} is full{lacking}", self.folder()), hint, source)
    }

    fn error(&self, kind: HubErrorKind, reason: String, hint: Hint, source: Option<Cause>) -> Error {
        let mut error = Resource::of(&self.name).error(kind, reason, Some(hint));
        error.source = source;
        error.into()
    }
}

/// What the folder of a model's repository is called: `models--owner--name`.
const PREFIX: &str = "models--";
const SEPARATOR: &str = "--";

/// Makes a file under a temporary name in `folder`, then renames it: readers find the old or the new file, never a part.
fn replace(path: &Path, folder: &Path, make: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(folder))?;
    let fresh = Builder::new().prefix(".").rand_bytes(16).make_in(folder, make)?;
    fresh.into_temp_path().persist(path).map_err(|error| error.error)
}

#[cfg(unix)]
fn symlink_or_copy(target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    let linked = std::os::unix::fs::symlink(target, link);
    // Not every file system has symbolic links.
    linked.or_else(|_| fs::hard_link(blob, link)).or_else(|_| fs::copy(blob, link).map(drop))
}

#[cfg(not(unix))]
fn symlink_or_copy(_target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(drop))
}

/// The files of a commit that are in the cache.
#[derive(Debug, Clone)]
pub struct Snapshot {
    title: String,
    path: PathBuf,
    absent: PathBuf,
}

impl Snapshot {
    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the cache has the file.
    pub fn has(&self, path: &str) -> bool {
        is_safe_path(path) && self.path.join(path).is_file()
    }
}

impl Tree for Snapshot {
    fn presence(&self, path: &str) -> Presence {
        match self.has(path) {
            true => Presence::Yes,
            false if is_safe_path(path) && self.absent.join(path).is_file() => Presence::No,
            false => Presence::Unknown,
        }
    }

    fn may_have_folder(&self, name: &str) -> bool {
        let is_absent = || self.absent.join(name).join("config.json").is_file();
        // An index names the folders.
        self.path.join(name).is_dir() || self.has(INDEX) && !is_absent()
    }

    fn read_text(&mut self, path: &str) -> Result<String> {
        Tree::read_text(&mut Folder::from(&self.path), path)
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn title(&self) -> String {
        self.title.clone()
    }
}

/// The repositories that have a folder in the cache, `owner/name`.
pub fn repositories(root: &Path) -> Vec<String> {
    let entries = root.read_dir().into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut repositories: Vec<String> = names
        .filter_map(|name| {
            let (owner, name) = name.strip_prefix(PREFIX)?.split_once(SEPARATOR)?;
            Some(format!("{owner}/{name}"))
        })
        .collect();
    repositories.sort();
    repositories
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache(root: &Path, revision: &str) -> RepositoryCache {
        RepositoryCache::new(root, &HubName { revision: revision.into(), ..HubName::newest("owner/name") })
    }

    #[test]
    fn a_linked_blob_is_a_file_of_the_snapshot() {
        let root = tempfile::TempDir::new().unwrap();
        let cache = cache(root.path(), "main");
        cache.create().unwrap();
        fs::write(cache.blob("abc"), "{}").unwrap();
        let mut snapshot = cache.snapshot(COMMIT);
        assert_eq!(snapshot.presence("prior/config.json"), Presence::Unknown);
        for _ in 0..2 {
            cache.link(COMMIT, "prior/config.json", "abc").unwrap();
            assert_eq!(Tree::read_text(&mut snapshot, "prior/config.json").unwrap(), "{}");
        }
        let pointer = root.path().join("models--owner--name/snapshots").join(COMMIT).join("prior/config.json");
        assert_eq!(fs::read_link(pointer).unwrap(), Path::new("../../../blobs/abc"));
        cache.mark_absent(COMMIT, "prior/model.bin");
        assert_eq!(snapshot.presence("prior/model.bin"), Presence::No);
        assert_eq!(snapshot.presence("../../../blobs/abc"), Presence::Unknown, "not in the snapshot");
    }

    #[test]
    fn a_revision_is_a_commit_or_leads_to_one() {
        let root = tempfile::TempDir::new().unwrap();
        assert_eq!(cache(root.path(), COMMIT).commit().unwrap(), COMMIT);
        let main = cache(root.path(), "refs/pr/1");
        assert_eq!(main.commit(), None);
        main.set_commit(COMMIT).unwrap();
        assert_eq!(main.commit().unwrap(), COMMIT);
        let file = root.path().join("models--owner--name/refs/refs/pr/1");
        assert_eq!(fs::read_to_string(&file).unwrap(), COMMIT);
        // A reader of the old file is not disturbed, and no temporary file is left.
        let mut reader = File::open(&file).unwrap();
        main.set_commit(&COMMIT.replace('0', "f")).unwrap();
        let mut old = String::new();
        reader.read_to_string(&mut old).unwrap();
        assert_eq!((old.as_str(), main.commit().unwrap()), (COMMIT, COMMIT.replace('0', "f")));
        assert_eq!(main.folder().read_dir().unwrap().count(), 1);
        for broken in ["", "../../etc", "0123"] {
            fs::write(&file, broken).unwrap();
            assert_eq!(main.commit(), None, "{broken:?}");
        }
        assert_eq!(repositories(root.path()), ["owner/name"]);
    }
}
