//! The components of a prior pipeline in a folder as diffusers saves it.
//!
//! Their names differ: Kandinsky's prior pipelines have `text_encoder`, Karlo has `prior_scheduler`, and Stable
//! unCLIP's and Kandinsky's combined pipelines prefix all with `prior_`, since the plain names are the decoder's.

use crate::diffusion::scheduler::{SchedulerClass, SchedulerOptions};
use crate::diffusion::schedulers;
use crate::error::{Component, Hint};
use crate::files::Folder;
use crate::json;
use crate::nn::prior::NetworkConfig;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The file that lists a model's components.
pub(crate) const INDEX: &str = "model_index.json";

/// The file that a network is configured in.
pub const CONFIG: &str = "config.json";

/// The file that a scheduler is configured in.
pub const SCHEDULER_CONFIG: &str = "scheduler_config.json";

/// The file that an image processor is configured in.
pub const PREPROCESSOR_CONFIG: &str = "preprocessor_config.json";

/// The possible names of the folder of the image processor, of which the first that is there counts.
pub(crate) const IMAGE_PROCESSOR: [&str; 4] =
    ["prior_image_processor", "image_processor", "prior_feature_extractor", "feature_extractor"];

/// The file in a model's own folder with the embedding of a black image, `image_embeds` `(1, embedding_dim)`, for
/// models that come without the image encoder to make it with.
pub const ZERO_IMAGE_EMBED: &str = "zero_image_embed.safetensors";

/// The possible names of a component, of which the first that is there counts, and the supported classes.
pub(crate) struct Part {
    pub(crate) component: Component,
    pub(crate) names: [&'static str; 2],
    pub(super) classes: &'static [&'static str],
}

pub(crate) const PRIOR: Part = Part {
    component: Component::Prior,
    names: ["prior_prior", "prior"],
    classes: &[NetworkConfig::TRANSFORMER, NetworkConfig::AUTOREGRESSIVE],
};
pub(crate) const TEXT_ENCODER: Part = Part {
    component: Component::TextEncoder,
    names: ["prior_text_encoder", "text_encoder"],
    classes: &["CLIPTextModelWithProjection", "CLIPModel"],
};
pub(crate) const TOKENIZER: Part = Part {
    component: Component::Tokenizer,
    names: ["prior_tokenizer", "tokenizer"],
    classes: &["CLIPTokenizer", "CLIPTokenizerFast"],
};
pub(crate) const SCHEDULER: Part = Part {
    component: Component::Scheduler,
    names: ["prior_scheduler", "scheduler"],
    classes: &schedulers::CLASS_NAMES,
};
pub(crate) const IMAGE_ENCODER: Part = Part {
    component: Component::ImageEncoder,
    names: ["prior_image_encoder", "image_encoder"],
    classes: &["CLIPVisionModelWithProjection", "CLIPModel"],
};

/// The components of a decoder, whose scheduler is not the prior's.
const DECODER: [&str; 4] = ["unet", "decoder", "movq", "vae"];

/// The folders of the components that take the place of a model's own, as in diffusers' `from_pretrained(…, prior=…)`.
pub type Replacements = BTreeMap<Component, Folder>;

/// A file of a model.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// The model's folder, or that of a component from elsewhere.
    pub root: Folder,
    /// Its path in there.
    pub path: String,
    /// Its size in bytes, if it is known.
    pub bytes: Option<u64>,
    /// Whether it is on this machine.
    pub is_here: bool,
}

impl ModelFile {
    /// A file of a model in `folder`. `listed_bytes` is its size on the hub, for a file that is not on this machine.
    pub(crate) fn new(folder: &Folder, path: &str, listed_bytes: Option<u64>) -> Self {
        let bytes = folder.file_len(path).or(listed_bytes);
        Self { root: folder.clone(), path: path.into(), bytes, is_here: folder.has_path(path) }
    }

    /// Whether it lies in the folder of this component.
    pub fn is_in(&self, component: &Folder) -> bool {
        let folder = match self.path.rsplit_once('/') {
            Some((folder, _)) => self.root.join(folder),
            None => self.root.clone(),
        };
        folder.to_string() == component.to_string()
    }
}

