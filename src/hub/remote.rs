//! A commit on the hub, and the way of its files into the cache.

use super::cache::{RepositoryCache, Snapshot};
use super::client::{Client, Listing};
use super::download::{Download, has_blob, remaining};
use super::etag;
use super::etag::FileMetadata;
use super::failure::Resource;
use super::name::HubName;
use super::plan::{Needs, Plan, Presence, Scope, Tree};
use super::presets;
use super::progress::DownloadProgress;
use super::retry::RetryPolicy;
use super::settings::{Connection, free_bytes};
use crate::error::{Component, Hint, HubErrorKind, Result};
use std::fs::{self, File};
use std::path::Path;

/// A commit on the hub.
pub struct Remote {
    client: Client,
    retry: RetryPolicy,
    cache: RepositoryCache,
    snapshot: Snapshot,
    listing: Listing,
    name: HubName,
    /// Whether files in the cache are compared by their hashes.
    force: bool,
}

/// A file of the commit.
pub struct RemoteFile<'a> {
    /// Its path in the repository.
    pub path: &'a str,
    /// Its metadata.
    pub metadata: FileMetadata,
}

impl Remote {
    /// Asks the hub for the files of a revision.
    ///
    /// # Errors
    /// As [`Client::listing`]'s.
    pub fn open(
        name: &HubName,
        revision: &str,
        cache: RepositoryCache,
        retry: RetryPolicy,
        force: bool,
        progress: &mut dyn DownloadProgress,
    ) -> Result<Self> {
        let client = Client::new(Connection::from_environment()?)?;
        let listing = retry.run(progress, || client.listing(name, revision))?;
        let snapshot = cache.snapshot(&listing.commit);
        Ok(Self { client, retry, cache, snapshot, listing, name: name.clone(), force })
    }

    /// A commit whose files are known.
    pub fn of_commit(name: &HubName, listing: Listing, client: Client, cache: RepositoryCache) -> Self {
        let (snapshot, retry) = (cache.snapshot(&listing.commit), RetryPolicy::persistent());
        Self { client, retry, cache, snapshot, listing, name: name.clone(), force: false }
    }

    /// The commit.
    pub fn commit(&self) -> &str {
        &self.listing.commit
    }

    /// Its folder in the cache.
    pub fn folder(&self) -> &Path {
        self.snapshot.path()
    }

    /// The size of a file, if the hub lists it.
    pub fn listed_size(&self, path: &str) -> Option<u64> {
        self.listing.files.get(path).copied().flatten()
    }

    /// Plans what a run needs of it.
    ///
    /// # Errors
    /// As [`Plan::new`]'s, and [`HubErrorKind::Incomplete`] if there is no usable prior or component.
    pub fn plan(&self, scope: Scope, needs: Needs, progress: &mut dyn DownloadProgress) -> Result<Plan> {
        let plan = Plan::new(&mut RemoteTree { remote: self, progress }, scope, needs)?;
        if !plan.is_usable() {
            let (what, hint) = match scope {
                Scope::Model { .. } => {
                    let hint = Hint::Other(format!("{} are models that have one", presets::names()).into());
                    (Component::Prior, Some(hint))
                }
                Scope::Component { component, .. } => (component, None),
            };
            let reason = format!("{} has no {what} that can be used: it lacks {}", self.name, plan.missing.join(", "));
            let repository = Resource { revision: self.commit(), ..Resource::of(&self.name) };
            return Err(repository.error(HubErrorKind::Incomplete, reason, hint).into());
        }
        Ok(plan)
    }

    /// Downloads what the cache lacks of a plan, and makes it a snapshot.
    ///
    /// # Errors
    /// As [`Download::run`]'s, and if there is too little room on the disk.
    pub fn fetch(&self, plan: &Plan, progress: &mut dyn DownloadProgress) -> Result<()> {
        let mut wanted = Vec::new();
        for path in plan.files.iter().filter(|path| !self.is_here(path)) {
            wanted.push(self.remote_file(path, progress)?);
        }
        self.fetch_files(&wanted, progress)?;
        for path in &plan.absent {
            self.cache.mark_absent(self.commit(), path);
        }
        Ok(())
    }

