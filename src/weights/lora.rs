//! LoRAs (arXiv 2106.09685): small files that change a model's matrices, merged into them when they are read.
//!
//! A matrix W becomes `W - base + scale · alpha / rank · B A`, in float32, before it is packed. The base is what the
//! LoRA's initialization took from W, which is nothing for most. Source: PEFT 0.21 `tuners/lora/layer.py`, diffusers
//! 0.42 `loaders/`.

mod adapter;
mod initialization;
mod keys;
mod pattern;

use super::checkpoint::Checkpoint;
use super::delta::Delta;
use crate::error::{Error, Hint, Result};
use crate::files::{Folder, parent};
use crate::text;
use adapter::AdapterConfig;
use keys::{Key, Role};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// The names of a LoRA's file in its folder: those of PEFT and diffusers, and of accelerate, whose checkpoints hold
/// nothing but what was trained.
const FILES: [&str; 6] = [
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
    "model.safetensors",
    "pytorch_model.bin",
];

/// The tensors of a LoRA in float32 may take this many times the bytes of its file.
const MAX_RATIO: u64 = 10;

/// The bytes that the tensors of a small file may take anyway.
const SMALL_BYTES: u64 = 1 << 20;

/// A LoRA.
#[derive(Debug)]
pub struct Lora {
    /// Its name in messages.
    origin: String,
    layers: Vec<Layer>,
}

/// The change to one matrix.
#[derive(Debug)]
struct Layer {
    /// The tensor that it changes.
    target: String,
    /// The name of A in the LoRA's file.
    key: String,
    delta: Delta,
}

impl Checkpoint {
    /// Adds a LoRA to the weights that it was trained for, from when they are read.
    ///
    /// # Errors
    /// [`Error::Lora`] that names a key of the LoRA that fits no tensor here.
    pub fn add_lora(&mut self, lora: &Lora) -> Result<()> {
        for layer in &lora.layers {
            layer.check(self, &lora.origin)?;
        }
        for layer in &lora.layers {
            self.add_delta(&layer.target, layer.delta.shallow_clone());
        }
        Ok(())
    }
}

impl Layer {
    /// Checks that the checkpoint has the matrix that it changes.
    fn check(&self, checkpoint: &Checkpoint, origin: &str) -> Result<()> {
        let Self { target, key, delta } = self;
        let (model, expected) = (checkpoint.origin(), delta.shape());
        let reason = match checkpoint.shape(target) {
            Some(shape) if shape == expected => return Ok(()),
            Some(shape) => format!("{key} changes a {target} of {expected:?}, but {model} has one of {shape:?}"),
            None => format!("{key} changes {target}, which {model} does not have"),
        };
        Err(Error::lora(origin, format!("{reason}: it is for another model")))
    }
}

/// The names of the tensors of one layer.
#[derive(Debug, Default)]
struct Names {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
    is_peft: bool,
}

impl Lora {
    /// Reads a LoRA from its file, or from a folder of PEFT or diffusers; `scale` multiplies its change.
    ///
    /// # Errors
    /// [`Error::Lora`], [`Error::File`] or [`Error::Config`] if there is none, or it is damaged or not supported.
    pub fn open(path: &Path, scale: f64) -> Result<Self> {
        let (folder, name) = find(path)?;
        let checkpoint = Checkpoint::open_file(&folder, &name)?;
        check_size(&checkpoint, folder.file_len(&name).unwrap_or_default())?;
        let config = AdapterConfig::find(&folder, &name)?;
        let origin = checkpoint.origin().to_string();
        let mut layers = Vec::new();
        let mut ignored = Vec::new();
        for (module, names) in group(&checkpoint)? {
            let config = config.as_ref().filter(|config| config.is_in_header || names.is_peft);
            if config.map_or(Ok(true), |config| config.targets(&module))? {
                layers.push(read_layer(&checkpoint, module, &names, config, scale)?);
            } else {
                ignored.push(module);
            }
        }
        let config = config.as_ref().map_or("", |config| config.origin());
        match (layers.is_empty(), ignored.is_empty()) {
            (true, true) => return Err(Error::lora(origin, "no LoRA in it")),
            (true, false) => return Err(Error::lora(origin, format!("{config} selects none of the modules in it"))),
            (false, true) => {}
            (false, false) => {
                log::warn!("{origin}: modules that {config} does not select are ignored: {}", text::list(&ignored))
            }
        }
        Ok(Self { origin, layers })
    }

    /// A hash over all of its changes.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn identity(&self) -> Result<Vec<u8>> {
        let mut hasher = Sha256::new();
        for Layer { target, delta: Delta { down, up, strength, scale, base }, .. } in &self.layers {
            hasher.update(target);
            hasher.update((scale * strength).to_le_bytes());
            if let Some(base) = base {
                hasher.update([*base as u8]);
                hasher.update(strength.to_le_bytes());
            }
            for tensor in [down, up] {
                let mut values = vec![0_f32; tensor.numel()];
                let count = values.len();
                tensor.f_to_kind(Kind::Float)?.f_contiguous()?.f_copy_data(&mut values, count)?;
                tensor.size().iter().for_each(|size| hasher.update(size.to_le_bytes()));
                values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
            }
        }
        Ok(hasher.finalize().to_vec())
    }
}

