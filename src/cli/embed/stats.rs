//! `--stats FILE`: where time and memory went, as JSON.

use super::args::Args;
use super::request::Request;
use crate::cli::prior_args::PriorSource;
use crate::cli::progress::RunProgress;
use crate::cli::reports;
use crate::job::{Seeding, Summary};
use crate::pipeline::{self, Pipeline};
use crate::weights::checkpoint::Placement;
use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// The report.
#[derive(Debug, Serialize)]
pub(super) struct Stats {
    rows: u64,
    /// Those that an earlier run wrote.
    resumed_rows: u64,
    /// Rows of this run whose prompts were too long and were truncated.
    #[serde(rename = "cut_off_rows")]
    truncated_rows: u64,
    /// Rows that are zeros because they could not be used.
    skipped_rows: u64,
    /// Rows of this run per second, from the start of the process to the end.
    rows_per_second: f64,
    seconds: Seconds,
    /// The most memory that the process held; null if the system does not tell.
    peak_rss_bytes: Option<u64>,
    /// The memory that the batch size and the number of workers were planned for; null for a GPU.
    planned_bytes: Option<u64>,
    settings: Settings,
}

/// Seconds of wall time. `load`, `text`, `tokenize` and `prior` are summed over all workers, `tokenize` is part of
/// `text`, and `read` is partly spent beside them.
#[derive(Debug, Serialize)]
struct Seconds {
    load: f64,
    text: f64,
    tokenize: f64,
    prior: f64,
    read: f64,
    write: f64,
    total: f64,
}

impl Seconds {
    fn new(summary: &Summary, total: Duration) -> Self {
        let timings = summary.timings;
        let seconds = |duration: Duration| duration.as_secs_f64();
        Self {
            load: seconds(timings.load),
            text: seconds(timings.text),
            tokenize: seconds(timings.tokenize),
            prior: seconds(timings.prior),
            read: seconds(summary.read),
            write: seconds(summary.write),
            total: seconds(total),
        }
    }
}

/// The settings of a run. Those that were `auto` have the values that were chosen.
#[derive(Debug, Serialize)]
pub(super) struct Settings {
    model: String,
    /// The components from elsewhere, by option.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    components: BTreeMap<&'static str, String>,
    lora: Vec<String>,
    textual_inversion: Vec<String>,
    conditions: Option<String>,
    latents: Option<String>,
    image: Option<String>,
    strength: Option<f64>,
    steps: usize,
    guidance_scale: f64,
    /// Of an autoregressive prior alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    /// Null if the prompts give the seeds.
    seed: Option<u64>,
    seed_layout: &'static str,
    samples_per_prompt: u64,
    best_of: u64,
    negative_prompt: Option<String>,
    decoder_negative_prompt: Option<String>,
    /// Null with a prior that takes no steps.
    scheduler: Option<&'static str>,
    eta: Option<f64>,
    solver_order: Option<i64>,
    sde: bool,
    device: String,
    dtype: &'static str,
    /// CPU threads of all workers together.
    threads: usize,
    /// Pipelines that worked side by side.
    workers: usize,
    batch_size: usize,
}

impl Settings {
    /// Those of a request. What the job decides is filled in by [`Stats::new`].
    pub(super) fn new(request: &Request, sampling: pipeline::Settings, pipeline: &Pipeline) -> Self {
        let Placement { device, precision } = pipeline.placement();
        let Request { prior: PriorSource { model, loras, inversions, scheduler, .. }, rows, .. } = request;
        Self {
            model: model.name.clone(),
            components: model
                .components
                .iter()
                .map(|(component, name)| (component.option(), name.to_string()))
                .collect(),
            lora: loras.iter().map(|lora| format!("{}:{}", lora.path.display(), lora.scale)).collect(),
            textual_inversion: inversions.iter().map(|one| format!("{}:{}", one.origin, one.token)).collect(),
            conditions: rows.conditions.as_ref().map(|given| given.name.clone()),
            latents: rows.latents.as_ref().map(|given| given.name.clone()),
            image: rows.images.as_ref().and_then(|images| images.given.as_ref()).map(ToString::to_string),
            strength: rows.images.as_ref().map(|images| images.strength),
            steps: sampling.steps,
            guidance_scale: sampling.guidance_scale,
            temperature: pipeline.kind().has_temperature().then_some(sampling.temperature),
            seed: (rows.seeding != Seeding::Prompt).then_some(rows.seed),
            seed_layout: if rows.seeding == Seeding::Call { "call" } else { "row" },
            samples_per_prompt: rows.samples,
            best_of: rows.draws,
            negative_prompt: rows.negative_prompt.clone(),
            decoder_negative_prompt: rows.decoder_negative_prompt.clone(),
            scheduler: pipeline.scheduler_class().map(|class| class.name),
            eta: scheduler.eta,
            solver_order: scheduler.solver_order,
            sde: scheduler.sde,
            device: format!("{device:?}").to_lowercase(),
            dtype: precision.name(),
            threads: 0,
            workers: 0,
            batch_size: 0,
        }
    }
}

impl Settings {
    /// These settings and those of the outputs, as a provenance has them: without what changes no number, or only its
    /// last bits.
    ///
    /// # Errors
    /// Never: every setting can be written as JSON.
    pub(super) fn about(&self, args: &Args) -> Result<Value> {
        let mut about = serde_json::to_value(self)?;
        if let Some(about) = about.as_object_mut() {
            ["model", "threads", "workers", "batch_size"].iter().for_each(|key| drop(about.remove(*key)));
            about.insert("normalize".into(), args.output.main.normalize.into());
            about.insert("out_dtype".into(), args.output.main.out_dtype.name().into());
            about.insert("seed_by".into(), args.seed_by.map(|_| "prompt").into());
        }
        Ok(about)
    }
}

impl Stats {
    /// Those of a run that took `total` from the start of the process.
    pub(super) fn new(summary: &Summary, settings: Settings, progress: &RunProgress, total: Duration) -> Self {
        let Summary { rows, resumed, threads, workers, batch_size, memory, .. } = *summary;
        let (truncated_rows, unreported) = progress.truncated_and_skipped();
        Self {
            rows,
            resumed_rows: resumed,
            truncated_rows,
            skipped_rows: summary.skipped.as_ref().map_or(unreported, |(rows, _)| *rows),
            rows_per_second: rows.saturating_sub(resumed) as f64 / total.as_secs_f64(),
            seconds: Seconds::new(summary, total),
            peak_rss_bytes: reports::peak_rss_bytes(),
            planned_bytes: memory,
            settings: Settings { threads, workers, batch_size, ..settings },
        }
    }
}
