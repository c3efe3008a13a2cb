//! `prior-embed score EMBS`: cosines between embeddings and prompts, or the nearest rows of a bank.

mod table;

use super::args::{RevisionArgs, at_least_one, text, warn_no_effect};
use super::context::Context;
use super::progress::FetchProgress;
use super::stdout;
use crate::bad_input;
use crate::error::Component;
use crate::hub::{Hub, Needs};
use crate::output::provenance::{self, files_of, model_hash};
use crate::pipeline::Pipeline;
use crate::pipeline::builtin::EMOJI;
use crate::rows::Bank;
use crate::search::{Block, Direction, Hit, Search};
use crate::weights::checkpoint::Placement;
use crate::weights::precision::Precision;
use anyhow::Result;
use clap::ArgGroup;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use table::{Columns, Printer, Scored, Target};
use tch::Device;

/// Rows that are scored together: a search reads the whole bank for them.
const QUERY_ROWS: usize = 1024;

/// Rows to score that threads are worth while for. The search for fewer is bound by reading the bank, and threads that
/// share blocks wait for each other at each.
const THREADED_ROWS: usize = 16;

/// Rows of a bank that are multiplied at a time: what a processor's cache holds.
const BLOCK_ROWS: usize = 1024;

/// Rows of a bank that are named, unless `--top` says otherwise.
const TOP: usize = 5;

/// Compare embeddings with prompts, or find the nearest rows of a bank
///
/// Prints cosines: a table on a terminal, elsewhere a line for each with tabs between the row, what it is compared with,
/// and the cosine. A row of zeros has the cosine 0 with everything. Prompts are compared by their CLIP text embeddings. To
/// search with what the prior makes of a prompt, embed it first, and give the file as EMBS or BANK.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("with").required(true).args(["prompt", "bank"]))]
pub(super) struct Args {
    /// Embeddings: .npy, .npz, .safetensors, .parquet, a folder of numbered files; `-` for .npy or .npz on standard input
    #[arg(value_name = "EMBS")]
    embeds: PathBuf,

    /// Prompts to compare with
    #[arg(short, long, value_name = "TEXT", value_parser = text(), num_args = 1..)]
    prompt: Vec<String>,

    /// Bank to search, in the same formats as EMBS; it may be larger than memory
    #[arg(long = "in", value_name = "BANK")]
    bank: Option<PathBuf>,

    /// Only the K nearest, the nearest first [default: all prompts in their order, or 5 rows of a bank]
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = at_least_one("a number of rows"))]
    top: Option<usize>,

    /// Print JSON, a line a row
    #[arg(long)]
    json: bool,

    /// Model whose text encoder encodes the prompts: the one that EMBS are of [default: emoji]
    #[arg(help_heading = "Model", short, long, value_name = "NAME", value_parser = text())]
    model: Option<String>,

    /// Text encoder from elsewhere, which may be a whole CLIPModel; the tokenizer stays that of --model
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    text_encoder: Option<String>,

    /// Tokenizer from elsewhere
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    tokenizer: Option<String>,

    #[command(flatten)]
    revision: RevisionArgs,
}

/// Prints the scores.
///
/// # Errors
/// [`crate::bad_input::BadInput`] for what the user can fix, and whatever goes wrong on the way.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    stdout::check()?;
    if args.embeds.as_os_str() == "-" && args.bank.as_ref().is_some_and(|bank| bank.as_os_str() == "-") {
        return Err(bad_input!("EMBS and BANK are both standard input; write one of them to a file"));
    }
    let embeds = Bank::open(&args.embeds)?;
    match &args.bank {
        Some(path) => {
            let model = [
                ("--model", args.model.is_some()),
                ("--text-encoder", args.text_encoder.is_some()),
                ("--tokenizer", args.tokenizer.is_some()),
                ("--revision", args.revision.revision.is_some()),
            ];
            for (option, _) in model.into_iter().filter(|(_, is_given)| *is_given) {
                warn_no_effect(option, "a bank is searched without a model");
            }
            let bank = Bank::open(path)?;
            warn_of_models((&embeds, &args.embeds), (&bank, path));
            let columns = Columns::Rows { has_labels: bank.has_labels() };
            search(&embeds, &bank, args.top.unwrap_or(TOP), &mut Printer::new(args.json, columns))?;
        }
        None => compare(&embeds, args, context, &mut Printer::new(args.json, Columns::Prompts))?,
    }
    Ok(0)
}

/// Scores every row with every prompt.
fn compare(embeds: &Bank, args: &Args, context: &Context, printer: &mut Printer) -> Result<()> {
    let prompts = prompts(args, embeds, context)?;
    let top = args.top.unwrap_or(usize::MAX);
    embeds.for_each_block(QUERY_ROWS, &mut |block| {
        let labels = printer.labels(embeds, block.first..block.first + block.rows() as u64)?;
        let rows = directions(embeds, block)?.into_iter().zip(block.first..).map(|(direction, row)| {
            let scores = prompts.iter().zip(0..);
            let mut hits: Vec<Hit> =
                scores.map(|((_, prompt), place)| Hit { row: place, score: direction.cosine(prompt) }).collect();
            if args.top.is_some() {
                hits.sort_by(|one, other| other.cmp(one));
            }
            let targets = hits.iter().take(top).map(|hit| (Target::Prompt(&prompts[hit.row as usize].0), hit.score));
            Scored { row, label: labels.get(&row), targets: targets.collect() }
        });
        printer.print(&rows.collect::<Vec<_>>())
    })
}

