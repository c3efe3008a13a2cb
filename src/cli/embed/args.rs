//! The options of embedding, as clap parses them.

use crate::cli::args::{at_least_one, text};
use crate::cli::output_args::OutputArgs;
use crate::cli::prior_args::{DeviceArgs, ModelArgs, SamplingArgs, SchedulerArgs};
use crate::cli::values::{BatchSize, on_error, prompt_format, seed_by, shard, share};
use crate::job::{OnError, Seeding};
use crate::output::shard::Shard;
use crate::rows::{Item, PromptFormat};
use clap::builder::TypedValueParser;
use std::path::PathBuf;

/// What to embed, and how.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Prompt; may be repeated
    ///
    /// It may begin with a dash: -p "-5 degrees". One that looks like an option is given as --prompt=--text.
    #[arg(help_heading = "Input", short, long, value_name = "TEXT", value_parser = text())]
    pub(in crate::cli) prompt: Vec<String>,

    /// Files of prompts: .txt (one a line), .jsonl, .csv, .tsv or .parquet; folders, patterns, `-` for standard input
    ///
    /// Rows are numbered through, file after file, in the order given; what a folder or a pattern like "captions/*.csv"
    /// stands for is sorted by path. hf://datasets/owner/name[@revision]/path is on the hub. All formats but Parquet may
    /// be compressed with gzip or zstd. See `prior-embed help formats`.
    #[arg(help_heading = "Input", short = 'f', long, value_name = "FILE", num_args = 1..)]
    pub(in crate::cli) prompts: Vec<PathBuf>,

    /// Text conditions in place of prompts, .npz or .safetensors: text_embeds, text_encoder_hidden_states, text_mask
    ///
    /// Embeddings and states that were made elsewhere, (n, d), (n, tokens, width) and (n, tokens): weighted or mixed
    /// prompts, for example. Arrays named negative_… of n rows or one stand in the place of the negative prompt. See
    /// `prior-embed help formats`.
    #[arg(help_heading = "Input", long, value_name = "FILE",
          conflicts_with_all = ["prompt", "prompts", "format_in", "prompt_column", "no_header", "seed_by"])]
    pub(super) conditions: Option<PathBuf>,

    /// Format of the prompts if not by extension: txt, jsonl, csv, tsv or parquet
    #[arg(help_heading = "Input", long, value_name = "NAME", hide_possible_values = true,
          value_parser = prompt_format())]
    pub(super) format_in: Option<&'static PromptFormat>,

    /// Column, or key in .jsonl, of the prompts [default: prompt, or the only one]
    #[arg(help_heading = "Input", long, value_name = "NAME", value_parser = text())]
    pub(super) prompt_column: Option<String>,

    /// The .csv or .tsv file has no header line; --prompt-column is then a number, from 1
    #[arg(help_heading = "Input", long)]
    pub(super) no_header: bool,

    /// Start from the embedding of a picture, or a row of a .npy, .npz or .safetensors file (embs.npy[3]), not from noise
    ///
    /// As diffusers' KandinskyV22PriorEmb2EmbPipeline; needs the scheduler unclip. With --strength, a column or key
    /// `image` in a file of --prompts gives a prompt its own, as a path from the folder of that file.
    #[arg(help_heading = "Input", long, value_name = "ITEM", conflicts_with = "latents",
          value_parser = text().try_map(|text| Item::parse_image(&text)))]
    pub(super) image: Option<Item>,

    /// What to do with a row that cannot be used: fail, or skip
    ///
    /// `fail` refuses a file before any work begins. `skip` reports the row and writes zeros in its place, so that
    /// every other row keeps its number and its seed. See `prior-embed help bad-rows`.
    #[arg(help_heading = "Input", long, value_name = "WHAT", default_value = "fail", hide_possible_values = true,
          value_parser = on_error())]
    pub(super) on_error: OnError,

    #[command(flatten)]
    pub(super) output: OutputArgs,

    /// Output file of the CLIP text embeddings, as they are before the prior
    ///
    /// .npz, .safetensors, .jsonl, .parquet and --out-dir hold them too if this has the name of the output.
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub(super) text_out: Option<PathBuf>,

    /// Output file of the dot products of each row's draws with its text embedding, (rows, N)
    ///
    /// The largest in a row is that of the draw which --best-of keeps.
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub(super) scores: Option<PathBuf>,

    /// Continue an interrupted run with the same settings
    ///
    /// The output has the bytes of a run that was never interrupted. See `prior-embed help resuming`.
    #[arg(help_heading = "Output", long)]
    pub(super) resume: bool,

    /// Compute only share I of N of the rows, I from 1 to N; `prior-embed merge` joins files, and a folder needs no merge
    #[arg(help_heading = "Output", long, value_name = "I/N", value_parser = shard)]
    pub(super) shard: Option<Shard>,

    /// Replace an existing output
    #[arg(help_heading = "Output", long)]
    pub(super) overwrite: bool,

    /// Write what the embeddings were made of to this file: hashes of model and prompts, versions, settings, as JSON
    ///
    /// It has no times: the same run gives the same bytes. .safetensors outputs hold it as metadata too, and merge passes
    /// it on. `prior-embed score` finds it by the name OUT.provenance.json. See `prior-embed help formats`.
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub(super) provenance: Option<PathBuf>,

    /// Write a JSON report on time and memory to this file
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub(super) stats: Option<PathBuf>,

    #[command(flatten)]
    pub(super) model: ModelArgs,

    #[command(flatten)]
    pub(in crate::cli) sampling: SamplingArgs,

    /// Make seeds of the prompts, not of their places: prompt
    ///
    /// A prompt's seed is the first 8 bytes of its SHA-256. See `prior-embed help seeds`.
    #[arg(help_heading = "Sampling", long, value_name = "WHAT", hide_possible_values = true, value_parser = seed_by(),
          conflicts_with_all = ["seed", "seed_layout"])]
    pub(super) seed_by: Option<Seeding>,

    /// How far to go from the image, 0 to 1: noise is added, and int(steps * S) steps are run [default: 0.3]
    ///
    /// At less than one step, the embedding of the image is written as it is.
    #[arg(help_heading = "Sampling", long, value_name = "S", allow_negative_numbers = true, value_parser = share,
          conflicts_with = "latents")]
    pub(super) strength: Option<f64>,

    /// Noise to start from, (rows, dim) in .npy, .npz or .safetensors, in place of what the generators draw first
    #[arg(help_heading = "Sampling", long, value_name = "FILE")]
    pub(super) latents: Option<PathBuf>,

    /// Rows may bring noise: keys or columns noise, negative_noise (base64 of float32), negative_seed
    ///
    /// Of one row, the noise to start from, or that and what each step adds. See `prior-embed help seeds`.
    #[arg(help_heading = "Sampling", long, conflicts_with_all = ["latents", "best_of", "conditions"])]
    pub(super) row_noise: bool,

    /// Embeddings per prompt; row = prompt index * K + sample index
    #[arg(help_heading = "Sampling", long, value_name = "K", default_value_t = 1, allow_negative_numbers = true,
          value_parser = at_least_one("a number of samples"))]
    pub(super) samples_per_prompt: usize,

    /// Draws of each row, of which the one with the largest dot product with the text embedding is kept
    ///
    /// As in section 2.2 of the unCLIP paper, which has two. Draw k of row r has seed S + r * N + k: they are what
    /// --samples-per-prompt K * N would give. .jsonl, .parquet and --out-dir hold the seed that was kept. See
    /// `prior-embed help seeds`.
    #[arg(help_heading = "Sampling", long, value_name = "N", default_value_t = 1, allow_negative_numbers = true,
          value_parser = at_least_one("a number of draws"))]
    pub(super) best_of: usize,

    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,

    #[command(flatten)]
    pub(super) device: DeviceArgs,

    /// Rows computed together; auto is up to 64, as far as memory allows
    #[arg(help_heading = "Computation", long, value_name = "N", default_value = "auto", allow_negative_numbers = true)]
    pub(super) batch_size: BatchSize,
}
