//! The cache that Python's huggingface_hub keeps, read and written as it does.
//!
//! ```text
//! models--owner--name/
//!     blobs/<etag>                        what files hold
//!     snapshots/<commit>/<path>           links to it
//!     refs/<branch or tag>                a commit
//!     .no_exist/<commit>/<path>           empty: this commit has no such file
//! .locks/models--owner--name/<etag>.lock  held while a blob is written
//! ```
//!
//! Source: huggingface_hub 2.4 `file_download.py`.

use super::download::Watcher;
use super::name::{HubName, is_commit};
use super::plan::{Presence, Tree, is_safe_path};
use crate::files::Folder;
use crate::pipeline::layout::INDEX;
use anyhow::{Context, Result, bail};
use fs4::{FileExt, TryLockError};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf, is_separator};
use std::time::Duration;

/// The most bytes in a blob's name, so that what is added to it while it is written still fits a file's 255.
const MAX_BLOB_NAME: usize = 255 - ".01234567.incomplete".len();

/// The most bytes in a reference: a commit, and room for a line's end.
const MAX_REFERENCE: u64 = 64;

/// How often a lock that another process holds is tried again.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// One repository's part of the cache.
#[derive(Debug)]
pub struct RepositoryCache {
    root: PathBuf,
    folder_name: String,
    repository: CacheRepo,
    revision: String,
}

impl RepositoryCache {
    /// The part of the cache at `root` that is `name`'s; it need not be there.
    pub fn new(root: &Path, name: &HubName) -> Self {
        let repo = Repo::with_revision(name.repository.clone(), RepoType::Model, name.revision.clone());
        let folder_name = repo.folder_name();
        let repository = Cache::new(root.to_path_buf()).repo(repo);
        Self { root: root.to_path_buf(), folder_name, repository, revision: name.revision.clone() }
    }

    /// The folder of this repository.
    pub fn folder(&self) -> PathBuf {
        self.root.join(&self.folder_name)
    }

    /// The commit that the revision was the last time that anyone asked the hub.
    pub fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let path = self.folder().join("refs").join(&self.revision);
        let mut text = String::new();
        // Whatever else may be there, such as a pipe, might never end.
        if path.is_file() {
            File::open(path).and_then(|file| file.take(MAX_REFERENCE).read_to_string(&mut text)).ok()?;
        }
        // It becomes a part of a path.
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_string())
    }

    /// Notes which commit the revision is.
    ///
    /// # Errors
    /// If the cache cannot be written to.
    pub fn set_commit(&self, commit: &str) -> Result<()> {
        if self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder().join("refs").join(&self.revision);
        // Not among the references, where it would be taken for one.
        let fresh = self.folder().join(format!(".{:016x}.ref", random()));
        replace(&path, &fresh, |fresh| fs::write(fresh, commit)).with_context(|| self.cannot_write())
    }

    /// The files of a commit that are here.
    pub fn snapshot(&self, commit: &str) -> Snapshot {
        let path = self.repository.pointer_path(commit);
        let absent = self.folder().join(".no_exist").join(commit);
        Snapshot { title: path.display().to_string(), path, absent }
    }

    /// Where the content with this etag lies or is to lie.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// Makes the folder of the blobs.
    ///
    /// # Errors
    /// If the cache cannot be written to.
    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(self.folder().join("blobs")).with_context(|| self.cannot_write())
    }

    /// Makes a blob a file of a commit, if it is not.
    ///
    /// # Errors
    /// If the cache cannot be written to, or the file would lie outside.
    pub fn link(&self, commit: &str, path: &str, etag: &str) -> Result<()> {
        let snapshot = self.snapshot(commit).path;
        let pointer = snapshot.join(path);
        let is_the_blob = |place: PathBuf| self.blob(etag).canonicalize().is_ok_and(|blob| blob == place);
        if pointer.canonicalize().is_ok_and(is_the_blob) {
            return Ok(());
        }
        // Files would be replaced there that are none of the cache's.
        let mut folders = pointer.ancestors().skip(1).take_while(|folder| folder.starts_with(&snapshot));
        if let Some(folder) = folders.find(|folder| folder.is_symlink()) {
            bail!("{folder:?} in the cache is a link to elsewhere; remove it");
        }
        let depth = path.split('/').count();
        let target: PathBuf = std::iter::repeat_n("..", depth + 1).chain(["blobs", etag]).collect();
        let fresh = pointer.with_file_name(format!(".{:016x}.link", random()));
        let make = |fresh: &Path| symlink_or_copy(&target, &self.blob(etag), fresh);
        replace(&pointer, &fresh, make).with_context(|| self.cannot_write())
    }

    /// Notes that a commit has no such file. What is not noted is looked up again: a failure is none.
    pub fn mark_absent(&self, commit: &str, path: &str) {
        let marker = self.snapshot(commit).absent.join(path);
        if let Some(folder) = marker.parent()
            && fs::create_dir_all(folder).is_ok()
        {
            let _ = OpenOptions::new().create(true).append(true).open(marker);
        }
    }

    /// Waits until no other process writes the blob, as long as `goes_on` says that one does. The lock ends with the file that
    /// is given back.
    ///
    /// It saves work and no more: on file systems without locks, processes that write the same blob do not disturb each
    /// other either.
    pub fn lock(&self, etag: &str, watcher: &mut dyn Watcher, mut goes_on: impl FnMut() -> bool) -> Option<File> {
        let folder = self.root.join(".locks").join(&self.folder_name);
        fs::create_dir_all(&folder).ok()?;
        let path = folder.join(format!("{etag}.lock"));
        if fs::symlink_metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
            // To open a pipe can take for ever.
            return None;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).ok()?;
        let mut has_told = false;
        loop {
            match FileExt::try_lock(&file) {
                Ok(()) => return Some(file),
                Err(TryLockError::Error(_)) => return None,
                Err(TryLockError::WouldBlock) if !has_told => {
                    watcher.note("another process is downloading the same file; waiting for it");
                    has_told = true;
                }
                Err(TryLockError::WouldBlock) if goes_on() => std::thread::sleep(LOCK_INTERVAL),
                Err(TryLockError::WouldBlock) => {
                    watcher.note("the other process does not get on; downloading the file without it");
                    return None;
                }
            }
        }
    }

    /// The line for a cache that cannot be written to.
    pub fn cannot_write(&self) -> String {
        format!("cannot write to the cache in {:?}; give --cache-dir, or set HF_HOME, to a folder of yours", self.root)
    }
}

