//! The options of embedding, as clap parses them.

use crate::cli::args::{ComponentArgs, RevisionArgs, TargetArgs, at_least_one, text};
use crate::cli::values::{
    BatchSize, DeviceName, Dtype, InversionOption, LoraOption, SchedulerName, finite, on_error, output_dtype,
    prompt_format, scheduler, seed, seed_by, seed_layout, shard,
};
use crate::job::{OnError, Seeding};
use crate::output::OutputDtype;
use crate::output::shard::Shard;
use crate::rows::PromptFormat;
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

    /// File of prompts: .txt (one a line), .jsonl, .csv, .tsv or .parquet; `-` for standard input
    ///
    /// All formats but Parquet may be compressed with gzip or zstd. See `prior-embed help formats`.
    #[arg(help_heading = "Input", short = 'f', long, value_name = "FILE", action = clap::ArgAction::Append)]
    pub(super) prompts: Option<PathBuf>,

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

    /// What to do with a row that cannot be used: fail, or skip
    ///
    /// `fail` refuses a file before any work begins. `skip` reports the row and writes zeros in its place, so that
    /// every other row keeps its number and its seed. See `prior-embed help bad-rows`.
    #[arg(help_heading = "Input", long, value_name = "WHAT", default_value = "fail", hide_possible_values = true,
          value_parser = on_error())]
    pub(super) on_error: OnError,

    #[command(flatten)]
    pub(super) target: TargetArgs,

    /// Number type of the output: f32, or f16 at half the size
    #[arg(help_heading = "Output", long, value_name = "NAME", default_value = "f32", hide_possible_values = true,
          value_parser = output_dtype())]
    pub(super) out_dtype: OutputDtype,

    /// Scale every embedding to length 1
    #[arg(help_heading = "Output", long)]
    pub(super) normalize: bool,

    /// Output file of the negative embeddings that decoders take; .npz and .safetensors hold them anyway
    ///
    /// .jsonl, .parquet and --out-dir hold both if this has the name of the output. Without a negative prompt, the
    /// negative embedding is that of a black image, which needs the model's image encoder or a file
    /// zero_image_embed.safetensors in the model.
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub(super) negative_out: Option<PathBuf>,

    /// Output file of the CLIP text embeddings, as they are before the prior
    ///
    /// .npz, .safetensors, .jsonl, .parquet and --out-dir hold them too if this has the name of the output.
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub(super) text_out: Option<PathBuf>,

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

    /// Model: a name from `prior-embed models`, owner/name[@revision] on the hub, or a folder [default: emoji]
    ///
    /// See `prior-embed help models`.
    #[arg(help_heading = "Model", short, long, value_name = "NAME", value_parser = text())]
    pub(super) model: Option<String>,

    #[command(flatten)]
    pub(super) components: ComponentArgs,

    /// Image encoder from elsewhere, which may be a whole CLIPModel
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    pub(super) image_encoder: Option<String>,

    /// LoRA for the prior, a file or a folder, and its strength [default: 1]; may be repeated
    #[arg(help_heading = "Model", long, value_name = "PATH[:SCALE]",
          value_parser = text().try_map(|text| text.parse::<LoraOption>()))]
    pub(super) lora: Vec<LoraOption>,

    /// Learned token (textual inversion), a file or a folder, and its name if not the file's; may be repeated
    ///
    /// Files of diffusers (learned_embeds.safetensors or .bin) and A1111 (.pt). A token of several vectors stands for
    /// all of them.
    #[arg(help_heading = "Model", long, value_name = "PATH[:TOKEN]",
          value_parser = text().try_map(|text| text.parse::<InversionOption>()))]
    pub(super) textual_inversion: Vec<InversionOption>,

    #[command(flatten)]
    pub(super) revision: RevisionArgs,

    /// Negative prompt: what guidance steers away from
    #[arg(help_heading = "Sampling", short, long, value_name = "TEXT", value_parser = text(),
          action = clap::ArgAction::Append)]
    pub(in crate::cli) negative_prompt: Option<String>,

    /// What negative embeddings are of, in place of the negative prompt: a second run of the prior, for the decoder
    ///
    /// The negative_prompt of Kandinsky's interpolate, beside which --negative-prompt is its negative_prior_prompt.
    #[arg(help_heading = "Sampling", long, value_name = "TEXT", value_parser = text())]
    pub(super) decoder_negative_prompt: Option<String>,

    /// Denoising steps; a one-step prior takes none [default: 25]
    #[arg(help_heading = "Sampling", long, value_name = "N", allow_negative_numbers = true,
          value_parser = at_least_one("a number of steps"))]
    pub(in crate::cli) steps: Option<usize>,

    /// Scale of classifier-free guidance; 1 and below turn it off, a one-step prior takes none [default: 4]
    #[arg(help_heading = "Sampling", long, value_name = "G", allow_negative_numbers = true, value_parser = finite)]
    pub(super) guidance_scale: Option<f64>,

    /// Seed: row r of the output draws its noise with seed S + r
    ///
    /// See `prior-embed help seeds`.
    #[arg(help_heading = "Sampling", long, value_name = "S", default_value_t = 0, allow_negative_numbers = true,
          value_parser = seed)]
    pub(super) seed: u64,

    /// Which rows a generator draws for: row, each from its own, or call, all at once from one seeded S
    ///
    /// `call` gives the noise of a call in Python with generator=torch.Generator().manual_seed(S). See
    /// `prior-embed help seeds`.
    #[arg(help_heading = "Sampling", long, value_name = "NAME", default_value = "row", hide_possible_values = true,
          value_parser = seed_layout(), conflicts_with = "seed_by")]
    pub(super) seed_layout: Seeding,

    /// Make seeds of the prompts, not of their places: prompt
    ///
    /// A prompt's seed is the first 8 bytes of its SHA-256. See `prior-embed help seeds`.
    #[arg(help_heading = "Sampling", long, value_name = "WHAT", hide_possible_values = true, value_parser = seed_by(),
          conflicts_with = "seed")]
    pub(super) seed_by: Option<Seeding>,

    /// Noise to start from, (rows, dim) in .npy, .npz or .safetensors, in place of what the generators draw first
    #[arg(help_heading = "Sampling", long, value_name = "FILE")]
    pub(super) latents: Option<PathBuf>,

    /// Embeddings per prompt; row = prompt index * K + sample index
    #[arg(help_heading = "Sampling", long, value_name = "K", default_value_t = 1, allow_negative_numbers = true,
          value_parser = at_least_one("a number of samples"))]
    pub(super) samples_per_prompt: usize,

    /// Scheduler: auto (the model's own), unclip, ddpm, ddim, dpm-solver++, euler, euler-ancestral or heun
    ///
    /// Another than the model's own is made as diffusers makes it, with `from_config` of the model's configuration. See
    /// `prior-embed help schedulers`.
    #[arg(help_heading = "Sampling", long, value_name = "NAME", default_value = "auto", hide_possible_values = true,
          value_parser = scheduler())]
    pub(super) scheduler: SchedulerName,

    /// Share of DDPM's noise that a step of ddim adds, 0 to 1 [default: 0]
    #[arg(help_heading = "Sampling", long, value_name = "ETA", allow_negative_numbers = true, value_parser = finite)]
    pub(super) eta: Option<f64>,

    /// Order of dpm-solver++: 1, 2 or 3 [default: the model's, or 2]
    #[arg(help_heading = "Sampling", long, value_name = "N", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(1..=3))]
    pub(super) solver_order: Option<i64>,

    /// Have dpm-solver++ solve the stochastic differential equation, whose steps add noise
    #[arg(help_heading = "Sampling", long)]
    pub(super) sde: bool,

    /// Device: auto, cpu, cuda, cuda:I or mps
    #[arg(help_heading = "Computation", long, value_name = "NAME", default_value = "auto")]
    pub(super) device: DeviceName,

    /// Number type to compute in: f32, bf16, f16 or int8; auto is f32, which gives diffusers' numbers
    ///
    /// int8 is for the CPU and f16 for GPUs. On a processor without instructions for a 16-bit type, f32 is used, with a
    /// warning.
    #[arg(
        help_heading = "Computation",
        long,
        value_name = "NAME",
        default_value = "auto",
        hide_possible_values = true
    )]
    pub(super) dtype: Dtype,

    /// CPU threads [default: all cores]
    ///
    /// A small model runs that many pipelines of one thread each, as far as memory allows.
    #[arg(help_heading = "Computation", long, value_name = "N", allow_negative_numbers = true,
          value_parser = at_least_one("a number of threads"))]
    pub(super) threads: Option<usize>,

    /// Rows computed together; auto is up to 64, as far as memory allows
    #[arg(help_heading = "Computation", long, value_name = "N", default_value = "auto", allow_negative_numbers = true)]
    pub(super) batch_size: BatchSize,
}
