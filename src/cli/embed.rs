//! `prior-embed --prompt … --out …`: a job as the options describe it, and what is said of it.

use super::args::{Args, BatchSize, idle};
use super::outputs::Outputs;
use super::progress::{FetchProgress, RunProgress, Screen, rows};
use super::stats::{self, Seconds, Stats, peak_rss_bytes};
use crate::bad_input;
use crate::diffusion::guidance::Guidance;
use crate::hub::{Hub, Model, Needs, Wish};
use crate::job::{Entries, Job, Opener, Outcome, Rules, Source, Stop, Summary, Wanted, Watcher, exit_code};
use crate::nn::precision::Precision;
use crate::pipeline::builtin::EMOJI;
use crate::pipeline::{Pipeline, Settings};
use crate::rows::ReadOptions;
use crate::weights::checkpoint::Placement;
use anyhow::Result;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Device;

/// Runs the job and gives the exit code; `start` is when the process began.
///
/// # Errors
/// [`crate::error::BadInput`] for what the user can mend, and whatever goes wrong on the way.
pub fn run(args: &Args, screen: &Screen, start: Instant) -> Result<u8> {
    let source = source(args)?;
    let outputs = Outputs::open(args)?;
    let entries = source.open()?;
    let (open, model) = opener(args, image_encoder(args, &outputs), screen)?;
    let done = compute(args, screen, start, Opened { source, entries, outputs, open });
    done.map_err(|error| model.advise(error))
}

/// What a job reads, writes and computes with, opened as the options say.
struct Opened {
    source: Source,
    entries: Entries,
    outputs: Outputs,
    open: Opener,
}

/// The image encoder is large; it is had only where something comes of it.
fn image_encoder(args: &Args, outputs: &Outputs) -> Wish {
    match args.negative_prompt {
        None if outputs.needs_negative() => Wish::Needed,
        None if outputs.wants_negative() => Wish::Welcome,
        _ => Wish::No,
    }
}

/// Runs the job and says how it ended.
fn compute(args: &Args, screen: &Screen, start: Instant, opened: Opened) -> Result<u8> {
    let Opened { source, entries, mut outputs, open } = opened;
    let pipeline = open()?;
    args.scheduler.check(pipeline.scheduler_class().name, &pipeline.folder().to_string())?;
    pipeline.check_steps(args.steps)?;
    let wants_negative = wants_negative(args, &pipeline, &outputs)?;
    if wants_negative {
        outputs.add_negative();
    }
    idle_options(args, &pipeline, wants_negative);
    let settings = settings(args, &pipeline);
    let Outputs { write, stats, report } = outputs;
    let job = Job {
        source,
        entries,
        rules: rules(args, &pipeline, wants_negative),
        pipeline,
        open,
        wanted: wanted(args),
        write,
        report,
    };
    let note = args.model.is_none().then(|| {
        format!("using the built-in model {EMOJI} (trained on emoji pictures); --model takes a larger one; prior-embed models lists some")
    });
    let stop = Stop::listen()?;
    let progress = Arc::new(RunProgress::new(screen, note));
    let summary = job.run(Arc::clone(&progress) as Arc<dyn Watcher>, &stop)?;
    if let Some((count, report)) = &summary.skipped {
        let (count, report) = (rows(*count), report.display().to_string());
        log::warn!("{count} could not be used and are zeros; {report:?} says which and why");
    }
    if summary.outcome == Outcome::WasDone {
        screen.note("the output is there already, whole and with these settings; nothing is left to do");
    }
    if let Outcome::Stopped { signal, kept } = summary.outcome {
        screen.error(&stopped(&summary, kept));
        return Ok(exit_code(signal));
    }
    if let Some(destination) = stats {
        of_run(&summary, settings(&summary), &progress, start.elapsed()).write(destination)?;
    }
    Ok(0)
}

/// Names the options that change nothing beside the others. A promise that is kept anyway (`--offline`, `--on-error skip`)
/// is none of them.
fn idle_options(args: &Args, pipeline: &Pipeline, wants_negative: bool) {
    if args.prompts.is_none() {
        let of_file = [
            ("--format-in", args.format_in.is_some()),
            ("--prompt-column", args.prompt_column.is_some()),
            ("--no-header", args.no_header),
        ];
        for (option, _) in of_file.into_iter().filter(|(_, is_given)| *is_given) {
            idle(option, "it is about the file of --prompts, and there is none");
        }
    }
    if args.negative_prompt.is_some() && !wants_negative && !Guidance::new(args.guidance_scale).is_on() {
        let scale = args.guidance_scale;
        idle(
            "--negative-prompt",
            &format!("--guidance-scale {scale} turns guidance off, but for rows with a scale of their own"),
        );
    }
    if args.threads.is_some() && pipeline.placement().device != Device::Cpu {
        idle("--threads", "the model runs on a GPU");
    }
}