/// Where the components are.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The whole model's folder.
    pub folder: Folder,
    /// `PriorTransformer` or `AutoregressivePrior`: `config.json` and weights.
    pub prior: Folder,
    /// `CLIPTextModelWithProjection`, or a `CLIPModel` that has one in it: `config.json` and weights.
    pub text_encoder: Folder,
    /// `CLIPTokenizer`: its vocabulary and configuration.
    pub tokenizer: Folder,
    /// The scheduler: `scheduler_config.json`. A prior that takes no steps does without.
    pub scheduler: Option<Folder>,
    /// The scheduler's own class.
    pub scheduler_class: SchedulerClass,
    /// How to sample otherwise than its configuration says.
    pub scheduler_options: SchedulerOptions,
    /// `CLIPVisionModelWithProjection`, or a `CLIPModel`. Not every model has one, and a download leaves its weights
    /// out where a run does not need them.
    pub image_encoder: Option<Folder>,
    /// `CLIPImageProcessor`: [`PREPROCESSOR_CONFIG`]. That beside the image encoder's weights, or else the model's own.
    pub image_processor: Option<Folder>,
    /// Whether the model's folder holds [`ZERO_IMAGE_EMBED`], which is used if there is no image encoder.
    pub has_zero_image_embed: bool,
    /// The components that are not the model's own.
    pub replaced: Vec<Component>,
}

impl Layout {
    /// Finds the components through `model_index.json` or, where there is none, by their folders, except for those
    /// that are replaced.
    ///
    /// # Errors
    /// [`Error::MissingComponent`], or [`Error::Config`] if a component's class is not supported.
    pub fn find(folder: &Folder, replacements: &Replacements) -> Result<Self> {
        let index = read_index(folder)?;
        let find = |part: &Part| match replacements.get(&part.component) {
            Some(replacement) => Ok(Some(replacement.clone())),
            None => find(folder, index.as_ref(), part),
        };
        let need = |part: &Part| find(part)?.ok_or_else(|| part.missing_in(folder));
        let [prior, text_encoder, tokenizer] = [need(&PRIOR)?, need(&TEXT_ENCODER)?, need(&TOKENIZER)?];
        let scheduler = find(&SCHEDULER)?;
        if let Some(scheduler) = &scheduler
            && replacements.contains_key(&Component::Prior)
        {
            check_scheduler(folder, index.as_ref(), scheduler)?;
        }
        let scheduler_class = match &scheduler {
            Some(folder) => scheduler_class(index.as_ref(), folder)?,
            None => schedulers::ALL[0],
        };
        let image_encoder = find(&IMAGE_ENCODER)?
            .filter(|folder| replacements.contains_key(&Component::ImageEncoder) || has_weights(folder));
        let own = IMAGE_PROCESSOR.into_iter().map(|name| folder.join(name));
        let mut processors = image_encoder.iter().cloned().chain(own);
        Ok(Self {
            folder: folder.clone(),
            prior,
            text_encoder,
            tokenizer,
            scheduler,
            scheduler_class,
            scheduler_options: SchedulerOptions::default(),
            image_processor: processors.find(|folder| folder.has_file(PREPROCESSOR_CONFIG)),
            image_encoder,
            has_zero_image_embed: folder.has_file(ZERO_IMAGE_EMBED),
            replaced: replacements.keys().copied().collect(),
        })
    }

    /// The folder of a component; `None` if the model does not have it.
    pub fn folder_of(&self, component: Component) -> Option<&Folder> {
        match component {
            Component::Prior => Some(&self.prior),
            Component::TextEncoder => Some(&self.text_encoder),
            Component::ImageEncoder => self.image_encoder.as_ref(),
            Component::Tokenizer => Some(&self.tokenizer),
            Component::Scheduler => self.scheduler.as_ref(),
        }
    }

    /// The image encoder that makes the embedding of a black image: none where the built-in model has that embedding,
    /// and [`ZERO_IMAGE_EMBED`] is used.
    pub(super) fn zero_image_encoder(&self) -> Option<&Folder> {
        let has_own = self.has_zero_image_embed && self.folder.as_path().is_none();
        self.image_encoder.as_ref().filter(|_| !has_own || self.is_replaced(Component::ImageEncoder))
    }

    /// Whether a component is not the model's own.
    pub fn is_replaced(&self, component: Component) -> bool {
        self.replaced.contains(&component)
    }
}

/// Refuses the scheduler of a decoder, which a model without a prior of its own may have in the place of a prior's.
fn check_scheduler(folder: &Folder, index: Option<&Map<String, Value>>, scheduler: &Folder) -> Result<()> {
    let has = |name: &str| match index {
        Some(index) => class_of(index, name).is_some(),
        None => folder.join(name).is_dir(),
    };
    let is_prefixed = scheduler.name() == SCHEDULER.names[0];
    if is_prefixed || PRIOR.names.into_iter().any(has) || !DECODER.into_iter().any(has) {
        return Ok(());
    }
    let hint = Hint::Other("take a model with a prior, whose scheduler is the right one, and replace its prior".into());
    Err(Error::file(folder.to_string(), "is a decoder, whose scheduler is not a prior's").with_hint(hint))
}

