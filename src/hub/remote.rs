//! A commit on the hub, and the way of its files into the cache.

use super::cache::{RepositoryCache, Snapshot};
use super::client::{Client, FileMetadata, Listing};
use super::digest::Digest;
use super::download::{Download, RemoteFile, Watcher, disk_full, left_over};
use super::failure::Failure;
use super::fetch::Model;
use super::name::HubName;
use super::patience::Patience;
use super::plan::{Plan, Presence, Tree};
use super::settings::free_bytes;
use crate::pipeline::layout::ModelFile;
use anyhow::Result;
use std::fs::{self, File};

/// A commit on the hub.
pub(super) struct Remote {
    pub(super) client: Client,
    /// How long to ask what there is.
    pub(super) patience: Patience,
    pub(super) cache: RepositoryCache,
    pub(super) snapshot: Snapshot,
    pub(super) listing: Listing,
    pub(super) name: HubName,
    /// Whether what is here already is not trusted.
    pub(super) force: bool,
}

impl Remote {
    fn remote_file(&self, path: &str, watcher: &mut dyn Watcher) -> Result<RemoteFile, Failure> {
        let (repository, commit) = (&self.name.repository, &self.listing.commit);
        let mut metadata = self.patience.retry(watcher, || self.client.metadata(repository, commit, path))?;
        // Not every server says how long an answer is.
        metadata.size = metadata.size.or(self.listed_size(path));
        Ok(RemoteFile { path: path.into(), metadata })
    }

    /// What the listing says of a file that may or may not be here.
    pub(super) fn model_file(&self, path: &str) -> ModelFile {
        ModelFile { path: path.into(), bytes: self.listed_size(path), is_here: false }
    }

    fn listed_size(&self, path: &str) -> Option<u64> {
        self.listing.files.get(path).copied().flatten()
    }

    /// Whether the snapshot has the file in the size that the hub gives it, and that is enough.
    fn is_here(&self, path: &str) -> bool {
        let len = || fs::metadata(self.snapshot.path().join(path)).map(|metadata| metadata.len()).ok();
        !self.force && self.snapshot.has(path) && self.listed_size(path).is_none_or(|size| Some(size) == len())
    }

    /// Whether the cache has the file's content; where that is not trusted, its hash decides.
    fn has_content(&self, file: &RemoteFile) -> bool {
        let FileMetadata { etag, size } = &file.metadata;
        let blob = self.cache.blob(etag);
        let Ok(metadata) = fs::metadata(&blob) else { return false };
        let has_size = metadata.is_file() && size.is_none_or(|size| size == metadata.len());
        has_size && (!self.force || is_content(&blob, etag, metadata.len()))
    }

    fn download<'a>(&'a self, file: &'a RemoteFile, before: u64, patience: &'a Patience) -> Download<'a> {
        let Self { client, cache, listing: Listing { commit, .. }, name, .. } = self;
        Download { client, patience, cache, repository: &name.repository, commit, file, before, replaces: self.force }
    }

    fn bring_small_file(&self, path: &str, watcher: &mut dyn Watcher) -> Result<(), Failure> {
        if self.is_here(path) {
            return Ok(());
        }
        let file = self.remote_file(path, watcher)?;
        if !self.has_content(&file) {
            self.download(&file, 0, &self.patience).run(watcher)?;
        }
        self.link(&file)
    }

    fn link(&self, file: &RemoteFile) -> Result<(), Failure> {
        let linked = self.cache.link(&self.listing.commit, &file.path, &file.metadata.etag);
        linked.map_err(Failure::unwritable)
    }
}

/// Of what is downloaded before it is known how much there is to come, only what the user may wonder about.
struct Notes<'a>(&'a mut dyn Watcher);

impl Watcher for Notes<'_> {
    fn note(&mut self, line: &str) {
        self.0.note(line);
    }
}

/// A commit on the hub, whose indices are downloaded when they are read.
pub(super) struct RemoteTree<'a> {
    pub(super) remote: Remote,
    pub(super) watcher: &'a mut dyn Watcher,
    /// Why something could not be read, with what a plain error does not tell.
    pub(super) failure: Option<Failure>,
}

/// Whether a file in the cache holds what its name says. What no hash is the name of nobody can tell.
fn is_content(blob: &std::path::Path, etag: &str, len: u64) -> bool {
    let mut digest = Digest::new(etag, Some(len));
    let is_read = File::open(blob).is_ok_and(|file| digest.update_from(file).is_ok());
    digest.is_hash() && is_read && digest.matches(etag)
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
        if let Err(failure) = self.remote.bring_small_file(path, &mut Notes(self.watcher)) {
            let error = anyhow::anyhow!("{}", failure.line());
            self.failure = Some(failure);
            return Err(error);
        }
        self.remote.snapshot.read_text(path)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn title(&self) -> String {
        self.remote.name.to_string()
    }
}

/// A model on the hub, and what to bring of it.
pub(super) struct Found {
    pub(super) remote: Remote,
    pub(super) plan: Plan,
}

impl Found {
    /// Downloads what is not here and makes it a snapshot.
    pub(super) fn bring(self, watcher: &mut dyn Watcher) -> Result<Model, Failure> {
        let Self { remote, plan } = self;
        let Remote { cache, listing, name, .. } = &remote;
        let commit = &listing.commit;
        let mut wanted = Vec::new();
        for path in plan.files.iter().filter(|path| !remote.is_here(path)) {
            wanted.push(remote.remote_file(path, watcher)?);
        }
        let new: Vec<&RemoteFile> = wanted.iter().filter(|file| !remote.has_content(file)).collect();
        let size = |file: &RemoteFile| file.metadata.size.unwrap_or(0);
        if !new.is_empty() {
            check_space(cache, &new)?;
            let bytes = new.iter().map(|file| size(file)).fold(0, u64::saturating_add);
            watcher.begin(&name.to_string(), new.len(), bytes);
        }
        // What is begun is worth it.
        let long = Patience::long();
        let patience = if remote.patience.is_long() { &remote.patience } else { &long };
        let mut before = 0_u64;
        for file in new {
            remote.download(file, before, patience).run(watcher)?;
            before = before.saturating_add(size(file));
        }
        watcher.end();
        // A snapshot grows only by what is whole, and a branch moves only when its new commit is.
        for file in &wanted {
            remote.link(file)?;
        }
        for path in &plan.absent {
            cache.mark_absent(commit, path);
        }
        if name.revision != *commit {
            match cache.set_commit(commit) {
                // All of it was here, in a cache that is not ours to write to.
                Err(error) if wanted.is_empty() => log::warn!("{error}; {name} stays at another commit there"),
                set => set.map_err(Failure::unwritable)?,
            }
        }
        Ok(Model::of_snapshot(&remote.snapshot, plan, commit))
    }
}

/// Refuses a download that does not fit, before it begins.
fn check_space(cache: &RepositoryCache, new: &[&RemoteFile]) -> Result<(), Failure> {
    let to_come = |file: &&RemoteFile| {
        let size = file.metadata.size.unwrap_or(0);
        size.saturating_sub(left_over(cache, &file.metadata))
    };
    let needed = new.iter().map(to_come).fold(0, u64::saturating_add);
    match free_bytes(&cache.folder()) {
        Some(free) if free < needed => {
            Err(Failure::unwritable(anyhow::Error::msg(disk_full(cache, Some(needed - free)))))
        }
        _ => Ok(()),
    }
}
