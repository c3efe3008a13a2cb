//! What the options ask for, resolved once.

use super::args::Args;
use super::inputs::Inputs;
use super::outputs::Outputs;
use crate::bad_input;
use crate::cli::args::warn_no_effect;
use crate::cli::context::Context;
use crate::cli::prior_args::PriorSource;
use crate::cli::values::BatchSize;
use crate::hub::{HubOptions, Model, Needs, Wish};
use crate::job::{ComputeOptions, Entries, Given, Images, Opener, Prompts, RowOptions, Seeding};
use crate::nn::prior::PriorKind;
use crate::pipeline::{Conditions, Settings};
use crate::rows::{Extras, ReadOptions, read_conditions, read_latents};
use crate::weights::precision::Precision;
use anyhow::Result;
use std::sync::Arc;

/// A request, checked as far as it can be without the model.
pub(super) struct Request {
    pub(super) prompts: Prompts,
    pub(super) entries: Entries,
    pub(super) outputs: Outputs,
    pub(super) prior: PriorSource,
    /// Without what the model decides: steps, guidance, temperature, the kind of prior, and whether there are negative
    /// embeddings.
    pub(super) rows: RowOptions,
    pub(super) compute: ComputeOptions,
}

impl Request {
    /// Downloads prompts that are on the hub.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] for options that do not fit each other or this machine, prompts that cannot be read
    /// and outputs that cannot be written; whatever goes wrong with a download.
    pub(super) fn new(args: &Args, context: &Context) -> Result<Self> {
        check_seeding(args)?;
        let inputs = Inputs::find(&args.prompts, args.format_in)?;
        let mut prompts = prompts(args)?;
        let outputs = Outputs::open(args, &inputs, context)?;
        let conditions = args.conditions.as_deref().map(read_conditions).transpose()?;
        let conditions = conditions.map(|(value, name, hash)| Given { name, hash, value: Arc::new(value) });
        let has_prompt = args.sampling.negative_prompt.is_some();
        let is_negative = |given: &&Given<Conditions>| given.value.has_negative() && has_prompt;
        if let Some(given) = conditions.as_ref().filter(is_negative) {
            let name = &given.name;
            return Err(bad_input!(
                "--negative-prompt: {name:?} has negative conditions already; leave out one of them"
            ));
        }
        prompts.conditions = conditions.as_ref().map(|given| (given.name.clone(), given.value.rows()));
        let latents = args.latents.as_deref().map(read_latents).transpose()?;
        let latents = latents.map(|(value, name, hash)| Given { name, hash, value: Arc::new(value) });
        // With data sets on the hub, --cache-dir has an effect whatever the model is.
        let of_model = if inputs.are_on_hub() { HubOptions::default() } else { context.hub.clone() };
        let prior = PriorSource::new(&args.model, &args.scheduler, &args.device, &of_model)?;
        let (files, datasets) = inputs.open(context)?;
        prompts.datasets = datasets;
        prompts.set_files(files)?;
        let entries = prompts.open()?;
        let sampling = &args.sampling;
        let default = Settings::default();
        let rows = RowOptions {
            negative_prompt: sampling.negative_prompt.clone(),
            // An empty one is what a decoder takes without any, in diffusers too.
            decoder_negative_prompt: sampling.decoder_negative_prompt.clone().filter(|text| !text.is_empty()),
            conditions,
            latents,
            images: images(args)?,
            pictures: None,
            settings: Settings {
                steps: sampling.steps.unwrap_or(default.steps),
                guidance_scale: sampling.guidance_scale.unwrap_or(default.guidance_scale),
                ..default
            },
            seed: sampling.seed,
            seeding: args.seed_by.unwrap_or(sampling.seed_layout),
            samples: args.samples_per_prompt as u64,
            draws: args.best_of as u64,
            wants_negative: false,
            wants_text: args.text_out.is_some(),
            wants_scores: args.scores.is_some(),
            on_error: args.on_error,
            max_steps: usize::MAX,
            kind: PriorKind::Diffusion,
        };
        Ok(Self { prompts, entries, outputs, prior, rows, compute: compute(args) })
    }

