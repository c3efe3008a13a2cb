//! Values of options that are neither numbers nor text.

use super::args::one_of;
use crate::diffusion::scheduler::SchedulerClass;
use crate::diffusion::schedulers;
use crate::job::{OnError, Seeding};
use crate::output::OutputDtype;
use crate::output::shard::Shard;
use crate::rows::{FORMATS, PromptFormat};
use crate::weights::precision::Precision;
use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tch::{Cuda, Device};

/// Parses `--format-in`.
pub(super) fn prompt_format() -> impl TypedValueParser<Value = &'static PromptFormat> {
    one_of(FORMATS.map(|format| (format.name, format)))
}

/// Parses `--on-error`.
pub(super) fn on_error() -> impl TypedValueParser<Value = OnError> {
    one_of([("fail", OnError::Fail), ("skip", OnError::Skip)])
}

/// Parses `--out-dtype`.
pub(super) fn output_dtype() -> impl TypedValueParser<Value = OutputDtype> {
    one_of(OutputDtype::ALL.map(|dtype| (dtype.name(), dtype)))
}

/// Parses `--shard`.
pub(super) fn shard(text: &str) -> Result<Shard, String> {
    let parse = || {
        let (index, count) = text.split_once('/')?;
        let shard = Shard { index: index.parse().ok()?, count: count.parse().ok()? };
        (1..=shard.count).contains(&shard.index).then_some(shard)
    };
    parse().ok_or_else(|| "it must be I/N with I between 1 and N, for example 1/8".into())
}

/// Parses a number that is not NaN or infinite.
pub(super) fn finite(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| "it must be a finite number".into())
}

/// Parses a range of places, `A..B`, of which either may be missing.
pub(super) fn range(text: &str) -> Result<Range<u64>, String> {
    let parse = || {
        let (start, end) = text.split_once("..")?;
        let start = if start.is_empty() { 0 } else { start.parse().ok()? };
        let end = if end.is_empty() { u64::MAX } else { end.parse().ok()? };
        (start <= end).then_some(start..end)
    };
    parse().ok_or_else(|| "it must be A..B with whole numbers, A no larger than B".into())
}

/// Parses a number from 0 to 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share: &f64| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "it must be a number between 0 and 1".into())
}

/// Parses `--temperature`.
pub(super) fn temperature(text: &str) -> Result<f64, String> {
    let number = finite(text).ok().filter(|number| *number >= 0.0);
    number.ok_or_else(|| "it must be a finite number, 0 or above".into())
}

/// Parses `--seed`.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("it must be a whole number between 0 and {}", u64::MAX))
}

/// `--lora`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LoraOption {
    /// The file or folder.
    pub(super) path: PathBuf,
    /// Its strength.
    pub(super) scale: f64,
}

impl std::str::FromStr for LoraOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("it must be a file or a folder".into());
        }
        let whole = Self { path: text.into(), scale: 1.0 };
        // A file whose name contains the colon comes first.
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

/// `--textual-inversion`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct InversionOption {
    /// The file or folder.
    pub(super) path: PathBuf,
    /// The token, if the file's own name of it is not to be used.
    pub(super) token: Option<String>,
}

impl std::str::FromStr for InversionOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("it must be a file or a folder".into());
        }
        // A file whose name contains the colon comes first, and a token may contain one too.
        let colons = text.match_indices(':').map(|(place, _)| (&text[..place], &text[place + 1..]));
        let split = colons.filter(|_| !Path::new(text).exists()).find(|(path, _)| Path::new(path).exists());
        match split {
            Some((_, "")) => Err("the token after the colon is empty".into()),
            Some((path, token)) => Ok(Self { path: path.into(), token: Some(token.into()) }),
            None => Ok(Self { path: text.into(), token: None }),
        }
    }
}

/// Parses `--seed-layout`.
pub(super) fn seed_layout() -> impl TypedValueParser<Value = Seeding> {
    one_of([("row", Seeding::Row), ("call", Seeding::Call)])
}

/// Parses `--seed-by`.
pub(super) fn seed_by() -> impl TypedValueParser<Value = Seeding> {
    one_of([("prompt", Seeding::Prompt)])
}

/// Parses `--scheduler`.
pub(super) fn scheduler() -> impl TypedValueParser<Value = SchedulerName> {
    let names = schedulers::ALL.map(|class| class.name);
    PossibleValuesParser::new(["auto"].into_iter().chain(names))
        .try_map(|name| schedulers::named(&name).map(SchedulerName).map_err(|error| error.reason()))
}

/// `--scheduler`: a class, or `None` for the model's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct SchedulerName(pub(super) Option<SchedulerClass>);

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Dtype {
    /// Float32, the type of diffusers' numbers.
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
    /// The precision of this name.
    fn wanted(self) -> Precision {
        match self {
            Self::Auto | Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::F16 => Precision::F16,
            Self::Int8 => Precision::Int8,
        }
    }

    /// The precision to use on `device`: float32, with a warning, instead of a 16-bit type that would be slower.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the device does not support int8.
    pub(super) fn precision(self, device: Device) -> anyhow::Result<Precision> {
        let wanted = self.wanted().on(device);
        let name = wanted.name();
        match wanted {
            wanted if wanted.is_fast_on(device) => Ok(wanted),
            Precision::Int8 => Err(crate::bad_input!(
                "--dtype int8 needs a CPU with oneDNN (x86-64); use --device cpu, or another --dtype"
            )),
            _ => {
                log::warn!(
                    "--dtype {name} is slower than f32 on this processor, which lacks instructions for it; using f32"
                );
                Ok(Precision::F32)
            }
        }
    }
}

/// `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceName {
    /// A GPU if there is one.
    Auto,
    /// A given device.
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
    /// The device.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if this machine, or this build of libtorch, does not have it.
    pub(super) fn device(self) -> anyhow::Result<Device> {
        match self {
            Self::Auto if tch::utils::has_mps() => Ok(Device::Mps),
            Self::Auto => Ok(Device::cuda_if_available()),
            Self::Named(Device::Mps) if !tch::utils::has_mps() => Err(crate::bad_input!(
                "--device mps: not available on this machine or in this build of libtorch; use --device cpu"
            )),
            Self::Named(Device::Cuda(index)) if index >= Cuda::device_count().max(0) as usize => {
                Err(crate::bad_input!(
                    "--device cuda:{index}: this machine has {} CUDA devices, counted from 0; use \
                     --device cpu, or a CUDA build of libtorch",
                    Cuda::device_count()
                ))
            }
            Self::Named(device) => Ok(device),
        }
    }
}

/// `--batch-size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BatchSize {
    /// As many as memory allows, up to 64.
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
