//! A model from the hub, or from the cache if all that is needed is there.

use super::cache::{self, RepositoryCache, Snapshot};
use super::candidates::is_weights;
use super::client::{Client, Listing};
use super::download::{Download, RemoteFile, Watcher, disk_full, left_over, with_retries};
use super::failure::Failure;
use super::name::{HubName, ModelName};
use super::plan::{Needs, Plan, Presence, Tree};
use super::settings::{Connection, HubOptions, free_bytes};
use super::{builtin, presets};
use crate::bad_input;
use crate::files::Folder;
use anyhow::{Error, Result};

/// A model that is here, as far as it is needed.
#[derive(Debug)]
pub struct Model {
    /// Its folder.
    pub folder: Folder,
    /// The commit, for a model from the hub.
    pub commit: Option<String>,
    /// The files that a run needs, whether they are here or not.
    pub files: Vec<ModelFile>,
}

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Its place in the model's folder.
    pub path: String,
    /// Its size in bytes, if anyone knows.
    pub bytes: Option<u64>,
    /// Whether it is on this machine.
    pub is_here: bool,
}

/// The hub and the cache, as the user and the environment have them.
#[derive(Debug)]
pub struct Hub {
    options: HubOptions,
    is_offline: bool,
}

impl Hub {
    /// Touches neither the cache nor the network.
    pub fn new(options: HubOptions) -> Self {
        let is_offline = options.is_offline();
        Self { options, is_offline }
    }

    /// A model's folder with all that is needed in it. The hub is asked only if something is not in the cache; if it
    /// cannot be reached then, what is in the cache has to do.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there is no such model or it may not be had; an error if it cannot be downloaded.
    pub fn open(&self, name: &ModelName, needs: Needs, watcher: &mut dyn Watcher) -> Result<Model> {
        let name = match name {
            ModelName::Hub(name) => name,
            _ => return local(name, needs),
        };
        let cached = self.cached(name, needs)?;
        match cached {
            Some(Cached { snapshot, plan, commit }) if plan.is_whole() => Ok(from_cache(&snapshot, plan, commit)),
            cached if self.is_offline => match cached {
                Some(Cached { snapshot, plan, commit }) if plan.is_usable() => Ok(from_cache(&snapshot, plan, commit)),
                cached => Err(self.not_in_cache(name, cached)?),
            },
            cached => match (self.fetch(name, needs, watcher), cached) {
                (Ok(model), _) => Ok(model),
                (Err(failure), Some(Cached { snapshot, plan, commit })) if failure.is_passing() && plan.is_usable() => {
                    log::warn!("{}; using what is in the cache (commit {commit})", failure.line());
                    Ok(from_cache(&snapshot, plan, commit))
                }
                (Err(failure), _) => Err(failure.into_error()),
            },
        }
    }

    /// Brings a model into the cache as the hub has it now.
    ///
    /// # Errors
    /// As [`Hub::open`], and [`crate::error::BadInput`] where the network must not be touched and something is missing.
    pub fn download(&self, name: &ModelName, needs: Needs, watcher: &mut dyn Watcher) -> Result<Model> {
        match name {
            ModelName::Hub(hub_name) if !self.is_offline => {
                self.fetch(hub_name, needs, watcher).map_err(Failure::into_error)
            }
            _ => self.open(name, needs, watcher),
        }
    }

    /// What a model's files are without its weights: those are not downloaded, only looked up.
    ///
    /// # Errors
    /// As [`Hub::open`].
    pub fn describe(&self, name: &ModelName, needs: Needs, watcher: &mut dyn Watcher) -> Result<Model> {
        let ModelName::Hub(hub_name) = name else { return local(name, needs) };
        if let Some(Cached { snapshot, plan, commit }) = self.cached(hub_name, needs)?
            && (plan.is_whole() || self.is_offline && plan.is_usable())
        {
            return Ok(from_cache(&snapshot, plan, commit));
        }
        let small = Needs { weights: false, ..needs };
        if self.is_offline {
            return self.open(name, small, watcher);
        }
        let found = self.find(hub_name, needs, watcher).and_then(|mut found| {
            let mut files: Vec<ModelFile> = found.plan.files.iter().map(|path| found.tree.model_file(path)).collect();
            found.plan.files.retain(|path| !is_weights(path));
            let model = found.bring(watcher)?;
            for file in &mut files {
                file.is_here = model.folder.has_path(&file.path);
            }
            Ok(Model { files, ..model })
        });
        match found {
            Err(failure) if failure.is_passing() => self.open(name, small, watcher),
            found => found.map_err(Failure::into_error),
        }
    }

