//! Finds models and the components from elsewhere: name, plan, download, folder.

use super::cache::{self, RepositoryCache, Snapshot};
use super::failure::{Resource, kind_of};
use super::model::{Model, ReplacedComponent, advise};
use super::name::{HubName, ModelName};
use super::plan::{Needs, Plan, Scope, Wish};
use super::progress::DownloadProgress;
use super::remote::Remote;
use super::retry::RetryPolicy;
use super::settings::HubOptions;
use super::source::{ComponentName, ModelSource};
use crate::error::{Component, DownloadCommand, Error, Hint, HubErrorKind, Result};
use crate::files::Folder;
use crate::pipeline::component::component_at;
use crate::pipeline::layout::{CONFIG, IMAGE_ENCODER, ModelFile, Part, ZERO_IMAGE_EMBED};
use crate::weights::checkpoint::candidates::is_weights;

/// The hub and its cache.
#[derive(Debug)]
pub struct Hub {
    pub(super) options: HubOptions,
    pub(super) is_offline: bool,
}

impl Hub {
    /// Touches neither the cache nor the network.
    pub fn new(options: HubOptions) -> Self {
        let is_offline = options.is_offline();
        Self { options, is_offline }
    }

    /// A model with all that a run needs. The hub is asked only if the cache lacks something that matters, and then for the
    /// cached commit; if the hub does not give it, a usable model in the cache will do.
    ///
    /// # Errors
    /// [`Error::Hub`] if there is no such model, or it cannot be downloaded; other errors if it is not supported.
    pub fn open(&self, source: &ModelSource, needs: Needs, progress: &mut dyn DownloadProgress) -> Result<Model> {
        self.assemble(source, needs, &mut |wanted| self.resolve(wanted, needs, progress))
    }

    /// A model without its weights, which are listed in [`Model::files`] but not downloaded.
    ///
    /// # Errors
    /// As [`Hub::open`]'s.
    pub fn describe(&self, source: &ModelSource, needs: Needs, progress: &mut dyn DownloadProgress) -> Result<Model> {
        let download = Needs { weights: false, ..needs };
        self.assemble(source, needs, &mut |wanted| self.resolve(wanted, download, progress))
    }

    /// Downloads a model at its newest commit. With `force`, cached files are compared by their hashes, and downloaded again
    /// where they differ.
    ///
    /// # Errors
    /// As [`Hub::open`]'s, and if `force` is to work offline.
    pub fn download(
        &self,
        source: &ModelSource,
        needs: Needs,
        force: bool,
        progress: &mut dyn DownloadProgress,
    ) -> Result<Model> {
        if !self.is_offline || !source.is_on_hub() {
            return self.assemble(source, needs, &mut |wanted| {
                let request = Request { revision: &wanted.name.revision, download: needs, force };
                self.fetch(wanted, request, RetryPolicy::persistent(), progress)
            });
        }
        if force {
            let reason = "it asks the hub, and --offline or HF_HUB_OFFLINE forbids that; leave one out";
            return Err(Error::Option { option: "force", reason: reason.into() });
        }
        self.open(source, needs, progress)
    }

    /// What the cache has of a model, if anything, and whether a run can do with it.
    ///
    /// # Errors
    /// If it is broken or not supported.
    pub fn cached_model(&self, source: &ModelSource, needs: Needs) -> Result<Option<(Found, bool)>> {
        let replaced: Vec<Component> = source.components.keys().copied().collect();
        let (mut model, mut is_usable): (Option<Found>, _) = (None, true);
        for wanted in Wanted::all(source, &replaced, needs) {
            let cached = self.cached(wanted, needs)?.filter(|cached| !cached.plan.files.is_empty());
            is_usable &= cached.as_ref().is_some_and(|cached| cached.plan.is_usable());
            let Some(found) = cached.map(|cached| found(&cached)) else { continue };
            match &mut model {
                Some(model) => model.files.extend(found.files),
                None => model = Some(found),
            }
        }
        Ok(model.map(|model| (model, is_usable)))
    }

    /// The repositories in the cache.
    ///
    /// # Errors
    /// [`HubErrorKind::Environment`] if there is no home folder.
    pub fn cached_repositories(&self) -> Result<Vec<String>> {
        Ok(cache::repositories(&self.options.cache_dir()?))
    }

