//! What the options ask for, resolved once.

use super::args::Args;
use super::outputs::Outputs;
use crate::bad_input;
use crate::cli::args::warn_no_effect;
use crate::cli::context::Context;
use crate::cli::values::{BatchSize, LoraOption};
use crate::diffusion::scheduler::SchedulerOptions;
use crate::hub::{Model, ModelSource, Needs, Wish};
use crate::job::{ComputeOptions, Entries, Opener, Prompts, RowOptions};
use crate::nn::precision::Precision;
use crate::nn::prior::PriorKind;
use crate::pipeline::builtin::EMOJI;
use crate::pipeline::{Pipeline, Settings};
use crate::rows::ReadOptions;
use crate::weights::checkpoint::Placement;
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
    pub(super) scheduler: SchedulerOptions,
    /// Without what the model decides: steps, guidance, the kind of prior, and whether there are negative embeddings.
    pub(super) rows: RowOptions,
    pub(super) compute: ComputeOptions,
}

impl Request {
    /// # Errors [`crate::bad_input::BadInput`] for options that do not fit each other or this machine, prompts that cannot
    /// be read and outputs that cannot be written.
    pub(super) fn new(args: &Args, context: &Context) -> Result<Self> {
        let prompts = prompts(args)?;
        let outputs = Outputs::open(args, context)?;
        let entries = prompts.open()?;
        let device = args.device.device()?;
        let load = Placement { device, precision: args.dtype.precision(device)? };
        let components = args.components.given(args.image_encoder.as_deref());
        let model = args.revision.model(args.model.as_deref().unwrap_or(EMOJI), &components, &context.hub)?;
        let rows = RowOptions {
            negative_prompt: args.negative_prompt.clone(),
            settings: Settings::default(),
            seed: args.seed,
            samples: args.samples_per_prompt as u64,
            wants_negative: false,
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
        let image_encoder = match self.rows.negative_prompt {
            None if self.outputs.needs_negative() => Wish::Needed,
            None if self.outputs.wants_negative() => Wish::Welcome,
            _ => Wish::No,
        };
        Needs { weights: true, sixteen_bit: self.load.precision != Precision::F32, image_encoder }
    }

    /// Opens the model as often as it is called.
    pub(super) fn opener(&self, model: &Model) -> Opener {
        let (folder, replacements) = (model.folder.clone(), model.replacements());
        let (load, loras, scheduler) = (self.load, self.loras.clone(), self.scheduler.clone());
        Arc::new(move || {
            let mut pipeline = Pipeline::open_with(&folder, &replacements, load, scheduler.clone())?;
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
        let can = self.rows.negative_prompt.is_some() || pipeline.has_zero_embed();
        if self.outputs.needs_negative() && !can {
            let folder = pipeline.folder();
            return Err(bad_input!(
                "--negative-out: {folder} has no image encoder to make them with; give a --negative-prompt"
            ));
        }
        Ok(self.outputs.wants_negative() && can)
    }
}

fn prompts(args: &Args) -> Result<Prompts> {
    if args.prompt.is_empty() && args.prompts.is_none() {
        return Err(bad_input!("no prompt; give --prompt TEXT, or --prompts FILE with one a line"));
    }
    if args.prompts.is_none() {
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
    Ok(Prompts { given: args.prompt.clone(), file: args.prompts.clone(), read })
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