    /// The part of a model that is in the cache, if any is.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if it is broken or not supported.
    pub fn cached_model(&self, name: &HubName, needs: Needs) -> Result<Option<(Model, bool)>> {
        Ok(self.cached(name, needs)?.filter(|cached| !cached.plan.files.is_empty()).map(|cached| {
            let is_usable = cached.plan.is_usable();
            (from_cache(&cached.snapshot, cached.plan, cached.commit), is_usable)
        }))
    }

    /// The repositories in the cache.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there is no folder that could be the cache.
    pub fn cached_repositories(&self) -> Result<Vec<String>> {
        Ok(cache::repositories(&self.options.cache_dir()?))
    }

    fn cached(&self, name: &HubName, needs: Needs) -> Result<Option<Cached>> {
        let cache = RepositoryCache::new(&self.options.cache_dir()?, name);
        let Some(commit) = cache.commit() else { return Ok(None) };
        let mut snapshot = cache.snapshot(&commit);
        let plan = Plan::new(&mut snapshot, needs)?;
        Ok(Some(Cached { snapshot, plan, commit }))
    }

    fn not_in_cache(&self, name: &HubName, cached: Option<Cached>) -> Result<Error> {
        let missing = cached.map(|cached| cached.plan.missing.join(", ")).filter(|missing| !missing.is_empty());
        let what = missing.map_or_else(|| format!("{name} is not in"), |files| format!("{files} of {name} is not in"));
        let folder = self.options.cache_dir()?;
        Ok(bad_input!(
            "{what} the cache in {folder:?}, and --offline or HF_HUB_OFFLINE forbids to download it; run `prior-embed download {name}` where there is a network"
        ))
    }

    fn fetch(&self, name: &HubName, needs: Needs, watcher: &mut dyn Watcher) -> Result<Model, Failure> {
        self.find(name, needs, watcher)?.bring(watcher)
    }

    /// Asks the hub what has to be downloaded.
    fn find(&self, name: &HubName, needs: Needs, watcher: &mut dyn Watcher) -> Result<Found, Failure> {
        let client = Client::new(Connection::from_environment()?)?;
        let listing = with_retries(watcher, || client.listing(&name.repository, &name.revision))?;
        let cache = RepositoryCache::new(&self.options.cache_dir()?, name);
        let snapshot = cache.snapshot(&listing.commit);
        let mut tree = Remote { client, cache, snapshot, listing, name: name.clone(), failure: None };
        let plan = Plan::new(&mut tree, needs);
        if let Some(failure) = tree.failure.take() {
            return Err(failure);
        }
        let plan = plan?;
        if !plan.is_usable() {
            let missing = plan.missing.join(", ");
            return Err(Failure::lasting(bad_input!(
                "{name} has no prior that can be used: it lacks {missing}; {} are models that have one",
                presets::names()
            )));
        }
        Ok(Found { tree, plan })
    }
}

/// What the cache has of a model.
struct Cached {
    snapshot: Snapshot,
    plan: Plan,
    commit: String,
}

fn from_cache(snapshot: &Snapshot, plan: Plan, commit: String) -> Model {
    let folder = Folder::from(snapshot.path());
    Model { files: files_in(&folder, plan), folder, commit: Some(commit) }
}

/// A model that is inside the program or in a folder of the user's. What it lacks, loading it will say.
fn local(name: &ModelName, needs: Needs) -> Result<Model> {
    let mut folder = match name {
        ModelName::Folder(path) => Folder::from(path),
        _ => Folder::builtin(&builtin::EMOJI_MODEL),
    };
    // For the user's own folder, loading has the better messages.
    let plan = Plan::new(&mut folder, needs).unwrap_or_default();
    Ok(Model { files: files_in(&folder, plan), folder, commit: None })
}

fn files_in(folder: &Folder, plan: Plan) -> Vec<ModelFile> {
    let file = |path: String| {
        let bytes = folder.file_len(&path);
        ModelFile { path, bytes, is_here: true }
    };
    plan.files.into_iter().map(file).collect()
}

/// A model on the hub, and what to bring of it.
struct Found {
    tree: Remote,
    plan: Plan,
}

