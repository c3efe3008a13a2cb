//! What the options ask for, resolved once.

use super::args::Args;
use super::outputs::Outputs;
use crate::bad_input;
use crate::cli::args::warn_no_effect;
use crate::cli::context::Context;
use crate::cli::values::{BatchSize, LoraOption};
use crate::diffusion::scheduler::SchedulerOptions;
use crate::hub::{Model, ModelSource, Needs, Wish};
use crate::job::{ComputeOptions, Entries, Given, Opener, Prompts, RowOptions, Seeding};
use crate::nn::prior::PriorKind;
use crate::pipeline::builtin::EMOJI;
use crate::pipeline::{Conditions, Pipeline, Settings};
use crate::rows::{ReadOptions, read_conditions, read_latents};
use crate::weights::checkpoint::Placement;
use crate::weights::checkpoint::textual_inversion::TextualInversion;
use crate::weights::precision::Precision;
use anyhow::Result;
use std::sync::Arc;

/// A request, checked as far as it can be without the model.
pub(super) struct Request {
    pub(super) prompts: Prompts,
    pub(super) entries: Entries,
    pub(super) outputs: Outputs,
    pub(super) model: ModelSource,
    pub(super) load: Placement,
    pub(super) loras: Vec<LoraOption>,
    pub(super) inversions: Arc<[TextualInversion]>,
    pub(super) scheduler: SchedulerOptions,
    /// Without what the model decides: steps, guidance, temperature, the kind of prior, and whether there are negative
    /// embeddings.
    pub(super) rows: RowOptions,
    pub(super) compute: ComputeOptions,
}

impl Request {
    /// # Errors [`crate::bad_input::BadInput`] for options that do not fit each other or this machine, prompts that cannot
    /// be read and outputs that cannot be written.
    pub(super) fn new(args: &Args, context: &Context) -> Result<Self> {
        check_seeding(args)?;
        let mut prompts = prompts(args)?;
        let outputs = Outputs::open(args, context)?;
        let conditions = args.conditions.as_deref().map(read_conditions).transpose()?;
        let conditions = conditions.map(|(value, name, hash)| Given { name, hash, value: Arc::new(value) });
        let is_negative = |given: &Given<Conditions>| given.value.has_negative() && args.negative_prompt.is_some();
        if let Some(given) = conditions.as_ref().filter(|given| is_negative(given)) {
            let name = &given.name;
            return Err(bad_input!(
                "--negative-prompt: {name:?} has negative conditions already; leave out one of them"
            ));
        }
        prompts.conditions = conditions.as_ref().map(|given| (given.name.clone(), given.value.rows()));
        let latents = args.latents.as_deref().map(read_latents).transpose()?;
        let latents = latents.map(|(value, name, hash)| Given { name, hash, value: Arc::new(value) });
        let inversions = args.textual_inversion.iter();
        let inversions = inversions.map(|option| TextualInversion::open(&option.path, option.token.as_deref()));
        let inversions = inversions.collect::<crate::Result<Vec<_>>>()?;
        let entries = prompts.open()?;
        let device = args.device.device()?;
        let load = Placement { device, precision: args.dtype.precision(device)? };
        let components = args.components.given(args.image_encoder.as_deref());
        let model = args.revision.model(args.model.as_deref().unwrap_or(EMOJI), &components, &context.hub)?;
        let default = Settings::default();
        let rows = RowOptions {
            negative_prompt: args.negative_prompt.clone(),
            // An empty one is what a decoder takes without any, in diffusers too.
            decoder_negative_prompt: args.decoder_negative_prompt.clone().filter(|text| !text.is_empty()),
            conditions,
            latents,
            settings: Settings {
                steps: args.steps.unwrap_or(default.steps),
                guidance_scale: args.guidance_scale.unwrap_or(default.guidance_scale),
                ..default
            },
            seed: args.seed,
            seeding: args.seed_by.unwrap_or(args.seed_layout),
            samples: args.samples_per_prompt as u64,
            wants_negative: false,
            wants_text: args.text_out.is_some(),
            on_error: args.on_error,
            max_steps: usize::MAX,
            kind: PriorKind::Diffusion,
        };
        Ok(Self {
            prompts,
            entries,
            outputs,
            model,
            load,
            loras: args.lora.clone(),
            inversions: inversions.into(),
            scheduler: SchedulerOptions {
                class: args.scheduler.0,
                eta: args.eta,
                solver_order: args.solver_order,
                sde: args.sde,
            },
            rows,
            compute: compute(args),
        })
    }

