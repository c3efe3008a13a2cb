//! `prior-embed --prompt … --out …`: reads prompts, runs the pipeline over them in batches, writes the embeddings.

use super::args::{Args, BatchSize, HubArgs};
use super::progress::{FetchProgress, Screen};
use super::stats::{self, Seconds, Stats, peak_rss_bytes};
use crate::bad_input;
use crate::hub::builtin::EMOJI;
use crate::hub::{Hub, Needs};
use crate::io::destination::Destination;
use crate::io::format::{Format, NamedArray};
use crate::io::prompts;
use crate::model::precision::Precision;
use crate::pipeline::{LoadOptions, Observer, Pipeline, Row, Settings};
use anyhow::Result;
use indicatif::ProgressBar;
use ndarray::{Array2, Axis, concatenate};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The job that the options ask for.
struct Job {
    prompts: Vec<String>,
    negative_prompt: Option<String>,
    samples_per_prompt: usize,
    seed: u64,
    settings: Settings,
    /// Rows computed together, if the user says.
    batch_size: Option<usize>,
}

/// The files that the options ask for, all of them open.
struct Outputs {
    image: (Destination, Format),
    /// A file of its own for the negative embeddings.
    negative: Option<(Destination, Format)>,
    stats: Option<Destination>,
}

impl Outputs {
    fn open(args: &Args) -> Result<Self> {
        let open = |path: &Path| -> Result<(Destination, Format)> {
            let format = args.format.map_or_else(|| Format::of_path(path), Ok)?;
            Ok((Destination::open(path, args.overwrite)?, format))
        };
        let image = open(&args.out)?;
        let own_file = args.negative_out.as_ref().filter(|path| !(image.1.holds_several() && **path == args.out));
        let negative = own_file.map(|path: &PathBuf| open(path)).transpose()?;
        let stats = args.stats.as_ref().map(|path| Destination::open(path, args.overwrite)).transpose()?;
        let outputs = Self { image, negative, stats };
        outputs.check_distinct()?;
        Ok(outputs)
    }

    /// Refuses two outputs in one place, of which the last would be left.
    fn check_distinct(&self) -> Result<()> {
        let named = [
            ("--out", Some(&self.image.0)),
            ("--negative-out", self.negative.as_ref().map(|(destination, _)| destination)),
            ("--stats", self.stats.as_ref()),
        ];
        for (place, (name, output)) in named.iter().enumerate() {
            let Some(output) = output else { continue };
            let same = named[..place].iter().find(|(_, other)| other.is_some_and(|other| other.is_same_as(output)));
            if let Some((other, _)) = same {
                return Err(bad_input!(
                    "{other} and {name} are the same file; give two names, or one .npz for all arrays"
                ));
            }
        }
        Ok(())
    }

    /// Whether the negative embeddings are wanted, and whether they have to be there.
    fn wants_negative(&self) -> bool {
        self.negative.is_some() || self.image.1.holds_several()
    }
}

/// Runs the job; `start` is when the process began.
///
/// # Errors
/// [`crate::error::BadInput`] for what the user can mend, and whatever goes wrong on the way.
pub fn run(args: &Args, hub: &HubArgs, screen: &Screen, start: Instant) -> Result<()> {
    let job = Job::new(args)?;
    let mut outputs = Outputs::open(args)?;
    let stats = outputs.stats.take();
    let wants_negative = outputs.wants_negative();
    let needs_zero_embed = wants_negative && job.negative_prompt.is_none();
    let mut pipeline = open(args, hub, needs_zero_embed, screen)?;
    pipeline.check_steps(job.settings.steps)?;
    if args.negative_out.is_some() && job.negative_prompt.is_none() && !pipeline.has_zero_embed() {
        let folder = pipeline.folder();
        return Err(bad_input!(
            "--negative-out: {folder} has no image encoder to make them with; give a --negative-prompt"
        ));
    }
    let batch_size = pipeline.plan_batch(job.rows_to_sample(wants_negative), job.batch_size, needs_zero_embed)?;
    if args.threads.is_none() && pipeline.is_small()? {
        tch::set_num_threads(1);
    }
    if args.model.is_none() {
        // Only now, so that what is refused is still one line.
        screen.note(&format!(
            "using the built-in model {EMOJI} (trained on emoji pictures); --model takes a larger one; prior-embed models lists some"
        ));
    }
    let (image, negative) = job.embed(&mut pipeline, wants_negative, batch_size, screen)?;
    let write_start = Instant::now();
    write(outputs, &image, negative.as_ref())?;
    let write = write_start.elapsed();
    if let Some(destination) = stats {
        let seconds = Seconds::new(pipeline.timings(), write, start.elapsed());
        let settings = settings(args, &pipeline, batch_size);
        Stats { rows: image.nrows(), seconds, peak_rss_bytes: peak_rss_bytes(), settings }.write(destination)?;
    }
    Ok(())
}

