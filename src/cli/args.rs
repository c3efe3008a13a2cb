//! The options, as clap parses them. Each command's module turns its own into what the library takes (those for embedding,
//! [`super::embed`] and [`super::outputs`]); nothing beyond the command line looks here.

mod commands;
mod line;
mod values;

pub use commands::{ConvertArgs, DownloadArgs, InfoArgs, MergeArgs, ModelsArgs};
pub use values::{BatchSize, DeviceName, Dtype, LoraOption, SchedulerName};

use crate::hub::{HubOptions, ModelName};
use crate::job::OnError;
use crate::output::shard::Shard;
use crate::output::{OutputDtype, OutputFormat};
use crate::rows::PromptFormat;
use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Turns text into CLIP image embeddings with a diffusion prior.
#[derive(Debug, Parser)]
#[command(name = "prior-embed", version, max_term_width = 110, args_override_self = true)]
#[command(arg_required_else_help = true, subcommand_negates_reqs = true)]
#[command(override_usage = "prior-embed -p <TEXT> -o <FILE> [OPTIONS]\n       prior-embed <COMMAND>")]
pub struct CommandLine {
    /// What to do, if it is something else than to embed.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// What to embed; beside a command, only its global options may be given.
    #[command(flatten)]
    pub embed: Args,
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
    /// Join the outputs of all shards of a run, and check that nothing is missing
    Merge(MergeArgs),
}

/// Where models come from.
#[derive(Debug, ClapArgs)]
pub struct HubArgs {
    /// A branch, tag or commit of a model on the hub [default: main]
    #[arg(long, value_name = "NAME", value_parser = text())]
    pub revision: Option<String>,

    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Where models are kept.
#[derive(Debug, ClapArgs)]
pub struct CacheArgs {
    /// Where downloads are kept [default: the cache of Python's huggingface_hub]
    #[arg(long, value_name = "FOLDER", global = true)]
    pub cache_dir: Option<PathBuf>,

    /// Never touch the network; a model must be on this machine
    #[arg(long, global = true)]
    pub offline: bool,
}

/// Where embeddings go.
#[derive(Debug, ClapArgs)]
pub struct TargetArgs {
    /// Where the embeddings go: a .npy, .npz, .safetensors, .jsonl or .parquet file, `-` for standard output
    #[arg(short, long, value_name = "FILE", required_unless_present = "out_dir")]
    pub out: Option<PathBuf>,

    /// In place of --out: a folder of numbered files, as clip-retrieval and embedding-reader have it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "format"])]
    pub out_dir: Option<PathBuf>,

    /// Rows in each of these files [default: 1000000]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = at_least_one_row)]
    pub rows_per_file: Option<u64>,

    /// Output format, npy, npz, safetensors, jsonl or parquet, if the file's extension does not tell
    #[arg(long, value_name = "NAME", value_parser = output_format)]
    pub format: Option<OutputFormat>,
}

impl TargetArgs {
    /// The path and its format.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there is no path, or its name does not tell the format.
    pub fn target(&self) -> anyhow::Result<(PathBuf, OutputFormat)> {
        if self.rows_per_file.is_some() && self.out_dir.is_none() {
            idle("--rows-per-file", "it counts the rows in each file of --out-dir");
        }
        match (&self.out, &self.out_dir) {
            (_, Some(folder)) => Ok((folder.clone(), OutputFormat::Folder)),
            (Some(file), None) if file.is_dir() => Err(crate::bad_input!(
                "{:?} is a folder; give a file name, or --out-dir for a folder of numbered files",
                file.display().to_string()
            )),
            (Some(file), None) => Ok((file.clone(), self.format.map_or_else(|| OutputFormat::of_path(file), Ok)?)),
            (None, None) => Err(crate::bad_input!("no output; give --out FILE or --out-dir DIR")),
        }
    }

    /// Rows in each file of a folder.
    pub fn rows_per_file(&self) -> u64 {
        self.rows_per_file.unwrap_or(1_000_000)
    }
}

/// How much is said on standard error.
#[derive(Debug, ClapArgs)]
pub struct TalkArgs {
    /// Nothing on standard error but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// More on standard error, and the causes of errors
    #[arg(short, long, global = true)]
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
            Some(Command::Merge(args)) => &args.talk,
            None => &self.embed.talk,
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
        let model = ModelName::parse(name, self.revision.as_deref())?;
        if self.cache.cache_dir.is_some() && !matches!(model, ModelName::Hub(_)) {
            idle("--cache-dir", &format!("model {name:?} is not on the hub"));
        }
        Ok(model)
    }
}

