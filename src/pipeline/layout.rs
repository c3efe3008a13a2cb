//! The components of a prior pipeline in a folder as diffusers saves it.
//!
//! Pipelines that hold a prior name its parts differently: Kandinsky's prior pipelines say `text_encoder`, Karlo's
//! `prior_scheduler`, Stable unCLIP's and Kandinsky's combined pipelines put `prior_` before everything, since there the
//! plain names are the decoder's.

use crate::bad_input;
use crate::diffusion::scheduler::SchedulerClass;
use crate::error::{FETCH_AGAIN, OrBadInput};
use crate::files::Folder;
use crate::json;
use anyhow::Result;
use serde_json::{Map, Value};

/// The file that lists a model's components.
pub(crate) const INDEX: &str = "model_index.json";

/// The file that a scheduler is configured in.
pub const SCHEDULER_CONFIG: &str = "scheduler_config.json";

/// The file in a model's own folder with the embedding of a black image, `image_embeds` `(1, embedding_dim)`, for models
/// that come without the image encoder to make it with.
pub const ZERO_IMAGE_EMBED: &str = "zero_image_embed.safetensors";

/// A component's possible names, the first one that is there counts, and the classes that are understood.
pub(crate) struct Part {
    pub(crate) what: &'static str,
    pub(crate) names: [&'static str; 2],
    classes: &'static [&'static str],
}

pub(crate) const PRIOR: Part = Part { what: "prior", names: ["prior_prior", "prior"], classes: &["PriorTransformer"] };
pub(crate) const TEXT_ENCODER: Part = Part {
    what: "text encoder",
    names: ["prior_text_encoder", "text_encoder"],
    classes: &["CLIPTextModelWithProjection", "CLIPModel"],
};
pub(crate) const TOKENIZER: Part = Part {
    what: "tokenizer",
    names: ["prior_tokenizer", "tokenizer"],
    classes: &["CLIPTokenizer", "CLIPTokenizerFast"],
};
pub(crate) const SCHEDULER: Part = Part {
    what: "scheduler",
    names: ["prior_scheduler", "scheduler"],
    classes: &[SchedulerClass::Unclip.class_name(), SchedulerClass::Ddpm.class_name()],
};
pub(crate) const IMAGE_ENCODER: Part = Part {
    what: "image encoder",
    names: ["prior_image_encoder", "image_encoder"],
    classes: &["CLIPVisionModelWithProjection", "CLIPModel"],
};

/// Where the components are.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The whole model's folder.
    pub folder: Folder,
    /// `PriorTransformer`: `config.json` and weights.
    pub prior: Folder,
    /// `CLIPTextModelWithProjection`, or a `CLIPModel` that has one in it: `config.json` and weights.
    pub text_encoder: Folder,
    /// `CLIPTokenizer`: its vocabulary and configuration.
    pub tokenizer: Folder,
    /// The scheduler: `scheduler_config.json`.
    pub scheduler: Folder,
    /// The scheduler's class.
    pub scheduler_class: SchedulerClass,
    /// `CLIPVisionModelWithProjection`, or a `CLIPModel`, which not every model has. A download leaves its weights out
    /// where a run does not need them; then it is not there.
    pub image_encoder: Option<Folder>,
    /// Whether the model's folder holds [`ZERO_IMAGE_EMBED`], which counts where there is no image encoder.
    pub has_zero_image_embed: bool,
}

impl Layout {
    /// Finds the components through `model_index.json` or, where there is none, by their folders.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] that names what is missing or of a class that is not understood.
    pub fn find(folder: &Folder) -> Result<Self> {
        let index = read_index(folder)?;
        let find = |part: &Part| find(folder, index.as_ref(), part);
        let need = |part: &Part| {
            find(part)?.ok_or_else(|| {
                let [prefixed, plain] = part.names;
                bad_input!("{folder} has no {}: a folder {plain}/ or {prefixed}/ must be in it", part.what)
            })
        };
        let [prior, text_encoder, tokenizer] = [need(&PRIOR)?, need(&TEXT_ENCODER)?, need(&TOKENIZER)?];
        let scheduler = need(&SCHEDULER)?;
        Ok(Self {
            folder: folder.clone(),
            prior,
            text_encoder,
            tokenizer,
            scheduler_class: scheduler_class(index.as_ref(), &scheduler)?,
            scheduler,
            image_encoder: find(&IMAGE_ENCODER)?.filter(has_weights),
            has_zero_image_embed: folder.has_file(ZERO_IMAGE_EMBED),
        })
    }
}