    /// Puts a model together. `get` finds a repository on the hub.
    fn assemble(
        &self,
        source: &ModelSource,
        needs: Needs,
        get: &mut dyn FnMut(Wanted) -> Result<Found>,
    ) -> Result<Model> {
        let replaced: Vec<Component> = source.components.keys().copied().collect();
        let scope = Scope::Model { replaced: &replaced };
        let base = match &source.model {
            ModelName::Hub(name) => get(Wanted { source, name, scope, needs })?,
            ModelName::Folder(path) => local(Folder::from(path), scope, needs),
            ModelName::Builtin(model) => local(Folder::builtin(model), scope, needs),
        };
        let is_cached = |name: &ComponentName| matches!(name, ComponentName::Hub { .. });
        let mut model = Model {
            snapshots: Vec::new(),
            components: Default::default(),
            repair: source.is_on_hub().then(|| self.repair(source, needs)),
            folder: base.folder.clone(),
            commit: base.commit,
            files: base.files,
        };
        if matches!(source.model, ModelName::Hub(_)) {
            model.snapshots.push(base.folder);
        }
        for (&component, name) in &source.components {
            if component == Component::ImageEncoder && needs.image_encoder == Wish::No && is_cached(name) {
                continue;
            }
            let (folder, found) = match name {
                ComponentName::Builtin(model) => {
                    let folder = Part::of(component).in_folder(&Folder::builtin(model), None)?;
                    (folder, local(Folder::builtin(model), Scope::Component { component, subfolder: None }, needs))
                }
                ComponentName::Path(path) => {
                    let folder = component_at(path, component)?;
                    let found = match folder.weights() {
                        Some(weights) => of_file(&folder, weights),
                        None => local(Folder::from(path), Scope::Component { component, subfolder: None }, needs),
                    };
                    (folder, found)
                }
                ComponentName::Hub { name, subfolder } => {
                    let scope = Scope::Component { component, subfolder: subfolder.as_deref() };
                    let found = get(Wanted { source, name, scope, needs })?;
                    model.snapshots.push(found.folder.clone());
                    (Part::of(component).in_folder(&found.folder, subfolder.as_deref())?, found)
                }
            };
            let Found { commit, files, .. } = found;
            model.files.extend(files);
            model.components.insert(component, ReplacedComponent { name: name.to_string(), folder, commit });
        }
        Ok(model)
    }

    /// What is wanted of a repository, of which `download` is to be on this machine.
    fn resolve(&self, wanted: Wanted, download: Needs, progress: &mut dyn DownloadProgress) -> Result<Found> {
        let Wanted { name, needs, .. } = wanted;
        let mut cached = self.cached(wanted, needs)?;
        if let Some(cached) = cached.as_ref().filter(|cached| cached.plan.is_whole()) {
            return Ok(found(cached));
        }
        if download != needs && !(self.is_offline && cached.as_ref().is_some_and(|cached| cached.plan.is_usable())) {
            cached = self.cached(wanted, download)?;
        }
        let usable = cached.as_ref().filter(|cached| cached.plan.is_usable());
        if self.is_offline {
            return match usable {
                Some(usable) => Ok(self.use_cached(usable, wanted)),
                None => Err(self.not_in_cache(wanted, download, cached)?),
            };
        }
        let revision = cached.as_ref().map_or(&name.revision, |cached| &cached.commit);
        let retry = if usable.is_some() { RetryPolicy::brief() } else { RetryPolicy::persistent() };
        let request = Request { revision, download, force: false };
        let error = match self.fetch(wanted, request, retry, progress) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let Some(kind) = kind_of(&error) else { return Err(error) };
        // The hub may have dropped a commit that a branch was at.
        let is_gone = kind == HubErrorKind::RevisionNotFound && *revision != name.revision;
        match (cached.as_ref(), usable) {
            (_, Some(usable)) if is_gone || leaves_cache(kind) => {
                let hint = error.hint().map_or_else(String::new, |hint| format!("; {hint}"));
                log::warn!("{error}{hint}; using what is in the cache (commit {})", usable.commit);
                Ok(self.use_cached(usable, wanted))
            }
            (Some(_), None) if is_gone => {
                let request = Request { revision: &name.revision, download, force: false };
                self.fetch(wanted, request, RetryPolicy::persistent(), progress)
            }
            _ => Err(error),
        }
    }

    /// Downloads what the cache lacks.
    fn fetch(
        &self,
        wanted: Wanted,
        request: Request,
        retry: RetryPolicy,
        progress: &mut dyn DownloadProgress,
    ) -> Result<Found> {
        let Wanted { name, scope, needs, .. } = wanted;
        let Request { revision, download, force } = request;
        let cache = RepositoryCache::new(&self.options.cache_dir()?, name);
        let remote = Remote::open(name, revision, cache, retry, force, progress)?;
        let mut plan = remote.plan(scope, needs, progress)?;
        let files = plan.files.clone();
        plan.files.retain(|path| download.weights || !is_weights(path));
        remote.fetch(&plan, progress)?;
        let folder = Folder::from(remote.folder());
        let files = files.iter().map(|path| ModelFile::new(&folder, path, remote.listed_size(path))).collect();
        Ok(Found { files, folder, commit: Some(remote.commit().into()) })
    }

    fn cached(&self, wanted: Wanted, needs: Needs) -> Result<Option<Cached>> {
        let cache = RepositoryCache::new(&self.options.cache_dir()?, wanted.name);
        let Some(commit) = cache.commit() else { return Ok(None) };
        let mut snapshot = cache.snapshot(&commit);
        let folder = Folder::from(snapshot.path());
        let plan = Plan::new(&mut snapshot, wanted.scope, needs).map_err(|mut error| {
            advise(&mut error, &folder, &self.repair(wanted.source, needs));
            error
        })?;
        Ok(Some(Cached { snapshot, plan, commit }))
    }

