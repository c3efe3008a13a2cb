//! `prior-embed --prompt … --out …`: runs a job as the options say, and reports how it ended.

mod args;
mod inputs;
mod outputs;
mod request;
mod stats;

pub(super) use args::Args;

use super::args::warn_no_effect;
use super::context::Context;
use super::output_args::check_picture;
use super::prior_args::wants_negative;
use super::progress::{FetchProgress, RunProgress, rows};
use super::reports;
use crate::bad_input;
use crate::diffusion::guidance::Guidance;
use crate::hub::{Hub, Model};
use crate::job::{Given, Images, Job, JobProgress, Outcome, Provenance, RowOptions, Stop, Summary, signal_exit_code};
use crate::nn::prior::PriorKind;
use crate::output::OutputFormat;
use crate::pipeline::builtin::EMOJI;
use crate::pipeline::{Pipeline, Settings as SamplingSettings};
use anyhow::Result;
use outputs::Outputs;
use request::Request;
use stats::{Settings, Stats};
use std::sync::Arc;
use tch::Device;

/// Runs the job and returns the exit code.
///
/// # Errors
/// [`crate::bad_input::BadInput`] for what the user can fix, and whatever goes wrong on the way.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let request = Request::new(args, context)?;
    check_picture(&request.outputs.write, &request.prior.model)?;
    // Downloaded here, if need be.
    let hub = Hub::new(context.hub.clone());
    let model = hub.open(&request.prior.model, request.needs(), &mut FetchProgress::new(&context.screen))?;
    let done = compute(args, request, &model, context);
    done.map_err(|error| model.advise(error))
}

/// Runs the job with a model that is on this machine.
fn compute(args: &Args, request: Request, model: &Model, context: &Context) -> Result<u8> {
    let open = request.opener(model);
    let mut pipeline = open()?;
    check_kind(args, &request.outputs, &pipeline)?;
    let sampling = pipeline.settings(args.sampling.steps, args.sampling.guidance_scale, args.sampling.temperature)?;
    check_sizes(&request.rows, &pipeline)?;
    let images = images(&request.rows, &mut pipeline, sampling)?;
    let wants_negative = wants_negative(&request.outputs.write, request.rows.has_negatives(), &pipeline)?;
    warn_of_model(args, &pipeline, sampling, wants_negative);
    if !request.prior.inversions.is_empty() && !request.has_texts() {
        warn_no_effect("--textual-inversion", "no text is encoded");
    }
    let settings = Settings::new(&request, sampling, &pipeline);
    let about = settings.about(args)?;
    let Request { prompts, entries, mut outputs, rows: options, compute, prior, .. } = request;
    if wants_negative {
        outputs.write.add_negative();
    }
    let options = RowOptions {
        wants_negative,
        settings: sampling,
        max_steps: pipeline.max_steps(),
        kind: pipeline.kind(),
        images,
        ..options
    };
    let Outputs { write, stats, provenance, report } = outputs;
    let provenance = provenance.map(|destination| Provenance {
        destination,
        keeps: args.provenance.clone().filter(|_| !args.overwrite),
        model: (prior.model.name.clone(), model.commit.clone()),
        settings: about,
    });
    let job = Job { prompts, entries, options, pipeline, open, compute, write, report, provenance };
    let note = args.model.model.is_none().then(|| {
        format!(
            "using the built-in model {EMOJI}, which was trained on emoji pictures; --model takes a larger one, \
             and prior-embed models lists some"
        )
    });
    let stop = Stop::listen()?;
    let progress = Arc::new(RunProgress::new(&context.screen, note));
    let summary = job.run(Arc::clone(&progress) as Arc<dyn JobProgress>, &stop)?;
    if let Some(code) = tell(&summary, context) {
        return Ok(code);
    }
    if let Some(destination) = stats {
        reports::write(destination, &Stats::new(&summary, settings, &progress, context.start.elapsed()))?;
    }
    Ok(0)
}

/// Refuses options that the model's kind of prior does not take.
fn check_kind(args: &Args, outputs: &Outputs, pipeline: &Pipeline) -> Result<()> {
    let (folder, kind) = (pipeline.folder(), pipeline.kind());
    if args.sampling.temperature.is_some() && !kind.has_temperature() {
        let title = kind.title();
        return Err(bad_input!(
            "--temperature: {folder} has {title}, and only an autoregressive prior takes a temperature; leave out \
             --temperature"
        ));
    }
    let (given, takes) = match kind {
        PriorKind::Diffusion => return Ok(()),
        PriorKind::Autoregressive => (
            &[("--steps", args.sampling.steps.is_some()), ("--latents", args.latents.is_some())][..],
            "no steps, and no noise to start from",
        ),
        PriorKind::OneStep => (
            &[("--steps", args.sampling.steps.is_some()), ("--guidance-scale", args.sampling.guidance_scale.is_some())]
                [..],
            "neither steps nor guidance",
        ),
        PriorKind::Sequence => (
            &[
                ("--negative-prompt", args.sampling.negative_prompt.is_some()),
                ("--negative-out", args.output.negative_out.is_some()),
                ("--normalize", args.output.main.normalize),
                ("--shard", args.shard.is_some()),
                ("--decoder-negative-prompt", args.sampling.decoder_negative_prompt.is_some()),
                ("--text-out", args.text_out.is_some()),
                ("--best-of", args.best_of > 1),
                ("--scores", args.scores.is_some()),
                ("--conditions", args.conditions.is_some()),
            ][..],
            "no negative prompts and makes no embeddings but latents in 3D arrays, which are written as they are",
        ),
    };
    if let Some((option, _)) = given.iter().find(|(_, is_given)| *is_given) {
        let title = kind.title();
        return Err(bad_input!("{option}: {folder} has {title}, which takes {takes}; leave out {option}"));
    }
    match outputs.write.outputs.iter().find(|output| output.format != OutputFormat::Npy) {
        Some(output) if kind == PriorKind::Sequence => Err(bad_input!(
            "{:?}: {folder} makes 3D arrays, which only .npy holds; give a name that ends in .npy",
            output.path.display().to_string()
        )),
        _ => Ok(()),
    }
}

