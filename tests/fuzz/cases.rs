//! A case: a copy of a model, of a LoRA or of a table of prompts with a mutated file, and what comes of using it.

use crate::draws::Draws;
use crate::{bytes, json, safetensors, torch};
use prior_embed::{EmbedOptions, Error, Prior};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The models that are mutated; those of torch files more often, since there is more to them.
const MODELS: [&str; 9] = [
    "pipelines/kandinsky22",
    "pipelines/kandinsky22_sharded_bf16",
    "pipelines/pickle_weights",
    "pipelines/pickle_weights",
    "pipelines/stable_unclip_layout",
    "pipelines/fp16_variant",
    "pipelines/whole_clip",
    "pipelines/unclip_layout",
    "autoregressive/small",
];

/// The LoRAs, all for the first of the models.
const LORAS: [&str; 4] = ["peft", "peft_rslora_bin", "diffusers", "attention_processors"];

/// What a case came to.
#[derive(Debug)]
pub enum Outcome {
    Used,
    Refused { code: u8, line: String },
    Panicked(String),
}

/// What is used.
enum Kind {
    Model,
    Lora(PathBuf),
    Prompts(PathBuf),
    /// The parts of a run, to be merged.
    Parts(PathBuf),
}

pub struct Case {
    /// What was done to it.
    pub what: String,
    /// The size of the mutated file.
    pub bytes: u64,
    kind: Kind,
    model: PathBuf,
    _folder: TempDir,
}

impl Case {
    pub fn new(seed: u64) -> Self {
        let mut draws = Draws::new(seed);
        let folder = TempDir::new().unwrap();
        let model = folder.path().join("model");
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let (source, kind, target) = match draws.below(12) {
            0 | 1 => {
                let lora = folder.path().join("lora");
                copy(&fixtures.join("checkpoints/lora").join(draws.of(&LORAS)), &lora);
                (MODELS[0], Kind::Lora(lora.clone()), lora)
            }
            2 => {
                let path = folder.path().join("prompts");
                fs::create_dir(&path).unwrap();
                crate::prompts::write(&path.join("prompts.parquet"));
                (MODELS[0], Kind::Prompts(path.join("prompts.parquet")), path)
            }
            3 => {
                let path = folder.path().join("parts");
                copy(crate::parts::folder(), &path);
                (MODELS[0], Kind::Parts(path.clone()), path)
            }
            _ => (*draws.of(&MODELS), Kind::Model, model.clone()),
        };
        copy(&fixtures.join(source), &model);
        let mut files = files(&target);
        // A folder has few configurations, and much depends on them.
        let is_config = |path: &PathBuf| path.to_string_lossy().ends_with("config.json");
        if draws.one_in(2) && files.iter().any(is_config) {
            files.retain(is_config);
        }
        let path = draws.of(&files).clone();
        let what = mutate(&path, &mut draws);
        let name = path.strip_prefix(folder.path()).unwrap().display().to_string();
        let bytes = fs::metadata(&path).unwrap().len();
        Self { what: format!("{source} {name}: {what}"), bytes, kind, model, _folder: folder }
    }

    /// Does with it what a run would: by the library in this process, and by the program what only that reads.
    pub fn run(&self) -> Outcome {
        let lora = match &self.kind {
            Kind::Prompts(path) => return crate::prompts::read(path, &self.model),
            Kind::Parts(folder) => return crate::parts::merge(folder),
            Kind::Lora(lora) => Some(lora.as_path()),
            Kind::Model => None,
        };
        match catch_unwind(AssertUnwindSafe(|| embed(&self.model, lora))) {
            Ok(Ok(())) => Outcome::Used,
            Ok(Err(error)) => {
                let code = if error.is_bad_input() { 2 } else { 1 };
                Outcome::Refused { code, line: error.to_string() }
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                Outcome::Panicked(text.unwrap_or_default())
            }
        }
    }
}

fn embed(model: &Path, lora: Option<&Path>) -> Result<(), Error> {
    let mut prior = Prior::open(model)?;
    if let Some(lora) = lora {
        prior.add_lora(lora, 0.5)?;
    }
    let takes_steps = prior.max_steps() > 1;
    let options = |steps| {
        let options = EmbedOptions::new().seed(1).batch_size(1);
        if takes_steps { options.steps(steps) } else { options }
    };
    prior.embed(&["a red apple, two cats"], &options(2))?;
    match prior.embed(&["a red apple"], &options(1).negative_image_embeds(true)) {
        // Not every model has an image encoder.
        Err(Error::MissingComponent { .. }) => Ok(()),
        result => result.map(drop),
    }
}

fn mutate(path: &Path, draws: &mut Draws) -> String {
    let mut content = fs::read(path).unwrap();
    let extension = path.extension().unwrap_or_default().to_str().unwrap().to_string();
    // Now and then more than one thing.
    let what: Vec<String> = (0..1 + usize::from(draws.one_in(4)))
        .map(|_| {
            let known = match extension.as_str() {
                _ if draws.one_in(6) => None,
                "safetensors" => safetensors::mutate(&mut content, draws),
                "bin" => Some(torch::mutate(&mut content, draws)),
                "json" => {
                    let changed = std::str::from_utf8(&content).ok().and_then(|text| json::mutate(text, draws));
                    changed.map(|(text, what)| {
                        content = text.into_bytes();
                        what
                    })
                }
                _ => None,
            };
            known.unwrap_or_else(|| bytes::mutate(&mut content, draws).into())
        })
        .collect();
    fs::write(path, content).unwrap();
    what.join(", and ")
}

/// All files that a run may read, in an order that does not change.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().unwrap() != "expected.safetensors" {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
}
