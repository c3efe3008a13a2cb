//! `prior-embed encode-image FILE… --out FILE`: pictures to CLIP image embeddings.

mod stats;

use super::args::{RevisionArgs, text, warn_no_effect};
use super::context::Context;
use super::embed;
use super::output_args::{MainOutputArgs, check_picture, is_same_file};
use super::prior_args::DeviceArgs;
use super::progress::{FetchProgress, RunProgress};
use super::values::{BatchSize, on_error, shard};
use super::{reports, stdout};
use crate::bad_input;
use crate::diffusion::scheduler::SchedulerOptions;
use crate::error::Component;
use crate::hub::{Hub, Model, ModelSource, Needs};
use crate::job::{ComputeOptions, Job, JobProgress, OnError, Opener, Prompts, Report, RowOptions, Seeding, Stop};
use crate::nn::prior::PriorKind;
use crate::output::destination::Destination;
use crate::output::shard::Shard;
use crate::output::{WriteOptions, check, is_stream};
use crate::pipeline::builtin::EMOJI;
use crate::pipeline::{Pipeline, Settings as SamplingSettings};
use crate::rows::PictureInputs;
use crate::weights::checkpoint::Placement;
use crate::weights::precision::Precision;
use anyhow::Result;
use stats::{Settings, Stats};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Turn pictures into CLIP image embeddings
///
/// Those of the model's own image encoder, in the space that its prior's embeddings are in: JPEG, PNG, WebP, GIF, BMP
/// and TIFF, prepared as transformers does. See `prior-embed help pictures`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pictures, folders, .tar shards (webdataset), patterns like "photos/*.jpg", or `-` for a list on standard input
    #[arg(value_name = "FILE", required_unless_present = "files")]
    paths: Vec<PathBuf>,

    /// File with a path a line; `-` for standard input
    #[arg(help_heading = "Input", long, value_name = "FILE")]
    files: Option<PathBuf>,

    /// The paths of a list end in NUL characters, as `find -print0` writes them
    #[arg(help_heading = "Input", short = '0', long)]
    null: bool,

    /// What to do with a picture that cannot be used: fail, or skip, which writes zeros and reports it
    #[arg(help_heading = "Input", long, value_name = "WHAT", default_value = "fail", hide_possible_values = true,
          value_parser = on_error())]
    on_error: OnError,

    #[command(flatten)]
    output: MainOutputArgs,

    /// Continue an interrupted run with the same settings
    #[arg(help_heading = "Output", long)]
    resume: bool,

    /// Compute only share I of N of the rows, I from 1 to N; `prior-embed merge` joins files
    #[arg(help_heading = "Output", long, value_name = "I/N", value_parser = shard)]
    shard: Option<Shard>,

    /// Replace an existing output
    #[arg(help_heading = "Output", long)]
    overwrite: bool,

    /// Write a JSON report on time and memory to this file
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    stats: Option<PathBuf>,

    /// Model: a name from `prior-embed models`, owner/name[@revision] on the hub, or a folder [default: emoji]
    #[arg(help_heading = "Model", short, long, value_name = "NAME", value_parser = text())]
    model: Option<String>,

    /// Image encoder from elsewhere, which may be a whole CLIPModel
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    image_encoder: Option<String>,

    #[command(flatten)]
    revision: RevisionArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Pictures encoded together; auto is up to 16 on the CPU and 64 on a GPU, as far as memory allows
    #[arg(help_heading = "Computation", long, value_name = "N", default_value = "auto", allow_negative_numbers = true)]
    batch_size: BatchSize,
}

/// Encodes the pictures and returns the exit code.
///
/// # Errors
/// [`crate::bad_input::BadInput`] for what the user can fix, and whatever goes wrong on the way.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let outputs = Outputs::open(args, context)?;
    if args.null && args.files.is_none() && !args.paths.iter().any(|path| path.as_os_str() == "-") {
        warn_no_effect("--null", "it is for lists of paths, and there is none");
    }
    let placement = args.device.placement()?;
    let components: Vec<_> = args.image_encoder.iter().map(|name| (Component::ImageEncoder, name.as_str())).collect();
    let source = args.revision.model(args.model.as_deref().unwrap_or(EMOJI), &components, &context.hub)?;
    check_picture(&outputs.write, &source)?;
    let needs = Needs { sixteen_bit: placement.precision != Precision::F32, ..Needs::PICTURES };
    let model = Hub::new(context.hub.clone()).open(&source, needs, &mut FetchProgress::new(&context.screen))?;
    let done = encode(args, outputs, &source, opener(&model, placement), context);
    done.map_err(|error| model.advise(error))
}

