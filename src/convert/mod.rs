//! Rewrites a model as a folder in diffusers' layout: safetensors, in a chosen type.
//!
//! The input is a model, or a prior alone, as its authors published it or as diffusers' training scripts save it. The
//! other components are then those of another model, and so is the configuration of a prior that has none. The whole
//! input is checked before anything is written.

mod target;

use crate::bad_input;
use crate::bad_input::OrBadInput;
use crate::config;
use crate::error::Component;
use crate::files::{Folder, parent};
use crate::json;
use crate::nn::image_encoder::{ImageEncoder, ImageEncoderConfig};
use crate::nn::prior::{self, NetworkConfig};
use crate::nn::text_encoder::{TextEncoder, TextEncoderConfig};
use crate::pipeline::layout::{Layout, Replacements, SCHEDULER_CONFIG, ZERO_IMAGE_EMBED};
use crate::pipeline::{CONFIG, Pipeline};
use crate::tokenizer;
use crate::weights::checkpoint::{Checkpoint, Placement};
use crate::weights::precision::Precision;
use anyhow::{Context, Result};
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use target::{Target, cannot_write};
use tch::Device;

/// The file of CLIP's mean and standard deviation that Karlo's and Kandinsky 2.1's authors published beside their
/// priors.
const STATISTICS: &str = "ViT-L-14_stats.th";

/// The keys of a configuration under which transformers and diffusers store the type of the weights.
const DTYPE_KEYS: [&str; 2] = ["torch_dtype", "dtype"];

/// The input of a conversion.
#[derive(Debug)]
pub enum Input {
    /// A whole model, and the components that take the place of its own.
    Model(Folder, Replacements),
    /// A prior alone, with the tensor names of its authors or of diffusers.
    Prior {
        /// The file, or the folder with a configuration and weights.
        path: PathBuf,
        /// The model that the other components are taken from.
        rest: Folder,
        /// The components that take the place of that model's own.
        replacements: Replacements,
    },
}

/// How a model is rewritten.
#[derive(Debug, Clone, Copy)]
pub struct ConvertOptions {
    /// The type of all weights; by default each keeps its own.
    pub dtype: Option<Dtype>,
    /// Whether a model at the target is replaced.
    pub overwrite: bool,
}

/// A component with weights, ready to be written.
struct Network {
    name: &'static str,
    /// The file name of its weights, without an extension.
    stem: &'static str,
    folder: Folder,
    checkpoint: Checkpoint,
}

/// Rewrites a model as the folder `target`, which appears whole or not at all. `keep_going` is polled; its error ends
/// the conversion.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the input cannot be used, or the target exists or cannot be written; the error of
/// `keep_going`; an error if writing fails.
pub fn convert(
    input: &Input,
    target: &Path,
    options: ConvertOptions,
    keep_going: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let (folder, replacements, path) = match input {
        Input::Model(folder, replacements) => (folder, replacements, None),
        Input::Prior { path, rest, replacements } => (rest, replacements, Some(path)),
    };
    let folders = replacements.values().chain([folder]).filter_map(Folder::as_path);
    let inputs: Vec<&Path> = path.map(PathBuf::as_path).into_iter().chain(folders).collect();
    let target = Target::open(target, options.overwrite, &inputs)?;
    let mut layout = Layout::find(folder, replacements)?;
    if let Some(own) = path.and_then(|path| own_folder(path)) {
        layout.prior = own;
    }
    // Checks that the components fit each other.
    Pipeline::of_layout(layout.clone(), Placement { device: Device::Cpu, precision: Precision::F32 })?;
    let networks = networks(&layout, path.map(PathBuf::as_path))?;
    for network in &networks {
        keep_going()?;
        write_network(network, target.path(), options.dtype, keep_going)?;
    }
    write_rest(&layout, target.path())?;
    keep_going()?;
    target.finish()
}

/// Refuses a file that is known to be something else than a prior that can be converted.
///
/// # Errors
/// [`crate::Error`] that says what it is and what it would need.
pub fn check_prior(path: &Path) -> Result<()> {
    // Whoever reads it next reports that it is damaged.
    let Ok(checkpoint) = open_file(path) else { return Ok(()) };
    if checkpoint.is_original_prior() { Ok(()) } else { Ok(checkpoint.refuse_foreign()?) }
}