impl Found {
    /// Downloads what is not here and makes it a snapshot.
    fn bring(self, watcher: &mut dyn Watcher) -> Result<Model, Failure> {
        let Self { tree, plan } = self;
        let Remote { client, cache, snapshot, listing, name, .. } = &tree;
        let commit = &listing.commit;
        let mut wanted = Vec::new();
        for path in plan.files.iter().filter(|path| !snapshot.has(path)) {
            wanted.push(tree.remote_file(path, watcher)?);
        }
        let is_new = |file: &&RemoteFile| !cache.blob(&file.metadata.etag).is_file();
        let new: Vec<&RemoteFile> = wanted.iter().filter(is_new).collect();
        let size = |file: &RemoteFile| file.metadata.size.unwrap_or(0);
        if !new.is_empty() {
            check_space(cache, &new)?;
            watcher.begin(&name.to_string(), new.len(), new.iter().map(|file| size(file)).sum());
        }
        let mut before = 0;
        for file in new {
            let repository = &name.repository;
            Download { client, cache, repository, commit, file, before }.run(watcher)?;
            before += size(file);
        }
        watcher.end();
        // A snapshot grows only by what is whole, and a branch moves only when its new commit is.
        for file in &wanted {
            cache.link(commit, &file.path, &file.metadata.etag)?;
        }
        for path in &plan.absent {
            cache.mark_absent(commit, path);
        }
        if name.revision != *commit {
            cache.set_commit(commit)?;
        }
        let (snapshot, commit) = (snapshot.clone(), commit.clone());
        Ok(from_cache(&snapshot, plan, commit))
    }
}

/// Refuses a download that does not fit, before it begins.
fn check_space(cache: &RepositoryCache, new: &[&RemoteFile]) -> Result<(), Failure> {
    let to_come = |file: &&RemoteFile| {
        let size = file.metadata.size.unwrap_or(0);
        size.saturating_sub(left_over(cache, &file.metadata))
    };
    let needed: u64 = new.iter().map(to_come).sum();
    match free_bytes(&cache.folder()) {
        Some(free) if free < needed => {
            Err(Failure::lasting(anyhow::anyhow!("{}", disk_full(cache, Some(needed - free)))))
        }
        _ => Ok(()),
    }
}

/// A commit on the hub. Indices are downloaded when they are read.
struct Remote {
    client: Client,
    cache: RepositoryCache,
    snapshot: Snapshot,
    listing: Listing,
    name: HubName,
    /// Why something could not be read, with what a plain error does not tell.
    failure: Option<Failure>,
}

impl Remote {
    fn remote_file(&self, path: &str, watcher: &mut dyn Watcher) -> Result<RemoteFile, Failure> {
        let (repository, commit) = (&self.name.repository, &self.listing.commit);
        let metadata = with_retries(watcher, || self.client.metadata(repository, commit, path))?;
        Ok(RemoteFile { path: path.into(), metadata })
    }

    fn model_file(&self, path: &str) -> ModelFile {
        let bytes = self.listing.files.get(path).copied().flatten();
        ModelFile { path: path.into(), bytes, is_here: false }
    }

    fn bring_small_file(&self, path: &str) -> Result<(), Failure> {
        if self.snapshot.has(path) {
            return Ok(());
        }
        let file = &self.remote_file(path, &mut ())?;
        let Self { client, cache, listing: Listing { commit, .. }, name, .. } = self;
        Download { client, cache, repository: &name.repository, commit, file, before: 0 }.run(&mut ())?;
        Ok(cache.link(commit, path, &file.metadata.etag)?)
    }
}

impl Tree for Remote {
    fn presence(&self, path: &str) -> Presence {
        if self.listing.files.contains_key(path) { Presence::Yes } else { Presence::No }
    }

    fn may_have_folder(&self, name: &str) -> bool {
        let prefix = format!("{name}/");
        let mut from = self.listing.files.range(prefix.clone()..);
        from.next().is_some_and(|(path, _)| path.starts_with(&prefix))
    }

    fn read_text(&mut self, path: &str) -> Result<String> {
        if let Err(failure) = self.bring_small_file(path) {
            let error = anyhow::anyhow!("{}", failure.line());
            self.failure = Some(failure);
            return Err(error);
        }
        self.snapshot.read_text(path)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn title(&self) -> String {
        self.name.to_string()
    }
}