/// Checks what the options give against the model's sizes.
fn check_sizes(rows: &RowOptions, pipeline: &Pipeline) -> Result<()> {
    let (dim, text) = (pipeline.embedding_dim(), pipeline.text_embedding_dim());
    if let Some(Given { name, value, .. }) = rows.latents.as_ref().filter(|given| given.value.ncols() != dim) {
        let found = value.ncols();
        return Err(bad_input!("--latents {name:?} has rows of {found} numbers, and this model's have {dim}"));
    }
    if (rows.draws > 1 || rows.wants_scores) && text != dim {
        let option = if rows.draws > 1 { "--best-of" } else { "--scores" };
        return Err(bad_input!(
            "{option}: this model's text embeddings have {text} numbers and its image embeddings {dim}, so they have no \
             dot product; leave out {option}"
        ));
    }
    if rows.wants_text && text != dim {
        return Err(bad_input!(
            "--text-out: this model's text embeddings have {text} numbers and its image embeddings {dim}, and an \
             output holds rows of one size; leave out --text-out"
        ));
    }
    Ok(())
}

/// Checks the image that rows start from against the model, and warns if that is where they end.
fn images(rows: &RowOptions, pipeline: &mut Pipeline, settings: SamplingSettings) -> Result<Option<Images>> {
    let Some(images) = rows.images.clone() else { return Ok(None) };
    pipeline.check_takes_images()?;
    let images = images.of_model(pipeline)?;
    let Images { strength, .. } = images;
    if strength > 0.0 && (SamplingSettings { strength: Some(strength), ..settings }).keeps_images() {
        let steps = settings.steps;
        log::warn!(
            "--strength {strength} of {steps} steps is less than one: embeddings of images are written as they are"
        );
    }
    Ok(Some(images))
}

/// Warns of options that have no effect with this model. One that promises something which holds anyway (`--offline`,
/// `--on-error skip`) is not among them.
fn warn_of_model(args: &Args, pipeline: &Pipeline, settings: SamplingSettings, wants_negative: bool) {
    let scale = settings.guidance_scale;
    if args.sampling.negative_prompt.is_some() && !wants_negative && !Guidance::new(scale).is_on() {
        let why = match pipeline.is_one_step() {
            true => {
                "the model has a one-step prior, which takes no guidance; --negative-out writes its embedding".into()
            }
            false => format!("--guidance-scale {scale} turns guidance off, except for rows with a scale of their own"),
        };
        warn_no_effect("--negative-prompt", &why);
    }
    if args.model.image_encoder.is_some() && (!wants_negative || args.sampling.negative_prompt.is_some()) {
        warn_no_effect("--image-encoder", "it makes negative embeddings without a negative prompt, and there are none");
    }
    if args.sampling.decoder_negative_prompt.is_some() && !wants_negative {
        warn_no_effect("--decoder-negative-prompt", "no output holds negative embeddings; --negative-out writes them");
    }
    if args.device.threads.is_some() && pipeline.placement().device != Device::Cpu {
        warn_no_effect("--threads", "the model runs on a GPU");
    }
}

/// Tells of skipped rows and of a run that did not go to its end; the exit code of one that a signal stopped.
pub(super) fn tell(summary: &Summary, context: &Context) -> Option<u8> {
    if let Some((count, report)) = &summary.skipped {
        let (count, report) = (rows(*count), report.display().to_string());
        log::warn!("{count} could not be used and are zeros; {report:?} lists them");
    }
    match summary.outcome {
        Outcome::WasDone => {
            context.screen.note("the output is already there, complete and with these settings; nothing to do");
            None
        }
        Outcome::Stopped { signal, kept } => {
            context.screen.error(&stopped(summary, kept));
            Some(signal_exit_code(signal))
        }
        Outcome::Done | Outcome::ReaderGone => None,
    }
}

/// The last line of a run that a signal stopped.
fn stopped(summary: &Summary, kept: bool) -> String {
    let of = summary.total.map(|total| format!(" of {total}")).unwrap_or_default();
    match kept {
        true if summary.rows == 0 => "stopped while the prompts were counted; nothing has changed".to_string(),
        true => format!(
            "stopped after {}{of} rows, which are kept; run the same command with --resume to continue",
            summary.rows
        ),
        false => "stopped; nothing is kept".to_string(),
    }
}
