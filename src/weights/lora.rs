//! LoRAs (arXiv 2106.09685): small files that change a model's matrices, merged into them when they are read.
//!
//! A matrix W becomes W - P + scale · alpha / rank · B A, in float32, before it is packed. P is what the LoRA's
//! initialization took from W, which is nothing for most. Source: PEFT 0.21 `tuners/lora/layer.py`, diffusers 0.42
//! `loaders/`.

mod adapter;
mod base;
mod keys;
mod pattern;

use super::checkpoint::Checkpoint;
use crate::bad_input;
use crate::error::{FETCH_AGAIN, some_of};
use crate::files::{Folder, parent};
use adapter::AdapterConfig;
use anyhow::{Context, Result};
use base::Base;
use keys::{Key, Part};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// The files that a folder with a LoRA holds: as PEFT and diffusers write them, and as accelerate does, whose checkpoints
/// hold nothing but what was trained.
const FILES: [&str; 6] = [
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
    "model.safetensors",
    "pytorch_model.bin",
];

/// The numbers of a LoRA may take this many times the bytes of its file: those of 16 bits take twice as many in memory.
const LARGEST_RATIO: u64 = 10;

/// A small file may hold this many bytes of numbers anyway.
const SMALL_BYTES: u64 = 1 << 20;

/// A LoRA, read and checked in itself.
#[derive(Debug)]
pub struct Lora {
    origin: String,
    layers: Vec<Layer>,
}

/// What a LoRA does to one matrix.
#[derive(Debug)]
pub(crate) struct Layer {
    /// The tensor that it changes.
    pub(crate) target: String,
    /// The name of A in the LoRA's file.
    key: String,
    delta: Delta,
}

/// What is added to a matrix: `scale · strength · up · down - part`.
#[derive(Debug)]
pub struct Delta {
    /// A, `(rank, inputs)`.
    down: Tensor,
    /// B, `(outputs, rank)`.
    up: Tensor,
    /// Alpha over the rank.
    strength: f64,
    /// What the user asks for.
    scale: f64,
    /// What the LoRA began with.
    base: Option<Base>,
}

impl Delta {
    /// Adds all of them to `weight`, a matrix `(outputs, inputs)` in float32 on the CPU.
    ///
    /// As when PEFT loads one after the other, the part that each began with is taken from what those before it left, and
    /// whole, whatever the scale.
    pub(crate) fn add_all(deltas: &[Self], weight: &mut Tensor) -> Result<()> {
        for Self { down, strength, base, .. } in deltas {
            if let Some(base) = base {
                let part = base.part(weight, down.size()[0], *strength);
                let part = part.context("cannot decompose a matrix as a LoRA asks for it; is it finite?")?;
                let _ = weight.f_sub_(&part)?;
            }
        }
        for Self { down, up, strength, scale, .. } in deltas {
            let _ = weight.f_add_(&up.f_matmul(down)?.f_mul_scalar(scale * strength)?)?;
        }
        Ok(())
    }

    fn shallow_clone(&self) -> Self {
        Self { down: self.down.shallow_clone(), up: self.up.shallow_clone(), ..*self }
    }
}

impl Layer {
    /// What it adds to a tensor of this shape in the checkpoint called `model`, if there is one.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] that names the key if the tensor is not there or has another shape.
    pub(crate) fn fit(&self, shape: Option<&[i64]>, origin: &str, model: &str) -> Result<Delta> {
        let Self { target, key, delta } = self;
        let Some(shape) = shape else {
            return Err(bad_input!(
                "{origin}: {key} is for {target}, which {model} does not have; it is for another model"
            ));
        };
        let changed = [delta.up.size()[0], delta.down.size()[1]];
        if shape != changed {
            return Err(bad_input!(
                "{origin}: {key} is for a {target} of {changed:?}, and that of {model} is {shape:?}; it is for another model"
            ));
        }
        Ok(delta.shallow_clone())
    }
}

/// The tensors of one layer, by name.
#[derive(Debug, Default)]
struct Names {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
    is_peft: bool,
}

impl Lora {
    /// Reads the LoRA in a file, or in a folder as PEFT and diffusers write them; `scale` multiplies what it adds.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there is none, or it is broken or of a kind that is not understood.
    pub fn open(path: &Path, scale: f64) -> Result<Self> {
        let (folder, name) = find(path)?;
        let checkpoint = Checkpoint::open_file(&folder, &name)?;
        check_size(&checkpoint, folder.file_len(&name).unwrap_or_default())?;
        let config = AdapterConfig::find(&folder, &name)?;
        let origin = checkpoint.origin().to_string();
        let mut layers = Vec::new();
        let mut left_out = Vec::new();
        for (module, names) in group(&checkpoint)? {
            let config = config.as_ref().filter(|config| config.is_in_header || names.is_peft);
            if config.map_or(Ok(true), |config| config.targets(&module))? {
                layers.push(read_layer(&checkpoint, module, &names, config, scale)?);
            } else {
                left_out.push(module);
            }
        }
        let config = config.as_ref().map_or("", |config| config.origin());
        match (layers.is_empty(), left_out.is_empty()) {
            (true, true) => return Err(bad_input!("{origin} holds no LoRA")),
            (true, false) => return Err(bad_input!("{origin}: {config} is for none of the modules in it")),
            (false, true) => {}
            (false, false) => log::warn!("{origin}: left out what {config} is not for: {}", some_of(&left_out)),
        }
        Ok(Self { origin, layers })
    }

