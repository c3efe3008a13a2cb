//! `prior-embed score EMBS`: cosines between embeddings and prompts or pictures, or the nearest rows of a bank.

mod table;
mod targets;

use super::args::{at_least_one, text};
use super::context::Context;
use super::stdout;
use crate::bad_input;
use crate::output::provenance::{self, model_hash};
use crate::rows::Bank;
use crate::search::{Block, Direction, Hit, Search};
use anyhow::Result;
use clap::ArgGroup;
use serde_json::Value;
use std::path::{Path, PathBuf};
use table::{Columns, Printer, Scored, Target};
use targets::{EncoderArgs, Queries, encode};

/// Rows that are scored together: a search reads the whole bank for them.
const QUERY_ROWS: usize = 1024;

/// Rows to score that threads are worth while for. The search for fewer is bound by reading the bank, and threads that
/// share blocks wait for each other at each.
const THREADED_ROWS: usize = 16;

/// Rows of a bank that are multiplied at a time: what a processor's cache holds.
const BLOCK_ROWS: usize = 1024;

/// Rows of a bank that are named, unless `--top` says otherwise.
const TOP: usize = 5;

/// Compare embeddings with prompts or pictures, or find the nearest rows of a bank
///
/// Prints cosines: a table on a terminal, elsewhere a line for each with tabs between the row, what it is compared with,
/// and the cosine. A row of zeros has the cosine 0 with everything. Prompts are compared by their CLIP text embeddings, pictures by
/// their image embeddings. To search with what the prior makes of a prompt, embed it first, and give the file as EMBS or
/// BANK.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("with").required(true).args(["prompt", "image", "bank"]))]
pub(super) struct Args {
    /// Embeddings: .npy, .npz, .safetensors, .parquet, a folder of numbered files; `-` for .npy or .npz on standard input
    #[arg(value_name = "EMBS")]
    embeds: PathBuf,

    /// Prompts to compare with
    #[arg(short, long, value_name = "TEXT", value_parser = text(), num_args = 1..)]
    prompt: Vec<String>,

    /// Pictures to compare with
    #[arg(long, value_name = "FILE", num_args = 1..)]
    image: Vec<PathBuf>,

    /// Bank to search, in the same formats as EMBS; it may be larger than memory
    #[arg(long = "in", value_name = "BANK")]
    bank: Option<PathBuf>,

    /// Only the K nearest, the nearest first [default: all in their order, or 5 rows of a bank]
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = at_least_one("a number of rows"))]
    top: Option<usize>,

    /// Print JSON, a line a row
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    encoders: EncoderArgs,
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
            args.encoders.warn_unused("a bank is searched without a model");
            let bank = Bank::open(path)?;
            warn_of_models((&embeds, &args.embeds), (&bank, path));
            let columns = Columns::Rows { has_labels: bank.has_labels() };
            search(&embeds, &bank, args.top.unwrap_or(TOP), &mut Printer::new(args.json, columns))?;
        }
        None if args.image.is_empty() => compare(Queries::Prompts(&args.prompt), &embeds, args, context)?,
        None => compare(Queries::Pictures(&args.image), &embeds, args, context)?,
    }
    Ok(0)
}

/// Scores every row with every query.
fn compare(queries: Queries, embeds: &Bank, args: &Args, context: &Context) -> Result<()> {
    let targets = encode(queries, embeds, &args.embeds, &args.encoders, context)?;
    let columns = match queries {
        Queries::Prompts(_) => Columns::Prompts,
        Queries::Pictures(_) => Columns::Pictures,
    };
    let mut printer = Printer::new(args.json, columns);
    let top = args.top.unwrap_or(usize::MAX);
    embeds.for_each_block(QUERY_ROWS, &mut |block| {
        let labels = printer.labels(embeds, block.first..block.first + block.rows() as u64)?;
        let rows = directions(embeds, block)?.into_iter().zip(block.first..).map(|(direction, row)| {
            let scores = targets.iter().zip(0..);
            let mut hits: Vec<Hit> =
                scores.map(|((_, target), place)| Hit { row: place, score: direction.cosine(target) }).collect();
            if args.top.is_some() {
                hits.sort_by(|one, other| other.cmp(one));
            }
            let nearest = hits.iter().take(top).map(|hit| (targets[hit.row as usize].0, hit.score));
            Scored { row, label: labels.get(&row), targets: nearest.collect() }
        });
        printer.print(&rows.collect::<Vec<_>>())
    })
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