/// What to embed, and how.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A prompt; may be repeated
    #[arg(short, long, value_name = "TEXT", value_parser = text())]
    pub prompt: Vec<String>,

    /// Prompts from a .txt, .jsonl, .csv, .tsv or .parquet file, also .gz or .zst; `-` for standard input
    #[arg(short = 'f', long, value_name = "FILE", action = ArgAction::Append)]
    pub prompts: Option<PathBuf>,

    /// Format of the prompts, txt, jsonl, csv, tsv or parquet, if the file's extension does not tell
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    pub format_in: Option<PromptFormat>,

    /// The column, or the key in .jsonl, that holds the prompts [default: prompt, or the only one]
    #[arg(long, value_name = "NAME", value_parser = text())]
    pub prompt_column: Option<String>,

    /// The .csv or .tsv file has no header line; --prompt-column is then a number, from 1
    #[arg(long)]
    pub no_header: bool,

    /// What becomes of a row that cannot be used: fail, or skip, which reports it and makes its embedding zeros
    #[arg(long, value_name = "WHAT", default_value = "fail", hide_possible_values = true)]
    pub on_error: OnError,

    #[command(flatten)]
    pub target: TargetArgs,

    /// Type of the numbers written: f32, or f16 in half the space
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = output_dtype(), hide_possible_values = true)]
    pub out_dtype: OutputDtype,

    /// Bring every embedding to length one
    #[arg(long)]
    pub normalize: bool,

    /// Go on where an earlier run with the same settings stopped
    #[arg(long)]
    pub resume: bool,

    /// Compute the share I of N of the rows, I from 1 to N; prior-embed merge joins the outputs
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub shard: Option<Shard>,

    /// The model: a name from `prior-embed models`, owner/name[@revision] on the hub, or a folder [default: emoji]
    #[arg(short, long, value_name = "NAME", value_parser = text())]
    pub model: Option<String>,

    /// A LoRA for the prior, a file or a folder, merged with this strength [default: 1]; may be repeated
    #[arg(long, value_name = "PATH[:SCALE]", value_parser = text().try_map(|text| text.parse::<LoraOption>()))]
    pub lora: Vec<LoraOption>,

    /// What the embeddings are to lead away from
    #[arg(short, long, value_name = "TEXT", value_parser = text(), action = ArgAction::Append)]
    pub negative_prompt: Option<String>,

    /// Where the embeddings that decoders take as negative go; .npz and .safetensors have them in the same file anyway
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

    /// Scheduler: auto (what the model ships), unclip or ddpm, which must be what it ships
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

    #[command(flatten)]
    pub hub: HubArgs,

    #[command(flatten)]
    pub talk: TalkArgs,
}

/// Says that an option was given which changes nothing, and why.
pub fn idle(option: &str, why: &str) {
    log::warn!("{option} has no effect: {why}");
}

/// Text, refused with the option's name if it is none.
fn text() -> impl TypedValueParser<Value = String> {
    let not_text = |_: OsString| "it is not UTF-8; set the terminal's or the script's encoding to UTF-8";
    OsStringValueParser::new().try_map(move |value| value.into_string().map_err(not_text))
}

fn at_least_one(what: &'static str) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse::<usize>() {
        Ok(number) if number >= 1 && number <= i32::MAX as usize => Ok(number),
        _ => Err(format!("it must be {what} between 1 and {}", i32::MAX)),
    }
}

fn at_least_one_row(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|rows| *rows >= 1).ok_or_else(|| "it must be a number of rows, 1 or more".into())
}

fn output_format(text: &str) -> Result<OutputFormat, String> {
    OutputFormat::from_name(text).ok_or_else(|| "it must be npy, npz, safetensors, jsonl or parquet".into())
}

fn output_dtype() -> impl TypedValueParser<Value = OutputDtype> {
    let names = PossibleValuesParser::new(OutputDtype::ALL.map(OutputDtype::name));
    names.try_map(|name| OutputDtype::from_name(&name).ok_or("it must be f32 or f16"))
}

fn shard(text: &str) -> Result<Shard, String> {
    let parse = || {
        let (index, count) = text.split_once('/')?;
        let shard = Shard { index: index.parse().ok()?, count: count.parse().ok()? };
        (1..=shard.count).contains(&shard.index).then_some(shard)
    };
    parse().ok_or_else(|| "it must be I/N with I between 1 and N, for example 1/8".into())
}

fn finite(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| "it must be a finite number".into())
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("it must be a whole number between 0 and {}", u64::MAX))
}