pub(super) fn read_index(folder: &Folder) -> Result<Option<Map<String, Value>>> {
    let path = folder.path_of(INDEX);
    let text = folder.find_text(INDEX)?;
    text.map(|text| parse_index(&text, &path)).transpose()
}

/// Parses an index; `path` is its name in messages.
///
/// # Errors
/// [`Error::File`] if it is not a JSON object.
pub(crate) fn parse_index(text: &str, path: &str) -> Result<Map<String, Value>> {
    json::from_str(text).map_err(|error| {
        let reason = "is not a JSON object".into();
        Error::File { path: path.into(), reason, hint: Some(Hint::FetchAgain), source: Some(error.into()) }
    })
}

fn find(folder: &Folder, index: Option<&Map<String, Value>>, part: &Part) -> Result<Option<Folder>> {
    let name = choose(index, &folder.path_of(INDEX), part, &|name| folder.join(name).is_dir())?;
    Ok(name.map(|name| folder.join(name)))
}

/// The name under which a model has a component, if it has it. `index_path` is the index' name in messages.
///
/// # Errors
/// [`Error::Config`] if the index gives it a class that is not supported.
pub(crate) fn choose(
    index: Option<&Map<String, Value>>,
    index_path: &str,
    part: &Part,
    is_there: &dyn Fn(&str) -> bool,
) -> Result<Option<&'static str>> {
    let is_listed = |name: &str| index.is_none_or(|index| class_of(index, name).is_some());
    let Some(name) = part.names.into_iter().find(|name| is_listed(name) && is_there(name)) else { return Ok(None) };
    if let Some(class) = index.and_then(|index| class_of(index, name)) {
        part.check_class(index_path, name, class)?;
    }
    Ok(Some(name))
}

impl Part {
    /// The error on a model in `folder` that lacks it.
    pub(super) fn missing_in(&self, folder: &Folder) -> Error {
        let [prefixed, plain] = self.names;
        let hint = Hint::Other(format!("put it in a folder {plain}/ or {prefixed}/ there").into());
        Error::MissingComponent { component: self.component, path: folder.to_string(), hint: Some(hint) }
    }

    /// The part of this component.
    pub(crate) fn of(component: Component) -> &'static Self {
        match component {
            Component::Prior => &PRIOR,
            Component::TextEncoder => &TEXT_ENCODER,
            Component::ImageEncoder => &IMAGE_ENCODER,
            Component::Tokenizer => &TOKENIZER,
            Component::Scheduler => &SCHEDULER,
        }
    }

    /// Checks that the class that the file `path` has under `key` is supported.
    fn check_class(&self, path: &str, key: &str, class: &str) -> Result<()> {
        if self.classes.contains(&class) {
            return Ok(());
        }
        let known = self.classes.join(" or ");
        Err(Error::key(key, format!("is a {class}, which is not supported; only {known} is")).with_path(path))
    }
}

/// The scheduler's class: the one in the index, as in diffusers, or else in its own configuration. If neither names
/// one, it is an `UnCLIPScheduler`.
fn scheduler_class(index: Option<&Map<String, Value>>, folder: &Folder) -> Result<SchedulerClass> {
    // Whoever reads the configuration next reports that it cannot be read.
    let own: Option<Value> = folder.read_text(SCHEDULER_CONFIG).ok().and_then(|text| json::from_str(&text).ok());
    let own = own.as_ref().and_then(|config| config.get("_class_name")?.as_str());
    let listed = index.and_then(|index| class_of(index, &folder.name()));
    let Some(name) = listed.or(own) else { return Ok(schedulers::ALL[0]) };
    SCHEDULER.check_class(&folder.path_of(SCHEDULER_CONFIG), "_class_name", name)?;
    Ok(schedulers::find(name).unwrap_or(schedulers::ALL[0]))
}

fn has_weights(folder: &Folder) -> bool {
    folder.file_names().iter().any(|name| name.ends_with(".safetensors") || name.ends_with(".bin"))
}

/// The class that an index gives a component, if any: `[null, null]` means none.
fn class_of<'a>(index: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    index.get(name)?.as_array()?.get(1)?.as_str()
}
