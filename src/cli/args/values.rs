//! What options take that is neither a number nor a text.

use crate::nn::precision::Precision;
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use tch::{Cuda, Device};

/// `--lora`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOption {
    /// The file or folder.
    pub path: PathBuf,
    /// What multiplies its effect.
    pub scale: f64,
}

impl std::str::FromStr for LoraOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("it must be a file or a folder".into());
        }
        let whole = Self { path: text.into(), scale: 1.0 };
        // A name with a colon in it comes first.
        match text.rsplit_once(':') {
            Some((path, scale)) if !path.is_empty() && !Path::new(text).exists() => match scale.parse() {
                Ok(scale) if f64::is_finite(scale) => Ok(Self { path: path.into(), scale }),
                Ok(_) => Err("the scale must be a finite number".into()),
                Err(_) => Ok(whole),
            },
            _ => Ok(whole),
        }
    }
}

/// `--scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchedulerName {
    /// What the model ships.
    Auto,
    /// `UnCLIPScheduler`.
    Unclip,
    /// `DDPMScheduler`.
    Ddpm,
}

impl SchedulerName {
    /// Checks that a model ships this scheduler; `model` is what messages call it.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] that names both.
    pub fn check(self, ships: &str, model: &str) -> anyhow::Result<()> {
        let wanted = match self {
            Self::Auto => return Ok(()),
            Self::Unclip => "unclip",
            Self::Ddpm => "ddpm",
        };
        if wanted == ships {
            return Ok(());
        }
        Err(crate::bad_input!("--scheduler {wanted}: {model} ships {ships}; leave --scheduler out, or say {ships}"))
    }
}

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// Float32, as diffusers.
    Auto,
    /// Float32.
    F32,
    /// Bfloat16.
    Bf16,
    /// Float16.
    F16,
    /// Int8 weights.
    Int8,
}

impl Dtype {
    /// What it names, whether this machine can do it or not.
    fn wanted(self) -> Precision {
        match self {
            Self::Auto | Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::F16 => Precision::F16,
            Self::Int8 => Precision::Int8,
        }
    }

    /// What to compute in on `device`: float32, with a warning, in place of a 16-bit type that would be slower there.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there is no way to compute in int8.
    pub fn precision(self, device: Device) -> anyhow::Result<Precision> {
        let wanted = self.wanted();
        let name = wanted.name();
        match wanted {
            wanted if wanted.is_fast_on(device) => Ok(wanted),
            Precision::Int8 => Err(crate::bad_input!(
                "--dtype int8 needs a CPU with oneDNN (x86-64); use --device cpu, or another --dtype"
            )),
            _ => {
                log::warn!(
                    "--dtype {name} is slower than f32 on this processor, which has no instructions for it; using f32"
                );
                Ok(Precision::F32)
            }
        }
    }
}

/// `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// A GPU if there is one.
    Auto,
    /// This one.
    Named(Device),
}

impl std::str::FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || "it must be auto, cpu, cuda, cuda:I or mps".to_string();
        Ok(match text.split_once(':') {
            None if text == "auto" => Self::Auto,
            None if text == "cpu" => Self::Named(Device::Cpu),
            None if text == "cuda" => Self::Named(Device::Cuda(0)),
            None if text == "mps" => Self::Named(Device::Mps),
            Some(("cuda", index)) => Self::Named(Device::Cuda(index.parse().map_err(|_| unknown())?)),
            _ => return Err(unknown()),
        })
    }
}

impl DeviceName {
    /// The device, if this machine and this build of libtorch have it.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if not.
    pub fn device(self) -> anyhow::Result<Device> {
        match self {
            Self::Auto if tch::utils::has_mps() => Ok(Device::Mps),
            Self::Auto => Ok(Device::cuda_if_available()),
            Self::Named(Device::Mps) if !tch::utils::has_mps() => Err(crate::bad_input!(
                "--device mps: this machine or this build of libtorch has none; use --device cpu"
            )),
            Self::Named(Device::Cuda(index)) if index >= Cuda::device_count().max(0) as usize => {
                Err(crate::bad_input!(
                    "--device cuda:{index}: {} such devices are here, counted from 0; use --device cpu, or a CUDA build of libtorch",
                    Cuda::device_count()
                ))
            }
            Self::Named(device) => Ok(device),
        }
    }
}

/// `--batch-size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchSize {
    /// Chosen by the program.
    Auto,
    /// This many rows.
    Rows(usize),
}

impl std::str::FromStr for BatchSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "auto" => Ok(Self::Auto),
            Ok(rows) if rows >= 1 => Ok(Self::Rows(rows)),
            _ => Err("it must be auto or a number of rows, 1 or more".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lora_may_have_a_scale() {
        let parse = |text: &str| text.parse::<LoraOption>().map(|option| (option.path, option.scale));
        for (text, path, scale) in [
            ("style.safetensors", "style.safetensors", 1.0),
            ("style.safetensors:0.5", "style.safetensors", 0.5),
            ("a:b/style:-2e-1", "a:b/style", -0.2),
            ("C:/loras/style", "C:/loras/style", 1.0),
            (":3", ":3", 1.0),
        ] {
            assert_eq!(parse(text), Ok((PathBuf::from(path), scale)), "{text}");
        }
        assert!(parse("style:inf").is_err() && parse("").is_err());
    }
}