fn read_index(folder: &Folder) -> Result<Option<Map<String, Value>>> {
    let path = || folder.path_of(INDEX);
    let Some(text) = folder.find_text(INDEX).or_bad_input(|| format!("cannot read {}", path()))? else {
        return Ok(None);
    };
    parse_index(&text, &path()).map(Some)
}

/// What an index says; `path` is what messages call it.
///
/// # Errors
/// [`crate::error::BadInput`] if it is not a JSON object.
pub(crate) fn parse_index(text: &str, path: &str) -> Result<Map<String, Value>> {
    json::from_str(text).or_bad_input(|| format!("{path} is not a JSON object; {FETCH_AGAIN}"))
}

fn find(folder: &Folder, index: Option<&Map<String, Value>>, part: &Part) -> Result<Option<Folder>> {
    let name = choose(index, &folder.path_of(INDEX), part, &|name| folder.join(name).is_dir())?;
    Ok(name.map(|name| folder.join(name)))
}

/// The name under which a model has a part, if it has it. `index_path` is what messages call the index.
///
/// # Errors
/// [`crate::error::BadInput`] if the index gives it a class that is not understood.
pub(crate) fn choose(
    index: Option<&Map<String, Value>>,
    index_path: &str,
    part: &Part,
    is_there: &dyn Fn(&str) -> bool,
) -> Result<Option<&'static str>> {
    let is_listed = |name: &str| index.is_none_or(|index| class_of(index, name).is_some());
    let Some(name) = part.names.into_iter().find(|name| is_listed(name) && is_there(name)) else { return Ok(None) };
    if let Some(class) = index.and_then(|index| class_of(index, name)) {
        part.check_class(class).map_err(|error| bad_input!("{index_path}: {name} is {error}"))?;
    }
    Ok(Some(name))
}

impl Part {
    /// Checks that a class is understood; if not, says which are.
    fn check_class(&self, class: &str) -> Result<(), String> {
        if self.classes.contains(&class) {
            return Ok(());
        }
        let known = self.classes.join(" or ");
        Err(format!("a {class}, which is not supported; only {known} is"))
    }
}

/// The scheduler's class: what the index says, as in diffusers, or else its own configuration. One that says nothing
/// is an `UnCLIPScheduler`'s.
fn scheduler_class(index: Option<&Map<String, Value>>, folder: &Folder) -> Result<SchedulerClass> {
    // A file that cannot be read is told of by who reads it next.
    let own: Option<Value> = folder.read_text(SCHEDULER_CONFIG).ok().and_then(|text| json::from_str(&text).ok());
    let own = own.as_ref().and_then(|config| config.get("_class_name")?.as_str());
    let listed = index.and_then(|index| class_of(index, &folder.name()));
    let Some(name) = listed.or(own) else { return Ok(SchedulerClass::Unclip) };
    let path = folder.path_of(SCHEDULER_CONFIG);
    SCHEDULER.check_class(name).map_err(|error| bad_input!("{path}: _class_name is {error}"))?;
    let class = SchedulerClass::ALL.into_iter().find(|class| class.class_name() == name);
    Ok(class.unwrap_or(SchedulerClass::Unclip))
}

fn has_weights(folder: &Folder) -> bool {
    folder.file_names().iter().any(|name| name.ends_with(".safetensors") || name.ends_with(".bin"))
}

/// The class that an index gives a component; an index may also list one as `[null, null]`, which means none.
fn class_of<'a>(index: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    index.get(name)?.as_array()?.get(1)?.as_str()
}