/// The components with weights, checked against their configurations.
fn networks(layout: &Layout, prior: Option<&Path>) -> Result<Vec<Network>> {
    let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
    let prior_config = NetworkConfig::read(&layout.prior, CONFIG)?;
    let checkpoint = match prior {
        Some(path) => open_prior(path, &prior_config)?,
        None => Checkpoint::open_folder(&layout.prior)?,
    };
    prior_config.check_kind(checkpoint.names(), checkpoint.origin())?;
    checkpoint.check("", placement, |weights| prior::Network::load(weights, &prior_config))?;
    let stem = "diffusion_pytorch_model";
    let mut networks = vec![Network { name: "prior", stem, folder: layout.prior.clone(), checkpoint }];

    let config: TextEncoderConfig = config::read(&layout.text_encoder, CONFIG)?;
    let checkpoint = Checkpoint::open_folder(&layout.text_encoder)?;
    checkpoint.check("", placement, |weights| TextEncoder::load(weights, &config))?;
    let (name, stem) = ("text_encoder", "model");
    networks.push(Network { name, stem, folder: layout.text_encoder.clone(), checkpoint });

    if let Some(folder) = &layout.image_encoder {
        let config: ImageEncoderConfig = config::read(folder, CONFIG)?;
        let checkpoint = Checkpoint::open_folder(folder)?;
        checkpoint.check("", placement, |weights| ImageEncoder::load(weights, &config))?;
        networks.push(Network { name: "image_encoder", stem, folder: folder.clone(), checkpoint });
    }
    Ok(networks)
}

/// The folder of a prior alone, if its own configuration is there. A downloads folder may hold another model's.
fn own_folder(path: &Path) -> Option<Folder> {
    let folder = folder_of(path);
    let text = folder.find_text(CONFIG).ok().flatten()?;
    // Whoever reads it next reports that it is damaged.
    let config: Value = json::from_str(&text).unwrap_or_default();
    let is_own = match config.get("_class_name") {
        Some(class) => class == NetworkConfig::TRANSFORMER || class == NetworkConfig::AUTOREGRESSIVE,
        None => config.is_null() || config.get("embedding_dim").is_some(),
    };
    if !is_own {
        log::warn!("{} is not a prior's; using that of the --config model", folder.path_of(CONFIG));
    }
    is_own.then_some(folder)
}

fn folder_of(path: &Path) -> Folder {
    Folder::from(if path.is_dir() { path } else { parent(path) })
}

/// Opens a prior alone, with the tensor names of diffusers.
fn open_prior(path: &Path, config: &NetworkConfig) -> Result<Checkpoint> {
    let shown = path.display();
    let folder = folder_of(path);
    let checkpoint = if path.is_dir() { Checkpoint::open_folder(&folder)? } else { open_file(path)? };
    if !checkpoint.is_original_prior() {
        return Ok(checkpoint);
    }
    let has_statistics = checkpoint.names().any(|name| name.ends_with("clip_mean"));
    if !has_statistics && !folder.has_file(STATISTICS) {
        return Err(bad_input!(
            "{shown} needs CLIP's statistics beside it: put {STATISTICS}, published with it, there"
        ));
    }
    let statistics = (!has_statistics).then(|| Checkpoint::open_file(&folder, STATISTICS)).transpose()?;
    Ok(checkpoint.with_diffusers_names(statistics, config.attention_head_dim())?)
}

fn open_file(path: &Path) -> Result<Checkpoint> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| bad_input!("the file name of {} is not UTF-8; rename it", path.display()))?;
    Ok(Checkpoint::open_file(&folder_of(path), name)?)
}

fn write_network(
    network: &Network,
    target: &Path,
    dtype: Option<Dtype>,
    keep_going: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let Network { name, stem, folder, checkpoint } = network;
    let target = target.join(name);
    fs::create_dir(&target).with_context(|| cannot_write(&target))?;
    let mut config = read_json(folder, CONFIG)?;
    for key in DTYPE_KEYS {
        if let (Some(value), Some(name)) = (config.get_mut(key), dtype.and_then(torch_name)) {
            *value = json!(name);
        }
    }
    let config_path = target.join(CONFIG);
    write_json(&config_path, &Value::Object(config))?;
    let weights = target.join(format!("{stem}.safetensors"));
    checkpoint.write_safetensors(&weights, dtype, keep_going)?;
    // safetensors makes its files readable for their owner alone.
    let permissions = fs::metadata(&config_path).with_context(|| cannot_write(&config_path))?.permissions();
    fs::set_permissions(&weights, permissions).with_context(|| cannot_write(&weights))
}