    /// Downloads files that the snapshot lacks, and links them.
    ///
    /// # Errors
    /// As [`Remote::fetch`]'s.
    pub fn fetch_files(&self, wanted: &[RemoteFile], progress: &mut dyn DownloadProgress) -> Result<()> {
        let new: Vec<&RemoteFile> = wanted.iter().filter(|file| !self.has_content(file)).collect();
        let size = |file: &RemoteFile| file.metadata.size.unwrap_or(0);
        if !new.is_empty() {
            self.check_space(&new)?;
            let bytes = new.iter().map(|file| size(file)).fold(0, u64::saturating_add);
            progress.begin(&self.name.to_string(), new.len(), bytes);
        }
        // A run may do without the response of the hub, but not without a download that has begun.
        let retry = RetryPolicy::persistent();
        let mut offset = 0_u64;
        for file in new {
            self.download(file, offset, &retry, progress)?;
            offset = offset.saturating_add(size(file));
        }
        progress.end();
        // A snapshot gets whole files only, and a branch moves when all of its new commit's are there.
        for file in wanted {
            self.link(file)?;
        }
        if self.name.revision == self.commit() {
            return Ok(());
        }
        match self.cache.set_commit(self.commit()) {
            // All files are in a cache that is read-only.
            Err(error) if wanted.is_empty() => {
                log::warn!("{error}; {} stays at another commit there", self.name);
                Ok(())
            }
            set => set,
        }
    }

    fn resource<'a>(&'a self, path: &'a str) -> Resource<'a> {
        Resource { revision: self.commit(), path: Some(path), ..Resource::of(&self.name) }
    }

    fn remote_file<'a>(&self, path: &'a str, progress: &mut dyn DownloadProgress) -> Result<RemoteFile<'a>> {
        let mut metadata = self.retry.run(progress, || self.client.metadata(&self.resource(path)))?;
        // Not every server sends a length.
        metadata.size = metadata.size.or(self.listed_size(path));
        Ok(RemoteFile { path, metadata })
    }

    /// Whether the snapshot has the file, in the size that is listed.
    pub fn is_here(&self, path: &str) -> bool {
        let len = || fs::metadata(self.folder().join(path)).map(|metadata| metadata.len()).ok();
        !self.force && self.snapshot.has(path) && self.listed_size(path).is_none_or(|size| Some(size) == len())
    }

    /// Whether the cache has the file's content, for a forced download with the right hash.
    fn has_content(&self, RemoteFile { metadata, .. }: &RemoteFile) -> bool {
        let has_hash = || {
            let file = File::open(self.cache.blob(&metadata.etag));
            etag::is_hash(&metadata.etag) && file.and_then(|file| etag::matches(&metadata.etag, &file)).unwrap_or(false)
        };
        has_blob(&self.cache, metadata) && (!self.force || has_hash())
    }

    fn download(
        &self,
        file: &RemoteFile,
        offset: u64,
        retry: &RetryPolicy,
        progress: &mut dyn DownloadProgress,
    ) -> Result<()> {
        let Self { client, cache, force: replaces, .. } = self;
        let RemoteFile { path, metadata } = file;
        let file = self.resource(path);
        Download { client, retry, cache, file, metadata, offset, replaces: *replaces }.run(progress)
    }

    fn link(&self, file: &RemoteFile) -> Result<()> {
        self.cache.link(self.commit(), file.path, &file.metadata.etag)
    }

    /// Downloads a file that the plan depends on.
    fn fetch_small(&self, path: &str, progress: &mut dyn DownloadProgress) -> Result<()> {
        if self.is_here(path) {
            return Ok(());
        }
        let file = self.remote_file(path, progress)?;
        if !self.has_content(&file) {
            self.download(&file, 0, &self.retry, &mut Notes(progress))?;
        }
        self.link(&file)
    }

    /// Refuses a download that does not fit on the disk.
    fn check_space(&self, new: &[&RemoteFile]) -> Result<()> {
        let needed = new.iter().map(|file| remaining(&self.cache, &file.metadata)).fold(0, u64::saturating_add);
        match free_bytes(&self.cache.folder()) {
            Some(free) if free < needed => Err(self.cache.disk_full(Some(needed - free), None)),
            _ => Ok(()),
        }
    }
}

/// Passes on notes alone: positions mean nothing before the size of the download is known.
struct Notes<'a>(&'a mut dyn DownloadProgress);

impl DownloadProgress for Notes<'_> {
    fn note(&mut self, message: &str) {
        self.0.note(message);
    }
}

/// A commit whose indices are downloaded when they are read.
struct RemoteTree<'a> {
    remote: &'a Remote,
    progress: &'a mut dyn DownloadProgress,
}

impl Tree for RemoteTree<'_> {
    fn presence(&self, path: &str) -> Presence {
        if self.remote.listing.files.contains_key(path) { Presence::Yes } else { Presence::No }
    }

    fn may_have_folder(&self, name: &str) -> bool {
        let prefix = format!("{name}/");
        let mut from = self.remote.listing.files.range(prefix.clone()..);
        from.next().is_some_and(|(path, _)| path.starts_with(&prefix))
    }

    fn read_text(&mut self, path: &str) -> Result<String> {
        self.remote.fetch_small(path, self.progress)?;
        self.remote.snapshot.clone().read_text(path)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn title(&self) -> String {
        self.remote.name.to_string()
    }
}