fn settings(args: &Args, pipeline: &Pipeline, batch_size: usize) -> stats::Settings {
    let LoadOptions { device, precision } = pipeline.options();
    stats::Settings {
        model: model(args).to_string(),
        lora: args.lora.iter().map(|lora| format!("{}:{}", lora.path.display(), lora.scale)).collect(),
        steps: args.steps,
        guidance_scale: args.guidance_scale,
        seed: args.seed,
        samples_per_prompt: args.samples_per_prompt,
        negative_prompt: args.negative_prompt.clone(),
        scheduler: "unclip",
        device: format!("{device:?}").to_lowercase(),
        dtype: precision.name(),
        threads: tch::get_num_threads(),
        batch_size,
    }
}

fn open(args: &Args, hub: &HubArgs, needs_zero_embed: bool, screen: &Screen) -> Result<Pipeline> {
    set_threads(args.threads);
    let device = args.device.device()?;
    let options = LoadOptions { device, precision: args.dtype.precision(device)? };
    let needs =
        Needs { weights: true, sixteen_bit: options.precision != Precision::F32, image_encoder: needs_zero_embed };
    let name = hub.model(model(args))?;
    let model = Hub::new(hub.cache.options()).open(&name, needs, &mut FetchProgress::new(screen))?;
    let mut pipeline = Pipeline::open(&model.folder, options)?;
    for lora in &args.lora {
        pipeline.add_lora(&lora.path, lora.scale)?;
    }
    Ok(pipeline)
}

/// The name of the model to use.
fn model(args: &Args) -> &str {
    args.model.as_deref().unwrap_or(EMOJI)
}

/// More threads than cores wait for each other, and a great many cannot be started at all.
fn set_threads(wanted: Option<usize>) {
    let Some(wanted) = wanted else { return };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if wanted > cores {
        log::warn!("--threads {wanted} is more than the {cores} cores of this machine; using {cores}");
    }
    tch::set_num_threads(wanted.min(cores) as i32);
}

impl Job {
    fn new(args: &Args) -> Result<Self> {
        let mut prompts = args.prompt.clone();
        if let Some(path) = &args.prompts {
            prompts.extend(prompts::read(path)?);
        }
        if prompts.is_empty() {
            return Err(bad_input!("no prompt; give --prompt TEXT, or --prompts FILE with one a line"));
        }
        let job = Self {
            prompts,
            negative_prompt: args.negative_prompt.clone(),
            samples_per_prompt: args.samples_per_prompt,
            seed: args.seed,
            settings: Settings { steps: args.steps, guidance_scale: args.guidance_scale },
            batch_size: match args.batch_size {
                BatchSize::Auto => None,
                BatchSize::Rows(rows) => Some(rows),
            },
        };
        // Negative rows count on from the image rows.
        let rows = (job.len() as u64).saturating_mul(2);
        if job.seed.checked_add(rows).is_none() {
            return Err(bad_input!(
                "--seed {} leaves no seeds for {rows} rows below 2^64; give a smaller one",
                job.seed
            ));
        }
        Ok(job)
    }

