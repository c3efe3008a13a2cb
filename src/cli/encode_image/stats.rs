//! `--stats FILE` of pictures: where time and memory went, as JSON.

use crate::cli::progress::RunProgress;
use crate::cli::reports;
use crate::hub::ModelSource;
use crate::job::Summary;
use crate::pipeline::Pipeline;
use crate::weights::checkpoint::Placement;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The report.
#[derive(Debug, Serialize)]
pub(super) struct Stats {
    /// A row is a picture.
    rows: u64,
    /// Those that an earlier run wrote.
    resumed_rows: u64,
    /// Rows that are zeros because their pictures could not be used.
    skipped_rows: u64,
    /// Pictures of this run per second, from the start of the process to the end.
    pictures_per_second: f64,
    /// Bytes of the files that this run decoded.
    input_bytes: u64,
    /// Pixels of these pictures, before they are resized.
    input_pixels: u64,
    seconds: Seconds,
    /// The most memory that the process held; null if the system does not tell.
    peak_rss_bytes: Option<u64>,
    /// The memory that the batch size and the number of workers were planned for; null for a GPU.
    planned_bytes: Option<u64>,
    settings: Settings,
}

/// Seconds of wall time. `load` and `encode` are summed over all workers and `decode` over all threads that decode,
/// which mostly work beside them.
#[derive(Debug, Serialize)]
struct Seconds {
    /// Loading the image encoder.
    load: f64,
    /// Finding the pictures, and waiting for a list from a pipe.
    list: f64,
    /// Reading files, decoding, resizing and cropping.
    decode: f64,
    /// The image encoder's work.
    encode: f64,
    write: f64,
    total: f64,
}

/// The settings of a run. Those that were `auto` have the values that were chosen.
#[derive(Debug, Serialize)]
pub(super) struct Settings {
    model: String,
    /// The image encoder, if it is from elsewhere, by option.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    components: BTreeMap<&'static str, String>,
    /// Height and width of what the image encoder takes, in pixels.
    image_size: usize,
    embedding_dim: usize,
    device: String,
    dtype: &'static str,
    /// CPU threads of all workers together.
    threads: usize,
    /// Those that decode.
    decoding_threads: usize,
    /// Image encoders that worked side by side.
    workers: usize,
    batch_size: usize,
}

impl Settings {
    /// Those of a model. What the job decides is filled in by [`Stats::new`].
    ///
    /// # Errors
    /// As [`Pipeline::image_size`].
    pub(super) fn new(model: &ModelSource, pipeline: &Pipeline) -> crate::Result<Self> {
        let Placement { device, precision } = pipeline.placement();
        let components = model.components.iter();
        Ok(Self {
            model: model.name.clone(),
            components: components.map(|(component, name)| (component.option(), name.to_string())).collect(),
            image_size: pipeline.image_size()?,
            embedding_dim: pipeline.embedding_dim(),
            device: format!("{device:?}").to_lowercase(),
            // What the image encoder computes in.
            dtype: precision.unquantized().name(),
            threads: 0,
            decoding_threads: 0,
            workers: 0,
            batch_size: 0,
        })
    }
}

impl Stats {
    /// Those of a run that took `total` from the start of the process.
    pub(super) fn new(summary: &Summary, settings: Settings, progress: &RunProgress, total: Duration) -> Self {
        let Summary { rows, resumed, threads, workers, batch_size, memory, decoding, timings, .. } = *summary;
        let (_, unreported) = progress.truncated_and_skipped();
        let seconds = |duration: Duration| duration.as_secs_f64();
        Self {
            rows,
            resumed_rows: resumed,
            skipped_rows: summary.skipped.as_ref().map_or(unreported, |(rows, _)| *rows),
            pictures_per_second: rows.saturating_sub(resumed) as f64 / seconds(total),
            input_bytes: decoding.bytes,
            input_pixels: decoding.pixels,
            seconds: Seconds {
                load: seconds(timings.load),
                list: seconds(summary.read),
                decode: seconds(decoding.time),
                encode: seconds(timings.image),
                write: seconds(summary.write),
                total: seconds(total),
            },
            peak_rss_bytes: reports::peak_rss_bytes(),
            planned_bytes: memory,
            settings: Settings { threads, decoding_threads: decoding.threads, workers, batch_size, ..settings },
        }
    }
}