/// Writes what has no weights: the tokenizer, the scheduler, the image processor, and the index.
fn write_rest(layout: &Layout, target: &Path) -> Result<()> {
    let tokenizer = target.join("tokenizer");
    match layout.is_replaced(Component::Tokenizer) {
        false => copy_texts(&layout.tokenizer, &tokenizer)?,
        // It may have other components' files beside it.
        true => {
            fs::create_dir(&tokenizer).with_context(|| cannot_write(&tokenizer))?;
            let names = tokenizer::FILES.into_iter().filter(|name| layout.tokenizer.has_file(name));
            names.into_iter().try_for_each(|name| copy(&layout.tokenizer, name, &tokenizer))?;
        }
    }
    if let Some(folder) = &layout.scheduler {
        let scheduler = target.join("scheduler");
        fs::create_dir(&scheduler).with_context(|| cannot_write(&scheduler))?;
        copy(folder, SCHEDULER_CONFIG, &scheduler)?;
    }
    let processors = ["prior_image_processor", "image_processor"].map(|name| layout.folder.join(name));
    let processor = processors.iter().find(|folder| layout.image_encoder.is_some() && folder.is_dir());
    if let Some(processor) = processor {
        copy_texts(processor, &target.join("image_processor"))?;
    }
    if layout.has_zero_image_embed {
        copy(&layout.folder, ZERO_IMAGE_EMBED, target)?;
    }
    let index = index(layout, processor.is_some())?;
    write_json(&target.join("model_index.json"), &index)
}

/// `model_index.json` of a Kandinsky prior pipeline; a component that is missing is `[null, null]`.
fn index(layout: &Layout, has_processor: bool) -> Result<Value> {
    let prior = NetworkConfig::read(&layout.prior, CONFIG)?;
    let own = if layout.folder.has_file("model_index.json") {
        read_json(&layout.folder, "model_index.json")?
    } else {
        Map::new()
    };
    let class = own.get("_class_name").and_then(Value::as_str);
    let (library, default) = match &prior {
        NetworkConfig::Transformer(_) => ("diffusers", "KandinskyV22PriorPipeline"),
        NetworkConfig::Autoregressive(_) => ("prior_embed", "AutoregressivePriorPipeline"),
    };
    let class = class.filter(|class| class.contains("Prior")).unwrap_or(default);
    let entry = |is_there: bool, library: &str, class: &str| {
        if is_there { json!([library, class]) } else { json!([null, null]) }
    };
    let mut index = json!({
        "_class_name": class,
        "image_encoder": entry(layout.image_encoder.is_some(), "transformers", "CLIPVisionModelWithProjection"),
        "image_processor": entry(has_processor, "transformers", "CLIPImageProcessor"),
        "prior": [library, prior.class()],
        "scheduler": entry(layout.scheduler.is_some(), "diffusers", layout.scheduler_class.class_name),
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    });
    if let Some(version) = own.get("_diffusers_version") {
        index["_diffusers_version"] = version.clone();
    }
    Ok(index)
}

/// Copies the JSON and text files of a folder; a tokenizer has no others.
fn copy_texts(folder: &Folder, target: &Path) -> Result<()> {
    fs::create_dir(target).with_context(|| cannot_write(target))?;
    let is_text = |name: &String| {
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("json" | "txt" | "jinja")) && folder.has_file(name)
    };
    folder.file_names().iter().filter(|name| is_text(name)).try_for_each(|name| copy(folder, name, target))
}

fn copy(folder: &Folder, name: &str, target: &Path) -> Result<()> {
    let bytes = folder.open(name).or_bad_input(|| format!("cannot read {}", folder.path_of(name)))?;
    let path = target.join(name);
    fs::write(&path, &*bytes).with_context(|| cannot_write(&path))
}

fn read_json(folder: &Folder, name: &str) -> Result<Map<String, Value>> {
    let path = folder.path_of(name);
    let text = folder.read_text(name).or_bad_input(|| format!("cannot read {path}"))?;
    serde_json::from_str(&text).or_bad_input(|| format!("{path} is not a JSON object"))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, format!("{value:#}\n")).with_context(|| cannot_write(path))
}

/// The name of a type in torch.
fn torch_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F32 => Some("float32"),
        Dtype::F16 => Some("float16"),
        Dtype::BF16 => Some("bfloat16"),
        _ => None,
    }
}