    /// Which of the model's files are needed.
    pub(super) fn needs(&self) -> Needs {
        // The image encoder is large, and only makes negative embeddings without a negative prompt.
        let image_processor = self.rows.images.as_ref().is_some_and(|images| match &images.given {
            Some(item) => item.picture().is_some(),
            None => true,
        });
        let image_encoder = match self.rows.has_negatives() {
            _ if image_processor => Wish::Needed,
            false if self.outputs.write.needs_negative() => Wish::Needed,
            false if self.outputs.write.wants_negative() => Wish::Welcome,
            _ => Wish::No,
        };
        let sixteen_bit = self.prior.load.precision != Precision::F32;
        Needs { text_encoder: self.has_texts(), sixteen_bit, image_encoder, image_processor, ..Needs::ALL }
    }

    /// Whether texts are encoded.
    pub(super) fn has_texts(&self) -> bool {
        RowOptions { wants_negative: self.outputs.write.wants_negative(), ..self.rows.clone() }.has_texts()
    }

    /// Opens the model as often as it is called.
    pub(super) fn opener(&self, model: &Model) -> Opener {
        let (prior, model, conditions) = (self.prior.clone(), model.clone(), self.rows.conditions.clone());
        let has_texts = self.has_texts();
        Arc::new(move || {
            let mut pipeline = prior.open(&model)?;
            if let Some(Given { name, value, .. }) = &conditions {
                pipeline
                    .set_conditions(Arc::clone(value))
                    .map_err(|error| bad_input!("{name:?}: {}", error.reason()))?;
            }
            if !has_texts {
                pipeline.leave_out_text_encoder();
            }
            Ok(pipeline)
        })
    }
}

/// Checks the options that one generator for all rows excludes.
fn check_seeding(args: &Args) -> Result<()> {
    let excluded = [
        ("--shard", args.shard.is_some(), "every row needs the draws of all"),
        ("--resume", args.resume, "the run is one batch, of which nothing is kept"),
    ];
    let excluded =
        excluded.into_iter().find(|(_, is_given, _)| *is_given && args.sampling.seed_layout == Seeding::Call);
    match excluded {
        Some((option, _, why)) => Err(bad_input!("--seed-layout call excludes {option}: {why}; leave out one of them")),
        None => Ok(()),
    }
}

fn prompts(args: &Args) -> Result<Prompts> {
    if args.prompt.is_empty() && args.prompts.is_empty() && args.conditions.is_none() {
        return Err(bad_input!("no prompt; give --prompt TEXT, or --prompts FILE with one a line"));
    }
    if args.prompts.is_empty() && args.conditions.is_none() {
        let file_options = [
            ("--format-in", args.format_in.is_some()),
            ("--prompt-column", args.prompt_column.is_some()),
            ("--no-header", args.no_header),
            ("--row-noise", args.row_noise),
        ];
        for (option, _) in file_options.into_iter().filter(|(_, is_given)| *is_given) {
            warn_no_effect(option, "it is for the file of --prompts, and there is none");
        }
    }
    let read = ReadOptions {
        format: args.format_in,
        prompt_column: args.prompt_column.clone(),
        no_header: args.no_header,
        extras: Extras { images: args.strength.is_some(), noise: args.row_noise },
        ..ReadOptions::default()
    };
    Ok(Prompts { given: args.prompt.clone(), read, ..Prompts::default() })
}

/// What rows start from, if not from noise alone.
fn images(args: &Args) -> Result<Option<Images>> {
    /// diffusers' own.
    const STRENGTH: f64 = 0.3;
    match (&args.image, args.strength) {
        (None, None) => Ok(None),
        (None, Some(_)) if args.prompts.is_empty() => {
            Err(bad_input!("--strength is how far to go from an image; give --image, or a column image in --prompts"))
        }
        (given, strength) => Ok(Some(Images::new(strength.unwrap_or(STRENGTH), given.clone()))),
    }
}

fn compute(args: &Args) -> ComputeOptions {
    let batch_size = match args.batch_size {
        BatchSize::Auto => None,
        BatchSize::Rows(rows) => Some(rows),
    };
    ComputeOptions { batch_size, threads: args.device.threads(), ..ComputeOptions::default() }
}
