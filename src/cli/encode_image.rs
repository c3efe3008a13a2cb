//! `prior-embed encode-image FILE… --out FILE`: pictures to CLIP image embeddings.

use super::args::{RevisionArgs, text, warn_no_effect};
use super::context::Context;
use super::embed;
use super::output_args::{MainOutputArgs, check_picture};
use super::prior_args::DeviceArgs;
use super::progress::{FetchProgress, RunProgress};
use super::stdout;
use super::values::{BatchSize, on_error, shard};
use crate::bad_input;
use crate::diffusion::scheduler::SchedulerOptions;
use crate::error::Component;
use crate::hub::{Hub, Model, Needs};
use crate::job::{
    ComputeOptions, IfExists, Job, JobProgress, OnError, Opener, Prompts, Report, RowOptions, Seeding, Stop,
};
use crate::nn::prior::PriorKind;
use crate::output::shard::Shard;
use crate::output::{WriteOptions, check, is_stream};
use crate::pipeline::builtin::EMOJI;
use crate::pipeline::{Pipeline, Settings};
use crate::rows::PictureInputs;
use crate::weights::checkpoint::Placement;
use crate::weights::precision::Precision;
use anyhow::Result;
use std::path::PathBuf;
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
    let prompts = Prompts { pictures: Some(inputs(args)), ..Prompts::default() };
    let (write, report) = outputs(args, context)?;
    if args.null && args.files.is_none() && !args.paths.iter().any(|path| path.as_os_str() == "-") {
        warn_no_effect("--null", "it is for lists of paths, and there is none");
    }
    let placement = args.device.placement()?;
    let components: Vec<_> = args.image_encoder.iter().map(|name| (Component::ImageEncoder, name.as_str())).collect();
    let source = args.revision.model(args.model.as_deref().unwrap_or(EMOJI), &components, &context.hub)?;
    check_picture(&write, &source)?;
    let needs = Needs { sixteen_bit: placement.precision != Precision::F32, ..Needs::PICTURES };
    let model = Hub::new(context.hub.clone()).open(&source, needs, &mut FetchProgress::new(&context.screen))?;
    let open = opener(&model, placement);
    let job = open().and_then(|pipeline| {
        let processor = Arc::new(pipeline.image_processor()?);
        let options = RowOptions { pictures: Some(processor), on_error: args.on_error, ..row_options() };
        let entries = prompts.open()?;
        Ok(Job { prompts, entries, options, pipeline, open, compute: compute(args), write, report, provenance: None })
    });
    let stop = Stop::listen()?;
    let progress = Arc::new(RunProgress::new(&context.screen, None));
    let summary = job.and_then(|job| job.run(progress as Arc<dyn JobProgress>, &stop));
    let summary = summary.map_err(|error| model.advise(error))?;
    Ok(embed::tell(&summary, context).unwrap_or(0))
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
        settings: Settings::ONE_STEP,
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

/// Checks that the outputs can be written.
fn outputs(args: &Args, context: &Context) -> Result<(WriteOptions, Option<Report>)> {
    let mut write = args.output.write_options()?;
    let is_stream = is_stream(&write.outputs[0].path);
    if write.outputs.iter().any(|output| output.path.as_os_str() == "-") {
        stdout::check()?;
    }
    if args.overwrite && is_stream {
        warn_no_effect("--overwrite", "a stream replaces nothing");
    }
    let skips = args.on_error == OnError::Skip;
    if skips && is_stream && context.screen.is_quiet() {
        return Err(bad_input!(
            "--on-error skip with --quiet and a stream as --out would hide which pictures are skipped; leave out --quiet"
        ));
    }
    write.overwrite = args.overwrite;
    write.resume = args.resume;
    write.shard = args.shard;
    check(&write)?;
    let report = (!is_stream && (skips || args.overwrite))
        .then(|| Report::beside(&write.base_path(), IfExists::of(args.overwrite, args.resume)));
    Ok((write, report.transpose()?))
}

fn compute(args: &Args) -> ComputeOptions {
    let batch_size = match args.batch_size {
        BatchSize::Auto => None,
        BatchSize::Rows(rows) => Some(rows),
    };
    ComputeOptions { batch_size, threads: args.device.threads(), ..ComputeOptions::default() }
}
