//! The options, as clap parses them. [`super::embed`] turns them into what the library takes; nothing else looks here.

use crate::io::format::Format;
use crate::model::precision::Precision;
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use tch::{Cuda, Device};

/// Turns text into CLIP image embeddings with a diffusion prior.
#[derive(Debug, Parser)]
#[command(name = "prior-embed", version, max_term_width = 110, args_override_self = true)]
pub struct Args {
    /// A prompt; may be repeated
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Vec<String>,

    /// Prompts from a text file, one a line; `-` for standard input
    #[arg(short = 'f', long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,

    /// Where the embeddings go: a .npy or .npz file, `-` for standard output
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,

    /// Output format, npy or npz, if the file's extension does not tell
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    pub format: Option<Format>,

    /// The model: emoji, which is built in, or a folder in diffusers' layout [default: emoji]
    #[arg(short, long, value_name = "NAME")]
    pub model: Option<String>,

    /// What the embeddings are to lead away from
    #[arg(short, long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,

    /// Where the embeddings that decoders take as negative go; .npz output has them in the same file anyway
    #[arg(long, value_name = "FILE")]
    pub negative_out: Option<PathBuf>,

    /// Number of denoising steps
    #[arg(long, value_name = "N", default_value_t = 25, allow_negative_numbers = true,
          value_parser = at_least_one("a number of steps"))]
    pub steps: usize,

    /// Classifier-free guidance; off at 1 and below
    #[arg(long, value_name = "G", default_value_t = 4.0, allow_negative_numbers = true, value_parser = finite)]
    pub guidance_scale: f64,

    /// Row r of the output draws its noise from a generator seeded S + r
    #[arg(long, value_name = "S", default_value_t = 0, allow_negative_numbers = true, value_parser = seed)]
    pub seed: u64,

    /// Number of embeddings a prompt; row = prompt index * K + sample index
    #[arg(long, value_name = "K", default_value_t = 1, allow_negative_numbers = true,
          value_parser = at_least_one("a number of samples"))]
    pub samples_per_prompt: usize,

    /// Scheduler: auto (what the model ships) or unclip
    #[arg(long, value_name = "NAME", default_value = "auto", hide_possible_values = true)]
    pub scheduler: SchedulerName,

    /// Where to compute: auto, cpu, cuda, cuda:I or mps
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub device: DeviceName,

    /// Type to compute in: f32, bf16, f16, int8, or auto, which keeps diffusers' numbers
    #[arg(long, value_name = "NAME", default_value = "auto", hide_possible_values = true)]
    pub dtype: Dtype,

    /// Number of CPU threads; if not given, all cores, or one for a small model
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = at_least_one("a number of threads"))]
    pub threads: Option<usize>,

    /// Number of rows that are computed together
    #[arg(long, value_name = "N", default_value = "auto", allow_negative_numbers = true)]
    pub batch_size: BatchSize,

    /// Where a report on time and memory goes, as JSON
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,

    /// Replace an output file that is there already
    #[arg(long)]
    pub overwrite: bool,

    /// Nothing on standard error but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// More on standard error, and the causes of errors
    #[arg(short, long)]
    pub verbose: bool,
}

/// `--scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchedulerName {
    /// What the model ships.
    Auto,
    /// `UnCLIPScheduler`.
    Unclip,
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
    /// What to compute in on `device`: float32, with a warning, in place of a 16-bit type that would be slower there.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there is no way to compute in int8.
    pub fn precision(self, device: Device) -> anyhow::Result<Precision> {
        let wanted = match self {
            Self::Auto | Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::F16 => Precision::F16,
            Self::Int8 => Precision::Int8,
        };
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

fn at_least_one(what: &'static str) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse::<usize>() {
        Ok(number) if number >= 1 && number <= i32::MAX as usize => Ok(number),
        _ => Err(format!("it must be {what} between 1 and {}", i32::MAX)),
    }
}

fn finite(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| "it must be a number".into())
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("it must be a whole number between 0 and {}", u64::MAX))
}