/// Encodes the pictures with a model that is on this machine.
fn encode(args: &Args, outputs: Outputs, source: &ModelSource, open: Opener, context: &Context) -> Result<u8> {
    let pipeline = open()?;
    let processor = Arc::new(pipeline.image_processor()?);
    let settings = Settings::new(source, &pipeline)?;
    let prompts = Prompts { pictures: Some(inputs(args)), ..Prompts::default() };
    let entries = prompts.open()?;
    let options = RowOptions { pictures: Some(processor), on_error: args.on_error, ..row_options() };
    let Outputs { write, report, stats } = outputs;
    let job =
        Job { prompts, entries, options, pipeline, open, compute: compute(args), write, report, provenance: None };
    let stop = Stop::listen()?;
    let progress = Arc::new(RunProgress::new(&context.screen, None));
    let summary = job.run(Arc::clone(&progress) as Arc<dyn JobProgress>, &stop)?;
    if let Some(code) = embed::tell(&summary, context) {
        return Ok(code);
    }
    if let Some(destination) = stats {
        reports::write(destination, &Stats::new(&summary, settings, &progress, context.start.elapsed()))?;
    }
    Ok(0)
}

fn inputs(args: &Args) -> PictureInputs {
    PictureInputs {
        paths: args.paths.clone(),
        list: args.files.clone(),
        is_nul_separated: args.null,
        ..PictureInputs::default()
    }
}

/// Opens the model as often as it is called.
fn opener(model: &Model, placement: Placement) -> Opener {
    let (folder, replacements) = (model.folder.clone(), model.replacements());
    Arc::new(move || {
        let mut pipeline = Pipeline::open_with(&folder, &replacements, placement, SchedulerOptions::default())?;
        pipeline.leave_only_image_encoder();
        Ok(pipeline)
    })
}

/// Those of rows that nothing is drawn for.
fn row_options() -> RowOptions {
    RowOptions {
        negative_prompt: None,
        decoder_negative_prompt: None,
        conditions: None,
        latents: None,
        images: None,
        pictures: None,
        settings: SamplingSettings::ONE_STEP,
        seed: 0,
        seeding: Seeding::Row,
        samples: 1,
        draws: 1,
        wants_negative: false,
        wants_text: false,
        wants_scores: false,
        on_error: OnError::Fail,
        max_steps: usize::MAX,
        kind: PriorKind::Diffusion,
    }
}

/// The files that the options name.
struct Outputs {
    write: WriteOptions,
    /// Where to report pictures that cannot be used, if not on standard error.
    report: Option<Report>,
    stats: Option<Destination>,
}

impl Outputs {
    /// Checks that all outputs can be written.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if one cannot.
    fn open(args: &Args, context: &Context) -> Result<Self> {
        let mut write = args.output.write_options()?;
        write.overwrite = args.overwrite;
        write.resume = args.resume;
        write.shard = args.shard;
        let paths = || write.outputs.iter().map(|output| output.path.as_path()).chain(args.stats.as_deref());
        if paths().any(|path| path.as_os_str() == "-") {
            stdout::check()?;
        }
        if args.overwrite && paths().all(is_stream) {
            warn_no_effect("--overwrite", "a stream replaces nothing");
        }
        check(&write)?;
        let is_counted = !context.screen.is_quiet() || args.stats.is_some();
        let report = reports::on_rows(&write, args.on_error, is_counted)?;
        let stats = reports::stats(args.stats.as_deref(), &write, report.as_ref())?;
        let is_replaced = |input: &&Path| paths().any(|path| is_same_file(input, path));
        if let Some(input) = args.paths.iter().chain(&args.files).map(PathBuf::as_path).find(is_replaced) {
            let name = input.display().to_string();
            return Err(bad_input!("{name:?} is an input and would be replaced; give the output another name"));
        }
        Ok(Self { write, report, stats })
    }
}

fn compute(args: &Args) -> ComputeOptions {
    let batch_size = match args.batch_size {
        BatchSize::Auto => None,
        BatchSize::Rows(rows) => Some(rows),
    };
    ComputeOptions { batch_size, threads: args.device.threads(), ..ComputeOptions::default() }
}
