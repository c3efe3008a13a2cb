//! A model from the hub, or from the cache if all that is needed is there.

use super::cache::{self, RepositoryCache, Snapshot};
use super::client::Client;
use super::download::Watcher;
use super::failure::Failure;
use super::name::{HubName, ModelName};
use super::patience::Patience;
use super::plan::{Needs, Plan, Wish};
use super::presets;
use super::remote::{Found, Remote, RemoteTree};
use super::settings::{Connection, HubOptions};
use crate::bad_input;
use crate::error::with_advice;
use crate::files::Folder;
use crate::pipeline::builtin::EMOJI_MODEL;
use crate::pipeline::layout::{IMAGE_ENCODER, ModelFile, ZERO_IMAGE_EMBED};
use crate::weights::checkpoint::candidates::is_weights;
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
    /// What brings a broken file of it back, for a model from the hub.
    repair: Option<String>,
}

impl Model {
    /// What the cache has of a commit.
    pub(super) fn of_snapshot(snapshot: &Snapshot, plan: Plan, commit: &str) -> Self {
        let folder = Folder::from(snapshot.path());
        Self { files: files_in(&folder, plan), folder, commit: Some(commit.into()), repair: None }
    }

    /// An error of whoever reads the model; where that is a broken file in the cache, it says how to repair it.
    pub fn advise(&self, error: Error) -> Error {
        match &self.repair {
            Some(command) => with_advice(error, &self.folder.to_string(), command),
            None => error,
        }
    }
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

    /// A model's folder with all that is needed in it. The hub is asked only if something that matters is not in the
    /// cache, and then for the commit that is there; if the hub does not give it, what is in the cache has to do.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there is no such model or it may not be had; an error if it cannot be downloaded.
    pub fn open(&self, name: &ModelName, needs: Needs, watcher: &mut dyn Watcher) -> Result<Model> {
        let ModelName::Hub(name) = name else { return local(name, needs) };
        let cached = match self.cached(name, needs)? {
            Some(cached) if cached.plan.is_whole() => return Ok(self.give(cached.into_model(), name, needs)),
            cached => cached,
        };
        if self.is_offline {
            return match cached {
                Some(cached) if cached.plan.is_usable() => {
                    self.warn_of_image_encoder(&cached, name, needs);
                    Ok(self.give(cached.into_model(), name, needs))
                }
                cached => Err(self.not_in_cache(name, needs, cached)?),
            };
        }
        let commit = cached.as_ref().map_or(&name.revision, |cached| &cached.commit);
        let is_usable = cached.as_ref().is_some_and(|cached| cached.plan.is_usable());
        let patience = if is_usable { Patience::short() } else { Patience::long() };
        let found = self.find(name, commit, needs, false, patience, watcher).and_then(|found| found.bring(watcher));
        let model = match found {
            Ok(model) => model,
            Err(failure) => self.without_hub(name, needs, cached, failure, watcher)?,
        };
        Ok(self.give(model, name, needs))
    }

    /// What there is where the hub does not give what was asked for.
    fn without_hub(
        &self,
        name: &HubName,
        needs: Needs,
        cached: Option<Cached>,
        failure: Failure,
        watcher: &mut dyn Watcher,
    ) -> Result<Model> {
        let Some(cached) = cached else { return Err(failure.into_error()) };
        // A commit that a branch led to once may be gone.
        let is_gone = failure.is_no_revision() && cached.commit != name.revision;
        match cached.plan.is_usable() {
            true if failure.leaves_cache() || is_gone => {
                log::warn!("{}; using what is in the cache (commit {})", failure.line(), cached.commit);
                self.warn_of_image_encoder(&cached, name, needs);
                Ok(cached.into_model())
            }
            false if is_gone => self.fetch(name, needs, false, watcher).map_err(Failure::into_error),
            _ => Err(failure.into_error()),
        }
    }