    /// What messages call it.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// A hash over all that it changes, and by how much.
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

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
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
    let name = name.ok_or_else(|| bad_input!("there is no LoRA at {:?}", path.display().to_string()))?;
    Ok((Folder::from(parent(path)), name.into()))
}

/// The file that a folder's LoRA is in where it has a name of its own.
fn only_safetensors(folder: &Folder) -> Result<String> {
    let mut names = folder.file_names();
    names.retain(|name| name.ends_with(".safetensors") && folder.has_file(name));
    names.sort();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        [] => Err(bad_input!("{folder} has no LoRA; one of {} must be in it", FILES.join(", "))),
        names => Err(bad_input!("{folder} has several files that may be the LoRA; name one of {}", some_of(names))),
    }
}

/// Checks that the numbers of a file of `len` bytes do not take many times as much memory: in a torch file any number of
/// tensors may share one storage.
fn check_size(checkpoint: &Checkpoint, len: u64) -> Result<()> {
    let bytes = checkpoint.parameters().saturating_mul(Kind::Float.elt_size_in_bytes() as u64);
    if bytes <= len.saturating_mul(LARGEST_RATIO).saturating_add(SMALL_BYTES) {
        return Ok(());
    }
    let origin = checkpoint.origin();
    Err(bad_input!(
        "{origin} is {len} bytes long and its tensors take {bytes}, more than {LARGEST_RATIO} times as many: they share their numbers; save them with .clone()"
    ))
}

/// The tensors of a file by the module that they change.
fn group(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Names>> {
    let origin = checkpoint.origin();
    let mut layers: BTreeMap<String, Names> = BTreeMap::new();
    for name in checkpoint.names() {
        let Some(Key { module, part, is_peft }) = keys::parse(name) else {
            return Err(bad_input!("{origin}: {name} is no part of a LoRA that is understood; A, B and alpha are"));
        };
        let names = layers.entry(module).or_default();
        names.is_peft |= is_peft;
        let place = match part {
            Part::Down => &mut names.down,
            Part::Up => &mut names.up,
            Part::Alpha => &mut names.alpha,
        };
        if let Some(other) = place.replace(name.to_string()) {
            return Err(bad_input!("{origin}: {other} and {name} are for the same matrix"));
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
    let origin = checkpoint.origin();
    let (Some(down_name), Some(up_name)) = (&names.down, &names.up) else {
        let lone = [&names.down, &names.up, &names.alpha].into_iter().flatten().next();
        return Err(bad_input!("{origin}: {} is without its other half", lone.unwrap_or(&module)));
    };
    let read = |name: &str| -> Result<Tensor> {
        let tensor = checkpoint.read(name)?.ok_or_else(|| bad_input!("{origin}: {name} holds no floats"))?;
        if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(bad_input!("{origin}: {name} has NaN or infinity in it; {FETCH_AGAIN}"));
        }
        Ok(tensor)
    };
    let (down, up) = (read(down_name)?, read(up_name)?);
    let rank = match (&down.size()[..], &up.size()[..]) {
        ([rank, _], [_, other]) if rank == other && *rank >= 1 => *rank,
        (down, up) => {
            return Err(bad_input!(
                "{origin}: {down_name} is {down:?} and {up_name} {up:?}, which is no LoRA of a matrix"
            ));
        }
    };
    let base = config.and_then(|config| config.base);
    let said = config.map_or(Ok(None), |config| config.rank(&module))?;
    // A part of a matrix has no higher rank than the matrix; the strength goes by what is said.
    let largest = if base.is_some() { down.size()[1].min(up.size()[0]) } else { i64::MAX };
    if let (Some(config), Some(said)) = (config, said.filter(|said| (*said).min(largest) != rank)) {
        return Err(bad_input!("{origin}: {down_name} has rank {rank}, and {} says {said}", config.origin()));
    }
    let strength = match (&names.alpha, config) {
        (Some(name), _) => {
            let alpha = read(name)?;
            if alpha.numel() != 1 {
                return Err(bad_input!("{origin}: {name} must be one number"));
            }
            alpha.f_reshape([-1])?.f_double_value(&[0])? / rank as f64
        }
        (None, Some(config)) => config.strength(&module, said.unwrap_or(rank))?,
        (None, None) => 1.0,
    };
    if base.is_some_and(|base| !base.has_strength(strength)) {
        return Err(bad_input!("{origin}: {down_name} has the strength {strength}, with which no such LoRA can begin"));
    }
    let delta = Delta { down, up, strength, scale, base };
    Ok(Layer { target: format!("{module}.weight"), key: down_name.clone(), delta })
}