/// The line that ends a run that was asked to stop.
fn stopped(summary: &Summary, kept: bool) -> String {
    let of = summary.total.map(|total| format!(" of {total}")).unwrap_or_default();
    match kept {
        true if summary.rows == 0 => "stopped while the prompts were counted; nothing has changed".to_string(),
        true => {
            format!("stopped after {}{of} rows, which are kept; the same command with --resume goes on", summary.rows)
        }
        false => "stopped; nothing is kept to go on from".to_string(),
    }
}

fn source(args: &Args) -> Result<Source> {
    if args.prompt.is_empty() && args.prompts.is_none() {
        return Err(bad_input!("no prompt; give --prompt TEXT, or --prompts FILE with one a line"));
    }
    let read =
        ReadOptions { format: args.format_in, prompt_column: args.prompt_column.clone(), no_header: args.no_header };
    Ok(Source { prompts: args.prompt.clone(), file: args.prompts.clone(), read })
}

fn rules(args: &Args, pipeline: &Pipeline, wants_negative: bool) -> Rules {
    Rules {
        negative_prompt: args.negative_prompt.clone(),
        settings: Settings { steps: args.steps, guidance_scale: args.guidance_scale },
        seed: args.seed,
        samples: args.samples_per_prompt as u64,
        wants_negative,
        on_error: args.on_error,
        most_steps: pipeline.max_steps(),
    }
}

/// Whether the negative embeddings are wanted and the model can make them.
fn wants_negative(args: &Args, pipeline: &Pipeline, outputs: &Outputs) -> Result<bool> {
    let can = args.negative_prompt.is_some() || pipeline.has_zero_embed();
    if outputs.needs_negative() && !can {
        let folder = pipeline.folder();
        return Err(bad_input!(
            "--negative-out: {folder} has no image encoder to make them with; give a --negative-prompt"
        ));
    }
    Ok(outputs.wants_negative() && can)
}

/// What opens the model that the options name, as often as it is needed, and the model. It is downloaded here, if it has to
/// be.
fn opener(args: &Args, image_encoder: Wish, screen: &Screen) -> Result<(Opener, Model)> {
    let device = args.device.device()?;
    let placement = Placement { device, precision: args.dtype.precision(device)? };
    let sixteen_bit = placement.precision != Precision::F32;
    let needs = Needs { weights: true, sixteen_bit, image_encoder };
    let name = args.hub.model(model(args))?;
    let model = Hub::new(args.hub.cache.options()).open(&name, needs, &mut FetchProgress::new(screen))?;
    let folder = model.folder.clone();
    let loras = args.lora.clone();
    let open: Opener = Arc::new(move || {
        let mut pipeline = Pipeline::open(&folder, placement)?;
        for lora in &loras {
            pipeline.add_lora(&lora.path, lora.scale)?;
        }
        Ok(pipeline)
    });
    Ok((open, model))
}

/// The name of the model to use.
fn model(args: &Args) -> &str {
    args.model.as_deref().unwrap_or(EMOJI)
}

/// How the user wants it computed. More threads than cores wait for each other, and a great many cannot be started at all.
fn wanted(args: &Args) -> Wanted {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if let Some(threads) = args.threads.filter(|threads| *threads > cores) {
        log::warn!("--threads {threads} is more than the {cores} cores of this machine; using {cores}");
    }
    let batch_size = match args.batch_size {
        BatchSize::Auto => None,
        BatchSize::Rows(rows) => Some(rows),
    };
    Wanted { batch_size, threads: args.threads.map(|threads| threads.min(cores)) }
}

/// What the statistics say of the settings, once the run tells what `auto` was.
fn settings<'a>(args: &'a Args, pipeline: &Pipeline) -> impl FnOnce(&Summary) -> stats::Settings + 'a {
    let Placement { device, precision } = pipeline.placement();
    let scheduler = pipeline.scheduler_class().name;
    move |summary| stats::Settings {
        model: model(args).to_string(),
        lora: args.lora.iter().map(|lora| format!("{}:{}", lora.path.display(), lora.scale)).collect(),
        steps: args.steps,
        guidance_scale: args.guidance_scale,
        seed: args.seed,
        samples_per_prompt: args.samples_per_prompt,
        negative_prompt: args.negative_prompt.clone(),
        scheduler,
        device: format!("{device:?}").to_lowercase(),
        dtype: precision.name(),
        threads: summary.threads,
        workers: summary.workers,
        batch_size: summary.batch_size,
    }
}

/// The statistics of a run that took so long.
fn of_run(summary: &Summary, settings: stats::Settings, progress: &RunProgress, total: Duration) -> Stats {
    let (cut_off_rows, unreported) = progress.cut_off_and_skipped();
    let Summary { rows, resumed, .. } = *summary;
    let seconds = Seconds::new(summary, total);
    Stats {
        rows,
        resumed_rows: resumed,
        cut_off_rows,
        skipped_rows: summary.skipped.as_ref().map_or(unreported, |(rows, _)| *rows),
        rows_per_second: rows.saturating_sub(resumed) as f64 / total.as_secs_f64(),
        seconds,
        peak_rss_bytes: peak_rss_bytes(),
        settings,
    }
}