/// The folder and the name of a LoRA's file.
fn find(path: &Path) -> Result<(Folder, String)> {
    if path.is_dir() {
        let folder = Folder::from(path);
        let name = FILES.into_iter().find(|name| folder.has_file(name)).map(String::from);
        let name = name.map_or_else(|| only_safetensors(&folder), Ok)?;
        return Ok((folder, name));
    }
    let name = path.file_name().filter(|_| path.is_file()).and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Error::lora(path.display().to_string(), "there is no such file or folder"))?;
    Ok((Folder::from(parent(path)), name.into()))
}

/// The only safetensors file in a folder.
fn only_safetensors(folder: &Folder) -> Result<String> {
    let mut names = folder.file_names();
    names.retain(|name| name.ends_with(".safetensors") && folder.has_file(name));
    names.sort();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        [] => Err(Error::lora(folder.to_string(), format!("none of {} is in it", FILES.join(", ")))),
        names => {
            let reason = format!("several files may be the LoRA: {}", text::list(names));
            Err(Error::lora(folder.to_string(), reason).with_hint(Hint::Other("give one of them".into())))
        }
    }
}

/// Checks that the tensors of a file of `len` bytes do not take many times as much memory: in a torch file any number
/// of them may share one storage.
fn check_size(checkpoint: &Checkpoint, len: u64) -> Result<()> {
    let bytes = checkpoint.parameters().saturating_mul(Kind::Float.elt_size_in_bytes() as u64);
    if bytes <= len.saturating_mul(MAX_RATIO).saturating_add(SMALL_BYTES) {
        return Ok(());
    }
    let reason = format!("its tensors share their numbers: they take {bytes} bytes, and the file {len}");
    Err(Error::lora(checkpoint.origin(), reason).with_hint(Hint::Other("save them with .clone()".into())))
}

/// The tensors of a file, grouped by the module that they change.
fn group(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Names>> {
    let origin = checkpoint.origin();
    let mut layers: BTreeMap<String, Names> = BTreeMap::new();
    for name in checkpoint.names() {
        let Some(Key { module, role, is_peft }) = keys::parse(name) else {
            return Err(Error::lora(origin, format!("{name} is not supported, only A, B and alpha of a LoRA are")));
        };
        let names = layers.entry(module).or_default();
        names.is_peft |= is_peft;
        let slot = match role {
            Role::Down => &mut names.down,
            Role::Up => &mut names.up,
            Role::Alpha => &mut names.alpha,
        };
        if let Some(other) = slot.replace(name.to_string()) {
            return Err(Error::lora(origin, format!("{other} and {name} are for the same matrix")));
        }
    }
    Ok(layers)
}

fn read_layer(
    checkpoint: &Checkpoint,
    module: String,
    names: &Names,
    config: Option<&AdapterConfig>,
    scale: f64,
) -> Result<Layer> {
    let refused = |reason: String| Error::lora(checkpoint.origin(), reason);
    let (Some(down_name), Some(up_name)) = (&names.down, &names.up) else {
        let lone = [&names.down, &names.up, &names.alpha].into_iter().flatten().next();
        return Err(refused(format!("{} lacks its other half", lone.unwrap_or(&module))));
    };
    let read = |name: &str| -> Result<Tensor> {
        let tensor = checkpoint.read(name)?.ok_or_else(|| refused(format!("{name} holds no floats")))?;
        if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(refused(format!("{name} holds NaN or infinity")).with_hint(Hint::FetchAgain));
        }
        Ok(tensor)
    };
    let (down, up) = (read(down_name)?, read(up_name)?);
    let rank = match (&down.size()[..], &up.size()[..]) {
        ([rank, _], [_, other]) if rank == other && *rank >= 1 => *rank,
        (down, up) => {
            return Err(refused(format!("{down_name} is {down:?} and {up_name} {up:?}: not a LoRA of a matrix")));
        }
    };
    let base = config.and_then(|config| config.base);
    let configured = config.map_or(Ok(None), |config| config.rank(&module))?;
    // A part of a matrix has at most its rank; the strength goes by the configured rank all the same.
    let max_rank = if base.is_some() { down.size()[1].min(up.size()[0]) } else { i64::MAX };
    if let (Some(config), Some(expected)) = (config, configured.filter(|&expected| expected.min(max_rank) != rank)) {
        return Err(refused(format!("{down_name} has rank {rank}, and {} says {expected}", config.origin())));
    }
    let strength = match (&names.alpha, config) {
        (Some(name), _) => {
            let alpha = read(name)?;
            if alpha.numel() != 1 {
                return Err(refused(format!("{name} must be a single number")));
            }
            alpha.f_reshape([-1])?.f_double_value(&[0])? / rank as f64
        }
        (None, Some(config)) => config.strength(&module, configured.unwrap_or(rank))?,
        (None, None) => 1.0,
    };
    if base.is_some_and(|base| !base.allows_strength(strength)) {
        return Err(refused(format!(
            "{down_name} has strength {strength}, which its init_lora_weights does not allow"
        )));
    }
    let delta = Delta { down, up, strength, scale, base };
    Ok(Layer { target: format!("{module}.weight"), key: down_name.clone(), delta })
}