/// Makes a file under a name of its own, `fresh`, and then puts it in its place: whoever looks meanwhile finds the old one or
/// the new one, and never a half.
fn replace(path: &Path, fresh: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    make(fresh).and_then(|()| fs::rename(fresh, path)).inspect_err(|_| drop(fs::remove_file(fresh)))
}

#[cfg(unix)]
fn symlink_or_copy(target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    let linked = std::os::unix::fs::symlink(target, link);
    // Not every file system has links.
    linked.or_else(|_| fs::hard_link(blob, link)).or_else(|_| fs::copy(blob, link).map(drop))
}

#[cfg(not(unix))]
fn symlink_or_copy(_target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(drop))
}

/// A number that no other process has, for names of files.
pub fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds each of these from the system's randomness.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// An etag as the cache names its blobs, if that can be the name of a file and of its lock.
///
/// Source: `_normalize_etag` in huggingface_hub; Python also lets a name lead elsewhere.
pub fn blob_name(etag: &str) -> Option<String> {
    let name = etag.trim_start_matches(['W', '/']).trim_matches('"');
    let has_length = (1..=MAX_BLOB_NAME).contains(&name.len());
    let is_name = ![".", ".."].contains(&name) && !name.contains(|char| char == '\0' || is_separator(char));
    (has_length && is_name).then(|| name.to_string())
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

    /// Whether the file is here, with all that it holds.
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
        // Where there is an index, it says which folders there are.
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

/// The repositories that have a part in the cache, `owner/name`.
pub fn repositories(root: &Path) -> Vec<String> {
    let entries = root.read_dir().into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut repositories: Vec<String> = names
        .filter_map(|name| {
            let (owner, name) = name.strip_prefix("models--")?.split_once("--")?;
            Some(format!("{owner}/{name}"))
        })
        .collect();
    repositories.sort();
    repositories
}

/// Whether an error says that nothing more fits on the disk.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache(root: &Path, revision: &str) -> RepositoryCache {
        RepositoryCache::new(root, &HubName { repository: "owner/name".into(), revision: revision.into() })
    }

    #[test]
    fn blobs_have_the_names_that_python_gives_them() {
        // Each pair as `_normalize_etag` of huggingface_hub 2.4 has it.
        for (etag, name) in [
            ("\"abc-1\"", "abc-1"),
            ("W/\"abc\"", "abc"),
            ("abc", "abc"),
            ("Wabc", "abc"),
            ("/abc", "abc"),
            ("\"Wabc\"", "Wabc"),
            ("\"\"abc\"\"", "abc"),
            ("\"abc\"x", "abc\"x"),
            ("\"CJ+9/q@==\"", ""),
            ("\"CJ+q@==\"", "CJ+q@=="),
            ("\".x\"", ".x"),
            ("\"...\"", "..."),
            ("\"a b:*?<>|~$&;!#%2F\u{e9}\"", "a b:*?<>|~$&;!#%2F\u{e9}"),
        ] {
            assert_eq!(blob_name(etag).unwrap_or_default(), name, "{etag}");
        }
        for etag in ["", "\"\"", "W/\"\"", "\"../x\"", "\"a/b\"", "\"..\"", "\".\"", "\"/etc/passwd\"", "a\0"] {
            assert_eq!(blob_name(etag), None, "{etag:?}");
        }
        assert!(blob_name(&"x".repeat(235)).is_some() && blob_name(&"x".repeat(236)).is_none());
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
        // A reader that has the old file open keeps what was in it, and nothing else is left behind.
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