    /// Which of the model's files are needed.
    pub(super) fn needs(&self) -> Needs {
        // The image encoder is large, and only makes negative embeddings without a negative prompt.
        let image_encoder = match self.rows.has_negatives() {
            false if self.outputs.needs_negative() => Wish::Needed,
            false if self.outputs.wants_negative() => Wish::Welcome,
            _ => Wish::No,
        };
        let sixteen_bit = self.load.precision != Precision::F32;
        Needs { weights: true, text_encoder: self.has_texts(), sixteen_bit, image_encoder }
    }

    /// Whether texts are encoded.
    pub(super) fn has_texts(&self) -> bool {
        RowOptions { wants_negative: self.outputs.wants_negative(), ..self.rows.clone() }.has_texts()
    }

    /// Opens the model as often as it is called.
    pub(super) fn opener(&self, model: &Model) -> Opener {
        let (folder, replacements) = (model.folder.clone(), model.replacements());
        let (load, loras, scheduler) = (self.load, self.loras.clone(), self.scheduler.clone());
        let (inversions, conditions) = (Arc::clone(&self.inversions), self.rows.conditions.clone());
        let has_texts = self.has_texts();
        Arc::new(move || {
            let mut pipeline = Pipeline::open_with(&folder, &replacements, load, scheduler.clone())?;
            inversions.iter().try_for_each(|inversion| pipeline.add_textual_inversion(inversion))?;
            if let Some(Given { name, value, .. }) = &conditions {
                pipeline.set_conditions(Arc::clone(value)).map_err(|error| bad_input!("{name:?}: {error}"))?;
            }
            if !has_texts {
                pipeline.leave_out_text_encoder();
            }
            for lora in &loras {
                pipeline.add_lora(&lora.path, lora.scale)?;
            }
            Ok(pipeline)
        })
    }

    /// Whether to compute negative embeddings: they are wanted, and the model can make them.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the user asks for them and the model cannot.
    pub(super) fn wants_negative(&self, pipeline: &Pipeline) -> Result<bool> {
        let can = self.rows.has_negatives() || pipeline.has_zero_embed();
        if self.outputs.needs_negative() && !can {
            let folder = pipeline.folder();
            return Err(bad_input!(
                "--negative-out: {folder} has no image encoder to make them with; give a --negative-prompt"
            ));
        }
        Ok(self.outputs.wants_negative() && can)
    }
}

/// Checks the options that one generator for all rows excludes.
fn check_seeding(args: &Args) -> Result<()> {
    let excluded = [
        ("--shard", args.shard.is_some(), "every row needs the draws of all"),
        ("--resume", args.resume, "the run is one batch, of which nothing is kept"),
    ];
    let excluded = excluded.into_iter().find(|(_, is_given, _)| *is_given && args.seed_layout == Seeding::Call);
    match excluded {
        Some((option, _, why)) => Err(bad_input!("--seed-layout call excludes {option}: {why}; leave out one of them")),
        None => Ok(()),
    }
}

fn prompts(args: &Args) -> Result<Prompts> {
    if args.prompt.is_empty() && args.prompts.is_none() && args.conditions.is_none() {
        return Err(bad_input!("no prompt; give --prompt TEXT, or --prompts FILE with one a line"));
    }
    if args.prompts.is_none() && args.conditions.is_none() {
        let file_options = [
            ("--format-in", args.format_in.is_some()),
            ("--prompt-column", args.prompt_column.is_some()),
            ("--no-header", args.no_header),
        ];
        for (option, _) in file_options.into_iter().filter(|(_, is_given)| *is_given) {
            warn_no_effect(option, "it is for the file of --prompts, and there is none");
        }
    }
    let read = ReadOptions {
        format: args.format_in,
        prompt_column: args.prompt_column.clone(),
        no_header: args.no_header,
        ..ReadOptions::default()
    };
    Ok(Prompts { given: args.prompt.clone(), file: args.prompts.clone(), read, conditions: None })
}

/// More threads than cores slow each other down, and the system may not start as many as the user asks for.
fn compute(args: &Args) -> ComputeOptions {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if let Some(threads) = args.threads.filter(|threads| *threads > cores) {
        log::warn!("--threads {threads} is more than the {cores} cores of this machine; using {cores}");
    }
    let batch_size = match args.batch_size {
        BatchSize::Auto => None,
        BatchSize::Rows(rows) => Some(rows),
    };
    let threads = args.threads.map(|threads| threads.min(cores));
    ComputeOptions { batch_size, threads, ..ComputeOptions::default() }
}