/// The prompts and the directions of their text embeddings.
fn prompts(args: &Args, embeds: &Bank, context: &Context) -> Result<Vec<(String, Direction)>> {
    let components = [(Component::TextEncoder, &args.text_encoder), (Component::Tokenizer, &args.tokenizer)];
    let components: Vec<(Component, &str)> =
        components.into_iter().filter_map(|(component, name)| Some((component, name.as_deref()?))).collect();
    let source = args.revision.model(args.model.as_deref().unwrap_or(EMOJI), &components, &context.hub)?;
    let needs = Needs { prior: false, ..Needs::ALL };
    let model = Hub::new(context.hub.clone()).open(&source, needs, &mut FetchProgress::new(&context.screen))?;
    let encode = || -> Result<Vec<(String, Direction)>> {
        let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
        let mut pipeline = Pipeline::open_with(&model.folder, &model.replacements(), placement, Default::default())?;
        let (dim, found, name) = (pipeline.text_embedding_dim(), embeds.dim(), embeds.name());
        if found != dim {
            return Err(bad_input!(
                "{name} has rows of {found} numbers, and the text embeddings of {} have {dim}; name the --model that they \
                 are of",
                pipeline.folder()
            ));
        }
        warn_of_text_encoder(args, embeds, &pipeline)?;
        let texts: Vec<&str> = args.prompt.iter().map(String::as_str).collect();
        let text_embeds = pipeline.text_embeds(&texts, &mut ())?;
        let direction = |(text, embed): (&&str, ndarray::ArrayView1<f32>)| {
            let direction = Direction::of(embed.iter().map(|value| f64::from(*value)).collect());
            let direction =
                direction.ok_or_else(|| bad_input!("the text embedding of {text:?} has NaN or infinity"))?;
            Ok((text.to_string(), direction))
        };
        texts.iter().zip(text_embeds.rows()).map(direction).collect()
    };
    encode().map_err(|error| model.advise(error))
}

/// Warns if embeddings were made with another text encoder, as far as their provenance tells.
fn warn_of_text_encoder(args: &Args, embeds: &Bank, pipeline: &Pipeline) -> Result<()> {
    let Some(provenance) = provenance::find(&args.embeds) else { return Ok(()) };
    let is_weights = |path: &String| path.starts_with("text_encoder/") && !path.ends_with("/config.json");
    let theirs: BTreeSet<String> =
        files_of(&provenance).into_iter().filter(|(path, _)| is_weights(path)).map(|(_, hash)| hash).collect();
    if !theirs.is_empty() && theirs != pipeline.text_encoder_hashes()?.into_values().collect() {
        let (name, folder) = (embeds.name(), pipeline.folder());
        log::warn!(
            "{name} was made with another text encoder than that of {folder}, says its provenance; its cosines may mean \
             nothing"
        );
    }
    Ok(())
}

/// Warns if embeddings and bank were made with different models, as far as their provenances tell.
fn warn_of_models(embeds: (&Bank, &Path), bank: (&Bank, &Path)) {
    let [one, other] = [embeds.1, bank.1].map(provenance::find);
    let hash = |provenance: &Option<Value>| provenance.as_ref().and_then(model_hash).map(str::to_string);
    if let (Some(one), Some(other)) = (hash(&one), hash(&other))
        && one != other
    {
        let (name, bank) = (embeds.0.name(), bank.0.name());
        log::warn!("{name} and {bank} are of different models, say their provenances; their cosines may mean nothing");
    }
}

/// Finds the nearest rows of a bank for every row.
fn search(embeds: &Bank, bank: &Bank, top: usize, printer: &mut Printer) -> Result<()> {
    if embeds.dim() != bank.dim() {
        let (name, other, dim, other_dim) = (embeds.name(), bank.name(), embeds.dim(), bank.dim());
        return Err(bad_input!(
            "{name} has rows of {dim} numbers and {other} of {other_dim}: they are of different models, and not compared"
        ));
    }
    let mut was_told = false;
    embeds.for_each_block(QUERY_ROWS, &mut |block| {
        if block.rows() < THREADED_ROWS {
            tch::set_num_threads(1);
        }
        let mut search = Search::new(directions(embeds, block)?, top)?;
        bank.for_each_block(BLOCK_ROWS, &mut |block| search.add(block))?;
        let (found, unusable) = search.finish();
        if let Some(first) = unusable.first().filter(|_| !std::mem::replace(&mut was_told, true)) {
            let (name, count) = (bank.name(), unusable.len());
            log::warn!("{name}: {count} rows with NaN or infinity are left out, the first of them row {first}");
        }
        let of_bank = bank.labels(&found.iter().flatten().map(|hit| hit.row).collect())?;
        let labels = printer.labels(embeds, block.first..block.first + found.len() as u64)?;
        let target = |hit: &Hit| (Target::Row(hit.row, of_bank.get(&hit.row)), hit.score);
        let rows = found.iter().zip(block.first..).map(|(hits, row)| Scored {
            row,
            label: labels.get(&row),
            targets: hits.iter().map(target).collect(),
        });
        printer.print(&rows.collect::<Vec<_>>())
    })
}

/// The directions of rows to score.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if one has NaN or infinity.
fn directions(embeds: &Bank, block: &Block) -> Result<Vec<Direction>> {
    let direction = |place: usize| {
        let (row, name) = (block.first + place as u64, embeds.name());
        block.direction(place).ok_or_else(|| bad_input!("row {row} of {name} has NaN or infinity; make it again"))
    };
    (0..block.rows()).map(direction).collect()
}
