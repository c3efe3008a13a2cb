//! The options of all that is no embedding.

use super::{CacheArgs, Dtype, HubArgs, TalkArgs, TargetArgs, text};
use clap::{Args as ClapArgs, ValueEnum};
use safetensors::tensor::Dtype as StoredDtype;
use std::path::PathBuf;

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
    #[arg(value_name = "NAME", value_parser = text())]
    pub model: String,

    /// Type to compute in later: f32, bf16, f16, int8; all but f32 take the smaller fp16 files if there are any
    #[arg(long, value_name = "NAME", default_value = "auto", hide_possible_values = true)]
    pub dtype: Dtype,

    /// Also what negative embeddings without a negative prompt need
    #[arg(long)]
    pub image_encoder: bool,

    /// Check what is here already by its hash, and download again what differs
    #[arg(long)]
    pub force: bool,

    #[command(flatten)]
    pub hub: HubArgs,

    #[command(flatten)]
    pub talk: TalkArgs,
}

/// `prior-embed info`.
#[derive(Debug, ClapArgs)]
pub struct InfoArgs {
    /// The model: a name from `prior-embed models`, owner/name[@revision], or a folder [default: emoji]
    #[arg(value_name = "NAME", value_parser = text())]
    pub name: Option<String>,

    /// The same, as all other commands have it
    #[arg(short, long, value_name = "NAME", value_parser = text(), conflicts_with = "name")]
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
    /// A model, or a prior alone: a .ckpt of Karlo's or Kandinsky 2.1's authors, .pt, .bin, .safetensors, or its folder
    #[arg(value_name = "SRC", value_parser = text())]
    pub source: String,

    /// The folder to make
    #[arg(value_name = "DST")]
    pub target: PathBuf,

    /// Type of the weights, f32, f16 or bf16; if not given, as they are
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    pub dtype: Option<WeightDtype>,

    /// For a prior alone: the model that the rest is taken from, and the configuration of a prior that has none beside it
    #[arg(long, value_name = "FOLDER", value_parser = text())]
    pub config: Option<String>,

    /// Replace a model that is there already
    #[arg(long)]
    pub overwrite: bool,

    #[command(flatten)]
    pub hub: HubArgs,

    #[command(flatten)]
    pub talk: TalkArgs,
}

/// `prior-embed merge`.
#[derive(Debug, ClapArgs)]
pub struct MergeArgs {
    /// The outputs of all shards, in any order
    #[arg(value_name = "PART", required = true)]
    pub parts: Vec<PathBuf>,

    #[command(flatten)]
    pub target: TargetArgs,

    /// Replace an output that is there already
    #[arg(long)]
    pub overwrite: bool,

    /// Of no use here, but global.
    #[command(flatten)]
    pub cache: CacheArgs,

    #[command(flatten)]
    pub talk: TalkArgs,
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