    /// Number of rows.
    fn len(&self) -> usize {
        self.prompts.len().saturating_mul(self.samples_per_prompt)
    }

    /// Number of rows to denoise: the image embeddings and, for a negative prompt, as many more.
    fn rows_to_sample(&self, wants_negative: bool) -> usize {
        if wants_negative && self.negative_prompt.is_some() { self.len().saturating_mul(2) } else { self.len() }
    }

    /// The row of the output's index or, past the image rows, of the negative embeddings': those of the negative prompt,
    /// one for each image row, with seeds that count on, as diffusers makes them.
    fn row(&self, index: usize) -> Row<'_> {
        let negative_prompt = self.negative_prompt.as_deref().unwrap_or_default();
        let prompt = self.prompts.get(index / self.samples_per_prompt).map_or(negative_prompt, String::as_str);
        Row { prompt, negative_prompt, seed: self.seed + index as u64 }
    }

    /// The image embeddings and, if they are wanted and the model can make them, the negative ones.
    fn embed(
        &self,
        pipeline: &mut Pipeline,
        wants_negative: bool,
        batch_size: usize,
        screen: &Screen,
    ) -> Result<(Array2<f32>, Option<Array2<f32>>)> {
        let image_len = self.len();
        let len = self.rows_to_sample(wants_negative);
        let batches = len.div_ceil(batch_size);
        let mut watch = Watch::new(screen, batches.saturating_mul(self.settings.steps));
        let mut parts = Vec::new();
        for start in (0..len).step_by(batch_size) {
            let end = len.min(start.saturating_add(batch_size));
            let rows: Vec<Row> = (start..end).map(|index| self.row(index)).collect();
            parts.push(pipeline.embed(&rows, &self.settings, end == len, &mut watch)?);
        }
        watch.finish();
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        let image = concatenate(Axis(0), &views)?;
        if len > image_len {
            let (image, negative) = image.view().split_at(Axis(0), image_len);
            return Ok((image.to_owned(), Some(negative.to_owned())));
        }
        let zero = if wants_negative { pipeline.zero_embed()? } else { None };
        let negative = zero.and_then(|zero| Some(zero.broadcast((image_len, zero.len()))?.to_owned()));
        Ok((image, negative))
    }
}

/// Shows what the pipeline is at: a spinner while it loads, a bar while it denoises.
struct Watch {
    screen: Screen,
    spinner: Option<ProgressBar>,
    bar: Option<ProgressBar>,
    steps: usize,
}

impl Watch {
    fn new(screen: &Screen, steps: usize) -> Self {
        Self { screen: screen.clone(), spinner: None, bar: None, steps }
    }

    fn finish(&self) {
        self.spinner.iter().chain(&self.bar).for_each(ProgressBar::finish_and_clear);
    }
}

impl Observer for Watch {
    fn loading(&mut self, component: &str) {
        let screen = &self.screen;
        self.spinner.get_or_insert_with(|| screen.spinner()).set_message(format!("loading {component}"));
    }

    fn step_done(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
        let screen = &self.screen;
        let steps = self.steps as u64;
        self.bar.get_or_insert_with(|| screen.steps(steps).with_message("denoising")).inc(1);
    }
}

fn write(outputs: Outputs, image: &Array2<f32>, negative: Option<&Array2<f32>>) -> Result<()> {
    let image = NamedArray { name: "image_embeds", values: image.view() };
    let negative = negative.map(|values| NamedArray { name: "negative_image_embeds", values: values.view() });
    let (destination, format) = outputs.image;
    let in_the_same_file = negative.filter(|_| format.holds_several() && outputs.negative.is_none());
    let arrays: Vec<NamedArray> = std::iter::once(image).chain(in_the_same_file).collect();
    // The negative file first: when the main one is there, everything is.
    if let (Some((destination, format)), Some(negative)) = (outputs.negative, negative) {
        destination.write(|output| format.write(&[negative], output))?;
    }
    destination.write(|output| format.write(&arrays, output))
}