    /// What is usable in the cache, with a warning if it lacks an image encoder that is welcome.
    fn use_cached(&self, cached: &Cached, wanted: Wanted) -> Found {
        let Wanted { source, name, needs, .. } = wanted;
        let is_of_encoder = |path: &String| {
            IMAGE_ENCODER.names.iter().any(|name| path.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')))
        };
        let lacks = cached.plan.unknown.iter().any(is_of_encoder) && !cached.snapshot.has(ZERO_IMAGE_EMBED);
        if needs.image_encoder == Wish::Welcome && lacks {
            let command = self.command(source, Needs { image_encoder: Wish::Needed, ..needs });
            log::warn!(
                "the image encoder of {name} is not in the cache: no negative embeddings without a negative prompt; run `{command}` for it"
            );
        }
        found(cached)
    }

    fn not_in_cache(&self, wanted: Wanted, needs: Needs, cached: Option<Cached>) -> Result<Error> {
        let Wanted { source, name, .. } = wanted;
        let missing = cached.map(|cached| cached.plan.missing.join(", ")).filter(|missing| !missing.is_empty());
        let what = missing.map_or_else(|| name.to_string(), |files| format!("{files} of {name}"));
        let folder = self.options.cache_dir()?;
        let reason =
            format!("{what} is not in the cache in {folder:?}, and --offline or HF_HUB_OFFLINE forbids to download it");
        let hint = Hint::Download(Box::new(self.command(source, needs)));
        Ok(Resource::of(name).error(HubErrorKind::Offline, reason, Some(hint)).into())
    }

    /// The command that downloads a model for such a run.
    fn command(&self, source: &ModelSource, needs: Needs) -> DownloadCommand {
        let is_replaced = source.components.contains_key(&Component::ImageEncoder);
        DownloadCommand {
            model: source.model_argument(),
            components: source.component_arguments(),
            image_encoder: needs.image_encoder == Wish::Needed && !is_replaced,
            sixteen_bit: needs.sixteen_bit,
            cache_dir: self.options.cache_dir.clone(),
            force: false,
        }
    }

    /// The command that repairs a broken file.
    fn repair(&self, source: &ModelSource, needs: Needs) -> DownloadCommand {
        DownloadCommand { force: true, ..self.command(source, needs) }
    }
}

/// A repository on the hub, and what a run needs of it.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// All that the run needs.
    source: &'a ModelSource,
    /// The repository.
    name: &'a HubName,
    scope: Scope<'a>,
    needs: Needs,
}

impl<'a> Wanted<'a> {
    /// All repositories of a model, its own first.
    fn all(source: &'a ModelSource, replaced: &'a [Component], needs: Needs) -> Vec<Self> {
        let base = match &source.model {
            ModelName::Hub(name) => Some((name, Scope::Model { replaced })),
            _ => None,
        };
        let components = source.components.iter().filter_map(|(&component, name)| match name {
            ComponentName::Hub { name, subfolder } => {
                Some((name, Scope::Component { component, subfolder: subfolder.as_deref() }))
            }
            _ => None,
        });
        base.into_iter().chain(components).map(|(name, scope)| Self { source, name, scope, needs }).collect()
    }
}

/// What was found of a repository, or in a folder.
#[derive(Debug)]
pub struct Found {
    /// Its folder.
    pub folder: Folder,
    /// The commit, for a repository on the hub.
    pub commit: Option<String>,
    /// The files that a run needs of it.
    pub files: Vec<ModelFile>,
}

/// What to ask the hub for.
#[derive(Clone, Copy)]
struct Request<'a> {
    /// The revision, or the cached commit of a branch.
    revision: &'a str,
    /// What of what a run needs is to be downloaded.
    download: Needs,
    /// Whether to compare cached files by their hashes.
    force: bool,
}

/// What the cache has of a model.
struct Cached {
    snapshot: Snapshot,
    plan: Plan,
    commit: String,
}

/// Whether the cached files are as good as ever, although the hub does not give the repository.
pub(super) fn leaves_cache(kind: HubErrorKind) -> bool {
    !matches!(kind, HubErrorKind::RevisionNotFound | HubErrorKind::Incomplete)
}

fn found(Cached { snapshot, plan, commit }: &Cached) -> Found {
    let folder = Folder::from(snapshot.path());
    Found { files: files_in(&folder, plan), folder, commit: Some(commit.clone()) }
}

/// What is in a folder of this machine. If it lacks something, loading it has the better messages.
fn local(mut folder: Folder, scope: Scope, needs: Needs) -> Found {
    let plan = Plan::new(&mut folder, scope, needs).unwrap_or_default();
    Found { files: files_in(&folder, &plan), folder, commit: None }
}

/// A component with its weights in one file.
fn of_file(folder: &Folder, weights: &str) -> Found {
    let files = [CONFIG, weights].map(|name| ModelFile::new(folder, name, None));
    Found { folder: folder.clone(), commit: None, files: files.into() }
}

fn files_in(folder: &Folder, plan: &Plan) -> Vec<ModelFile> {
    plan.files.iter().map(|path| ModelFile::new(folder, path, None)).collect()
}
