//! LoRAs (arXiv 2106.09685): small files that change a model's matrices, merged into them when they are read.
//!
//! A matrix W becomes W + scale · (alpha / rank) · B A, in float32, before it is packed. Source: PEFT 0.21
//! `tuners/lora/layer.py`, diffusers 0.42 `loaders/`.

mod adapter;
mod keys;

use super::checkpoint::Checkpoint;
use crate::bad_input;
use crate::error::FETCH_AGAIN;
use crate::files::{Folder, parent};
use adapter::AdapterConfig;
use anyhow::Result;
use keys::{Key, Part};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// The files that a folder with a LoRA holds, as PEFT and diffusers write them.
const FILES: [&str; 4] =
    ["adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin", "pytorch_lora_weights.bin"];

/// A LoRA, read and checked in itself.
#[derive(Debug)]
pub struct Lora {
    origin: String,
    layers: Vec<Layer>,
}

/// What a LoRA does to one matrix.
#[derive(Debug)]
pub(super) struct Layer {
    /// The tensor that it changes.
    pub(super) target: String,
    /// The name of A in the LoRA's file.
    key: String,
    delta: Delta,
}

/// What is added to a matrix: `factor · up · down`.
#[derive(Debug)]
pub struct Delta {
    /// A, `(rank, inputs)`.
    down: Tensor,
    /// B, `(outputs, rank)`.
    up: Tensor,
    factor: f64,
}

impl Delta {
    /// Adds it to a matrix `(outputs, inputs)` in float32 on the CPU.
    pub(super) fn add_to(&self, matrix: &mut Tensor) -> Result<()> {
        let product = self.up.f_matmul(&self.down)?.f_mul_scalar(self.factor)?;
        let _ = matrix.f_add_(&product)?;
        Ok(())
    }
}

impl Layer {
    /// What it adds to a tensor of this shape in the checkpoint called `model`, if there is one.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] that names the key if the tensor is not there or has another shape.
    pub(super) fn fit(&self, shape: Option<&[i64]>, origin: &str, model: &str) -> Result<Delta> {
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
        Ok(Delta { down: delta.down.shallow_clone(), up: delta.up.shallow_clone(), factor: delta.factor })
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
        let config = AdapterConfig::find(&folder, &name)?;
        let origin = checkpoint.origin().to_string();
        let layers = group(&checkpoint)?;
        let layer = |(module, names): (String, Names)| -> Result<Layer> {
            let config = config.as_ref().filter(|_| names.is_peft);
            read_layer(&checkpoint, module, &names, config, scale)
        };
        let layers = layers.into_iter().map(layer).collect::<Result<Vec<_>>>()?;
        if layers.is_empty() {
            return Err(bad_input!("{origin} holds no LoRA"));
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
        for Layer { target, delta: Delta { down, up, factor }, .. } in &self.layers {
            hasher.update(target);
            hasher.update(factor.to_le_bytes());
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

    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }
}

/// The folder and the name of a LoRA's file.
fn find(path: &Path) -> Result<(Folder, String)> {
    if path.is_dir() {
        let folder = Folder::from(path);
        let name = FILES.into_iter().find(|name| folder.has_file(name));
        let name = name.ok_or_else(|| bad_input!("{folder} has no LoRA; one of {} must be in it", FILES.join(", ")))?;
        return Ok((folder, name.into()));
    }
    let name = path.file_name().filter(|_| path.is_file()).and_then(|name| name.to_str());
    let name = name.ok_or_else(|| bad_input!("there is no LoRA at {:?}", path.display().to_string()))?;
    Ok((Folder::from(parent(path)), name.into()))
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
    let strength = match (&names.alpha, config) {
        (Some(name), _) => {
            let alpha = read(name)?;
            if alpha.numel() != 1 {
                return Err(bad_input!("{origin}: {name} must be one number"));
            }
            alpha.f_reshape([-1])?.f_double_value(&[0])? / rank as f64
        }
        (None, Some(config)) => config.strength(&module, rank),
        (None, None) => 1.0,
    };
    let delta = Delta { down, up, factor: scale * strength };
    Ok(Layer { target: format!("{module}.weight"), key: down_name.clone(), delta })
}
