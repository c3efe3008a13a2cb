//! The options, as clap parses them. [`super::embed`] turns them into what the library takes; nothing else looks here.

use crate::hub::{HubOptions, ModelName};
use crate::io::format::Format;
use crate::model::precision::Precision;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use safetensors::tensor::Dtype as StoredDtype;
use std::path::{Path, PathBuf};
use tch::{Cuda, Device};

/// Turns text into CLIP image embeddings with a diffusion prior.
#[derive(Debug, Parser)]
#[command(name = "prior-embed", version, max_term_width = 110, args_override_self = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct CommandLine {
    /// What to do, if it is something else than to embed.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// What to embed; `None` if none of its options is there.
    #[command(flatten)]
    pub embed: Option<Args>,

    // Not within the options to embed: clap takes a group of options with another in it for one that is never there.
    #[command(flatten)]
    pub hub: HubArgs,

    #[command(flatten)]
    pub talk: TalkArgs,
}

/// What else the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the models that have a name, and what is on this machine
    Models(ModelsArgs),
    /// Download a model ahead, or bring it up to date
    Download(DownloadArgs),
    /// Tell what a model is; no weights are downloaded for it
    Info(InfoArgs),
    /// Rewrite a model as a folder in diffusers' layout, with safetensors
    Convert(ConvertArgs),
}

/// `prior-embed models`.
#[derive(Debug, ClapArgs)]
pub struct ModelsArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub hub: CacheArgs,

    #[command(flatten)]
    pub talk: TalkArgs,
}

/// `prior-embed download`.
#[derive(Debug, ClapArgs)]
pub struct DownloadArgs {
    /// A name from `prior-embed models`, or owner/name[@revision] on the hub
    #[arg(value_name = "NAME")]
    pub model: String,

    /// Type to compute in later: f32, bf16, f16, int8; all but f32 take the smaller fp16 files if there are any
    #[arg(long, value_name = "NAME", default_value = "auto", hide_possible_values = true)]
    pub dtype: Dtype,

    /// Also what negative embeddings without a negative prompt need
    #[arg(long)]
    pub image_encoder: bool,

    #[command(flatten)]
    pub hub: HubArgs,

    #[command(flatten)]
    pub talk: TalkArgs,
}

/// `prior-embed info`.
#[derive(Debug, ClapArgs)]
pub struct InfoArgs {
    /// The model: a name from `prior-embed models`, owner/name[@revision], or a folder [default: emoji]
    #[arg(short, long, value_name = "NAME")]
    pub model: Option<String>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub hub: HubArgs,

    #[command(flatten)]
    pub talk: TalkArgs,
}

/// The options of `prior-embed convert`.
#[derive(Debug, ClapArgs)]
pub struct ConvertArgs {
    /// A model, or a prior in a file: a .ckpt of Karlo's or Kandinsky 2.1's authors, .pt, .bin or .safetensors
    #[arg(value_name = "SRC")]
    pub source: String,

    /// The folder to make
    #[arg(value_name = "DST")]
    pub target: PathBuf,

    /// Type of the weights, f32, f16 or bf16; if not given, as they are
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    pub dtype: Option<WeightDtype>,

    /// For a prior in a file: the model that its configuration, the text encoder and the rest are taken from
    #[arg(long, value_name = "FOLDER")]
    pub config: Option<String>,

    /// Replace a model that is there already
    #[arg(long)]
    pub overwrite: bool,

    #[command(flatten)]
    pub hub: HubArgs,

    #[command(flatten)]
    pub talk: TalkArgs,
}

/// Where models come from.
#[derive(Debug, ClapArgs)]
pub struct HubArgs {
    /// A branch, tag or commit of a model on the hub [default: main]
    #[arg(long, value_name = "NAME")]
    pub revision: Option<String>,

    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Where models are kept.
#[derive(Debug, ClapArgs)]
pub struct CacheArgs {
    /// Where downloads are kept [default: the cache of Python's huggingface_hub]
    #[arg(long, value_name = "FOLDER")]
    pub cache_dir: Option<PathBuf>,

    /// Never touch the network; a model must be on this machine
    #[arg(long)]
    pub offline: bool,
}

/// How much is said on standard error.
#[derive(Debug, ClapArgs)]
pub struct TalkArgs {
    /// Nothing on standard error but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// More on standard error, and the causes of errors
    #[arg(short, long)]
    pub verbose: bool,
}

impl CommandLine {
    /// How much is to be said.
    pub fn talk(&self) -> &TalkArgs {
        match &self.command {
            Some(Command::Models(args)) => &args.talk,
            Some(Command::Download(args)) => &args.talk,
            Some(Command::Info(args)) => &args.talk,
            Some(Command::Convert(args)) => &args.talk,
            None => &self.talk,
        }
    }
}

/// `--dtype` of `prior-embed convert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightDtype {
    /// Float32.
    F32,
    /// Float16.
    F16,
    /// Bfloat16.
    Bf16,
}

impl From<WeightDtype> for StoredDtype {
    fn from(dtype: WeightDtype) -> Self {
        match dtype {
            WeightDtype::F32 => Self::F32,
            WeightDtype::F16 => Self::F16,
            WeightDtype::Bf16 => Self::BF16,
        }
    }
}

impl CacheArgs {
    /// The same for the library.
    pub fn options(&self) -> HubOptions {
        HubOptions { cache_dir: self.cache_dir.clone(), offline: self.offline }
    }
}

impl HubArgs {
    /// The model that a name means.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if it can mean none.
    pub fn model(&self, name: &str) -> anyhow::Result<ModelName> {
        ModelName::parse(name, self.revision.as_deref())
    }
}

/// What to embed, and how.
#[derive(Debug, ClapArgs)]
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

    /// The model: a name from `prior-embed models`, owner/name[@revision] on the hub, or a folder [default: emoji]
    #[arg(short, long, value_name = "NAME")]
    pub model: Option<String>,

    /// A LoRA for the prior, a file or a folder, merged with this strength [default: 1]; may be repeated
    #[arg(long, value_name = "PATH[:SCALE]")]
    pub lora: Vec<LoraOption>,

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
}

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
    pub fn wanted(self) -> Precision {
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