    /// Brings a model into the cache as the hub has it now. With `force`, what is here already is checked by its hashes and
    /// downloaded again where it differs.
    ///
    /// # Errors
    /// As [`Hub::open`], and [`crate::bad_input::BadInput`] where the network must not be touched and something is missing.
    pub fn download(&self, name: &ModelName, needs: Needs, force: bool, watcher: &mut dyn Watcher) -> Result<Model> {
        match name {
            ModelName::Hub(_) if self.is_offline && force => {
                Err(bad_input!("--force asks the hub, and --offline or HF_HUB_OFFLINE forbids that; leave one out"))
            }
            ModelName::Hub(hub_name) if !self.is_offline => {
                self.fetch(hub_name, needs, force, watcher).map_err(Failure::into_error)
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
        let cached = self.cached(hub_name, needs)?;
        let commit = match cached {
            Some(cached) if cached.plan.is_whole() || self.is_offline && cached.plan.is_usable() => {
                return Ok(self.give(cached.into_model(), hub_name, needs));
            }
            cached => cached.map(|cached| cached.commit),
        };
        let small = Needs { weights: false, ..needs };
        if self.is_offline {
            return self.open(name, small, watcher);
        }
        let commit = commit.as_ref().unwrap_or(&hub_name.revision);
        let found = self.find(hub_name, commit, needs, false, Patience::long(), watcher).and_then(|mut found| {
            let mut files: Vec<ModelFile> = found.plan.files.iter().map(|path| found.remote.model_file(path)).collect();
            found.plan.files.retain(|path| !is_weights(path));
            let model = found.bring(watcher)?;
            for file in &mut files {
                file.is_here = model.folder.has_path(&file.path);
            }
            Ok(Model { files, ..model })
        });
        let model = match found {
            Ok(model) => model,
            Err(failure) => self.without_hub(hub_name, small, self.cached(hub_name, small)?, failure, watcher)?,
        };
        Ok(self.give(model, hub_name, needs))
    }

    /// The part of a model that is in the cache, if any is.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it is broken or not supported.
    pub fn cached_model(&self, name: &HubName, needs: Needs) -> Result<Option<(Model, bool)>> {
        Ok(self.cached(name, needs)?.filter(|cached| !cached.plan.files.is_empty()).map(|cached| {
            let is_usable = cached.plan.is_usable();
            (cached.into_model(), is_usable)
        }))
    }

    /// The repositories in the cache.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there is no folder that could be the cache.
    pub fn cached_repositories(&self) -> Result<Vec<String>> {
        Ok(cache::repositories(&self.options.cache_dir()?))
    }

    fn cached(&self, name: &HubName, needs: Needs) -> Result<Option<Cached>> {
        let cache = RepositoryCache::new(&self.options.cache_dir()?, name);
        let Some(commit) = cache.commit() else { return Ok(None) };
        let mut snapshot = cache.snapshot(&commit);
        let folder = snapshot.path().display().to_string();
        let plan = Plan::new(&mut snapshot, needs);
        let plan = plan.map_err(|error| with_advice(error, &folder, &self.command(name, needs, "--force")))?;
        Ok(Some(Cached { snapshot, plan, commit }))
    }

    /// A model that is handed out, with the way to repair it.
    fn give(&self, model: Model, name: &HubName, needs: Needs) -> Model {
        Model { repair: Some(self.command(name, needs, "--force")), ..model }
    }

    /// What to run to download a model for such a run.
    fn command(&self, name: &HubName, needs: Needs, more: &str) -> String {
        let mut command = format!("run `prior-embed download {name}");
        let options = [(needs.image_encoder == Wish::Needed, "--image-encoder"), (needs.sixteen_bit, "--dtype bf16")];
        for (_, option) in options.into_iter().filter(|(is_needed, _)| *is_needed) {
            command += &format!(" {option}");
        }
        if let Some(folder) = &self.options.cache_dir {
            command += &format!(" --cache-dir {folder:?}");
        }
        if !more.is_empty() {
            command += &format!(" {more}");
        }
        command + "`"
    }

    fn not_in_cache(&self, name: &HubName, needs: Needs, cached: Option<Cached>) -> Result<Error> {
        let missing = cached.map(|cached| cached.plan.missing.join(", ")).filter(|missing| !missing.is_empty());
        let what = missing.map_or_else(|| format!("{name} is not in"), |files| format!("{files} of {name} is not in"));
        let (folder, command) = (self.options.cache_dir()?, self.command(name, needs, ""));
        Ok(bad_input!(
            "{what} the cache in {folder:?}, and --offline or HF_HUB_OFFLINE forbids to download it; {command} where there is a network"
        ))
    }

    /// Tells that a run goes without what would have been welcome.
    fn warn_of_image_encoder(&self, cached: &Cached, name: &HubName, needs: Needs) {
        let is_of_encoder = |path: &String| {
            IMAGE_ENCODER.names.iter().any(|name| path.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')))
        };
        let lacks = cached.plan.unknown.iter().any(is_of_encoder) && !cached.snapshot.has(ZERO_IMAGE_EMBED);
        if needs.image_encoder == Wish::Welcome && lacks {
            let needs = Needs { image_encoder: Wish::Needed, ..needs };
            let command = self.command(name, needs, "");
            log::warn!(
                "the image encoder of {name} is not in the cache: no negative embeddings without a negative prompt; {command} for it"
            );
        }
    }

    fn fetch(&self, name: &HubName, needs: Needs, force: bool, watcher: &mut dyn Watcher) -> Result<Model, Failure> {
        self.find(name, &name.revision, needs, force, Patience::long(), watcher)?.bring(watcher)
    }

    /// Asks the hub what has to be downloaded. `patience` is for asking alone.
    fn find(
        &self,
        name: &HubName,
        revision: &str,
        needs: Needs,
        force: bool,
        patience: Patience,
        watcher: &mut dyn Watcher,
    ) -> Result<Found, Failure> {
        let client = Connection::from_environment().and_then(Client::new).map_err(Failure::lasting)?;
        let listing = patience.retry(watcher, || client.listing(&name.repository, revision))?;
        let cache = RepositoryCache::new(&self.options.cache_dir()?, name);
        let snapshot = cache.snapshot(&listing.commit);
        let remote = Remote { client, patience, cache, snapshot, listing, name: name.clone(), force };
        let mut tree = RemoteTree { remote, watcher, failure: None };
        let plan = Plan::new(&mut tree, needs);
        let RemoteTree { remote, failure, .. } = tree;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let plan = plan?;
        if !plan.is_usable() {
            let missing = plan.missing.join(", ");
            return Err(Failure::own(bad_input!(
                "{name} has no prior that can be used: it lacks {missing}; {} are models that have one",
                presets::names()
            )));
        }
        Ok(Found { remote, plan })
    }
}

/// What the cache has of a model.
struct Cached {
    snapshot: Snapshot,
    plan: Plan,
    commit: String,
}

impl Cached {
    fn into_model(self) -> Model {
        Model::of_snapshot(&self.snapshot, self.plan, &self.commit)
    }
}

/// A model that is inside the program or in a folder of the user's. What it lacks, loading it will say.
fn local(name: &ModelName, needs: Needs) -> Result<Model> {
    let mut folder = match name {
        ModelName::Folder(path) => Folder::from(path),
        _ => Folder::builtin(&EMOJI_MODEL),
    };
    // For the user's own folder, loading has the better messages.
    let plan = Plan::new(&mut folder, needs).unwrap_or_default();
    Ok(Model { files: files_in(&folder, plan), folder, commit: None, repair: None })
}

fn files_in(folder: &Folder, plan: Plan) -> Vec<ModelFile> {
    let file = |path: String| {
        let bytes = folder.file_len(&path);
        ModelFile { path, bytes, is_here: true }
    };
    plan.files.into_iter().map(file).collect()
}
