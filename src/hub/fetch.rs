//! Finds models: name, plan, download, folder.

use super::cache::{self, RepositoryCache, Snapshot};
use super::failure::{Resource, kind_of};
use super::model::{Model, advise};
use super::name::{HubName, ModelName};
use super::plan::{Needs, Plan, Wish};
use super::progress::Progress;
use super::remote::Remote;
use super::retry::RetryPolicy;
use super::settings::HubOptions;
use crate::error::{DownloadCommand, Error, Hint, HubErrorKind, Result};
use crate::files::Folder;
use crate::pipeline::builtin;
use crate::pipeline::layout::{IMAGE_ENCODER, ModelFile, ZERO_IMAGE_EMBED};
use crate::weights::checkpoint::candidates::is_weights;

/// The hub and its cache.
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

    /// A model with all that a run needs. The hub is asked only if the cache lacks something that matters, and then for the
    /// cached commit; if the hub does not give it, a usable model in the cache will do.
    ///
    /// # Errors
    /// [`Error::Hub`] if there is no such model, or it cannot be downloaded; other errors if it is not supported.
    pub fn open(&self, name: &ModelName, needs: Needs, progress: &mut dyn Progress) -> Result<Model> {
        self.resolve(name, needs, needs, progress)
    }

    /// A model without its weights, which are listed in [`Model::files`] but not downloaded.
    ///
    /// # Errors
    /// As [`Hub::open`]'s.
    pub fn describe(&self, name: &ModelName, needs: Needs, progress: &mut dyn Progress) -> Result<Model> {
        self.resolve(name, needs, Needs { weights: false, ..needs }, progress)
    }

    /// Downloads a model at its newest commit. With `force`, cached files are compared by their hashes, and downloaded again
    /// where they differ.
    ///
    /// # Errors
    /// As [`Hub::open`]'s, and if `force` is to work offline.
    pub fn download(&self, name: &ModelName, needs: Needs, force: bool, progress: &mut dyn Progress) -> Result<Model> {
        match name {
            ModelName::Hub(_) if self.is_offline && force => {
                let reason = "--force asks the hub, and --offline or HF_HUB_OFFLINE forbids that; leave one out";
                Err(Error::Option { option: "force", reason: reason.into() })
            }
            ModelName::Hub(name) if !self.is_offline => {
                let request = Request { revision: &name.revision, needs, download: needs, force };
                self.fetch(name, request, RetryPolicy::persistent(), progress)
            }
            _ => self.open(name, needs, progress),
        }
    }

    /// What the cache has of a model, if anything, and whether a run can do with it.
    ///
    /// # Errors
    /// If it is broken or not supported.
    pub fn cached_model(&self, name: &HubName, needs: Needs) -> Result<Option<(Model, bool)>> {
        let cached = self.cached(name, needs)?.filter(|cached| !cached.plan.files.is_empty());
        Ok(cached.map(|cached| (self.model_of(&cached, name, needs), cached.plan.is_usable())))
    }

    /// The repositories in the cache.
    ///
    /// # Errors
    /// [`HubErrorKind::Environment`] if there is no home folder.
    pub fn cached_repositories(&self) -> Result<Vec<String>> {
        Ok(cache::repositories(&self.options.cache_dir()?))
    }

    /// A model for a run with `needs`, of which `download` is to be on this machine.
    fn resolve(&self, name: &ModelName, needs: Needs, download: Needs, progress: &mut dyn Progress) -> Result<Model> {
        let ModelName::Hub(name) = name else { return Ok(local(name, needs)) };
        let mut cached = self.cached(name, needs)?;
        if let Some(cached) = cached.as_ref().filter(|cached| cached.plan.is_whole()) {
            return Ok(self.model_of(cached, name, needs));
        }
        if download != needs && !(self.is_offline && cached.as_ref().is_some_and(|cached| cached.plan.is_usable())) {
            cached = self.cached(name, download)?;
        }
        let usable = cached.as_ref().filter(|cached| cached.plan.is_usable());
        if self.is_offline {
            return match usable {
                Some(usable) => Ok(self.use_cached(usable, name, needs)),
                None => Err(self.not_in_cache(name, download, cached)?),
            };
        }
        let revision = cached.as_ref().map_or(&name.revision, |cached| &cached.commit);
        let retry = if usable.is_some() { RetryPolicy::brief() } else { RetryPolicy::persistent() };
        let request = Request { revision, needs, download, force: false };
        let error = match self.fetch(name, request, retry, progress) {
            Ok(model) => return Ok(model),
            Err(error) => error,
        };
        let Some(kind) = kind_of(&error) else { return Err(error) };
        // The hub may have dropped a commit that a branch was at.
        let is_gone = kind == HubErrorKind::RevisionNotFound && *revision != name.revision;
        match (cached.as_ref(), usable) {
            (_, Some(usable)) if is_gone || leaves_cache(kind) => {
                let hint = error.hint().map_or_else(String::new, |hint| format!("; {hint}"));
                log::warn!("{error}{hint}; using what is in the cache (commit {})", usable.commit);
                Ok(self.use_cached(usable, name, needs))
            }
            (Some(_), None) if is_gone => {
                let request = Request { revision: &name.revision, needs, download, force: false };
                self.fetch(name, request, RetryPolicy::persistent(), progress)
            }
            _ => Err(error),
        }
    }

    /// Downloads what the cache lacks.
    fn fetch(
        &self,
        name: &HubName,
        request: Request,
        retry: RetryPolicy,
        progress: &mut dyn Progress,
    ) -> Result<Model> {
        let Request { revision, needs, download, force } = request;
        let cache = RepositoryCache::new(&self.options.cache_dir()?, name);
        let remote = Remote::open(name, revision, cache, retry, force, progress)?;
        let mut plan = remote.plan(needs, progress)?;
        let files = plan.files.clone();
        plan.files.retain(|path| download.weights || !is_weights(path));
        remote.fetch(&plan, progress)?;
        let folder = Folder::from(remote.folder());
        let files = files.iter().map(|path| ModelFile::new(&folder, path, remote.listed_size(path))).collect();
        Ok(Model { files, folder, commit: Some(remote.commit().into()), repair: Some(self.repair(name, needs)) })
    }

    fn cached(&self, name: &HubName, needs: Needs) -> Result<Option<Cached>> {
        let cache = RepositoryCache::new(&self.options.cache_dir()?, name);
        let Some(commit) = cache.commit() else { return Ok(None) };
        let mut snapshot = cache.snapshot(&commit);
        let folder = Folder::from(snapshot.path());
        let plan = Plan::new(&mut snapshot, needs).map_err(|mut error| {
            advise(&mut error, &folder, &self.repair(name, needs));
            error
        })?;
        Ok(Some(Cached { snapshot, plan, commit }))
    }

    fn model_of(&self, Cached { snapshot, plan, commit }: &Cached, name: &HubName, needs: Needs) -> Model {
        let folder = Folder::from(snapshot.path());
        let files = files_in(&folder, plan);
        Model { files, folder, commit: Some(commit.clone()), repair: Some(self.repair(name, needs)) }
    }

    /// A usable model in the cache, with a warning if it lacks an image encoder that is welcome.
    fn use_cached(&self, cached: &Cached, name: &HubName, needs: Needs) -> Model {
        let is_of_encoder = |path: &String| {
            IMAGE_ENCODER.names.iter().any(|name| path.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')))
        };
        let lacks = cached.plan.unknown.iter().any(is_of_encoder) && !cached.snapshot.has(ZERO_IMAGE_EMBED);
        if needs.image_encoder == Wish::Welcome && lacks {
            let command = self.command(name, Needs { image_encoder: Wish::Needed, ..needs });
            log::warn!(
                "the image encoder of {name} is not in the cache: no negative embeddings without a negative prompt; run `{command}` for it"
            );
        }
        self.model_of(cached, name, needs)
    }

    fn not_in_cache(&self, name: &HubName, needs: Needs, cached: Option<Cached>) -> Result<Error> {
        let missing = cached.map(|cached| cached.plan.missing.join(", ")).filter(|missing| !missing.is_empty());
        let what = missing.map_or_else(|| name.to_string(), |files| format!("{files} of {name}"));
        let folder = self.options.cache_dir()?;
        let reason =
            format!("{what} is not in the cache in {folder:?}, and --offline or HF_HUB_OFFLINE forbids to download it");
        let hint = Hint::Download(Box::new(self.command(name, needs)));
        let resource = Resource { repository: &name.repository, revision: &name.revision, path: None };
        Ok(resource.error(HubErrorKind::Offline, reason, Some(hint)).into())
    }

    /// The command that downloads a model for such a run.
    fn command(&self, name: &HubName, needs: Needs) -> DownloadCommand {
        DownloadCommand {
            model: name.to_string(),
            image_encoder: needs.image_encoder == Wish::Needed,
            sixteen_bit: needs.sixteen_bit,
            cache_dir: self.options.cache_dir.clone(),
            force: false,
        }
    }

    /// The command that repairs a broken file.
    fn repair(&self, name: &HubName, needs: Needs) -> DownloadCommand {
        DownloadCommand { force: true, ..self.command(name, needs) }
    }
}

/// What to ask the hub for.
#[derive(Clone, Copy)]
struct Request<'a> {
    /// The revision, or the cached commit of a branch.
    revision: &'a str,
    /// What a run needs.
    needs: Needs,
    /// What of it to download.
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

/// Whether the cached files are as good as ever, although the hub does not give the model.
fn leaves_cache(kind: HubErrorKind) -> bool {
    !matches!(kind, HubErrorKind::RevisionNotFound | HubErrorKind::Incomplete)
}

/// The built-in model, or one in the user's folder. If it lacks something, loading it has the better messages.
fn local(name: &ModelName, needs: Needs) -> Model {
    let mut folder = match name {
        ModelName::Folder(path) => Folder::from(path),
        _ => Folder::builtin(&builtin::EMOJI_MODEL),
    };
    let plan = Plan::new(&mut folder, needs).unwrap_or_default();
    Model { files: files_in(&folder, &plan), folder, commit: None, repair: None }
}

fn files_in(folder: &Folder, plan: &Plan) -> Vec<ModelFile> {
    plan.files.iter().map(|path| ModelFile::new(folder, path, None)).collect()
}
