//! Which model, how it samples, and where it computes: the options of every command that runs a prior.

use super::args::{ComponentArgs, RevisionArgs, at_least_one, text};
use super::values::{
    DeviceName, Dtype, InversionOption, LoraOption, SchedulerName, finite, scheduler, seed, seed_layout, temperature,
};
use crate::bad_input;
use crate::diffusion::scheduler::SchedulerOptions;
use crate::hub::{HubOptions, Model, ModelSource};
use crate::job::Seeding;
use crate::output::WriteOptions;
use crate::pipeline::Pipeline;
use crate::pipeline::builtin::EMOJI;
use crate::weights::checkpoint::Placement;
use crate::weights::checkpoint::textual_inversion::TextualInversion;
use anyhow::Result;
use clap::Args;
use clap::builder::TypedValueParser;
use std::sync::Arc;

/// Which model, and what is added to it.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// Model: a name from `prior-embed models`, owner/name[@revision] on the hub, or a folder [default: emoji]
    ///
    /// See `prior-embed help models`.
    #[arg(help_heading = "Model", short, long, value_name = "NAME", value_parser = text())]
    pub(super) model: Option<String>,

    #[command(flatten)]
    pub(super) components: ComponentArgs,

    /// Image encoder from elsewhere, which may be a whole CLIPModel
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    pub(super) image_encoder: Option<String>,

    /// LoRA for the prior, a file or a folder, and its strength [default: 1]; may be repeated
    #[arg(help_heading = "Model", long, value_name = "PATH[:SCALE]",
          value_parser = text().try_map(|text| text.parse::<LoraOption>()))]
    pub(super) lora: Vec<LoraOption>,

    /// Learned token (textual inversion), a file or a folder, and its name if not the file's; may be repeated
    ///
    /// Files of diffusers (learned_embeds.safetensors or .bin) and A1111 (.pt). A token of several vectors stands for
    /// all of them.
    #[arg(help_heading = "Model", long, value_name = "PATH[:TOKEN]",
          value_parser = text().try_map(|text| text.parse::<InversionOption>()))]
    pub(super) textual_inversion: Vec<InversionOption>,

    #[command(flatten)]
    pub(super) revision: RevisionArgs,
}

/// How the prior samples.
#[derive(Debug, Args)]
pub(super) struct SamplingArgs {
    /// Negative prompt: what guidance steers away from
    #[arg(help_heading = "Sampling", short, long, value_name = "TEXT", value_parser = text(),
          action = clap::ArgAction::Append)]
    pub(super) negative_prompt: Option<String>,

    /// What negative embeddings are of, in place of the negative prompt: a second run of the prior, for the decoder
    ///
    /// The negative_prompt of Kandinsky's interpolate, beside which --negative-prompt is its negative_prior_prompt.
    #[arg(help_heading = "Sampling", long, value_name = "TEXT", value_parser = text())]
    pub(super) decoder_negative_prompt: Option<String>,

    /// Denoising steps; a one-step or autoregressive prior takes none [default: 25]
    #[arg(help_heading = "Sampling", long, value_name = "N", allow_negative_numbers = true,
          value_parser = at_least_one("a number of steps"))]
    pub(super) steps: Option<usize>,

    /// Scale of classifier-free guidance; 1 and below turn it off, a one-step prior takes none [default: 4]
    #[arg(help_heading = "Sampling", long, value_name = "G", allow_negative_numbers = true, value_parser = finite)]
    pub(super) guidance_scale: Option<f64>,

    /// Temperature of an autoregressive prior: above 1 more varied, at 0 the likeliest tokens [default: 1]
    ///
    /// Other priors take none. See `prior-embed help models`.
    #[arg(help_heading = "Sampling", long, value_name = "T", allow_negative_numbers = true, value_parser = temperature)]
    pub(super) temperature: Option<f64>,

    /// Seed: row r of the output draws its noise with seed S + r
    ///
    /// See `prior-embed help seeds`.
    #[arg(help_heading = "Sampling", long, value_name = "S", default_value_t = 0, allow_negative_numbers = true,
          value_parser = seed)]
    pub(super) seed: u64,

    /// Which rows a generator draws for: row, each from its own, or call, all at once from one seeded S
    ///
    /// `call` gives the noise of a call in Python with generator=torch.Generator().manual_seed(S). See
    /// `prior-embed help seeds`.
    #[arg(help_heading = "Sampling", long, value_name = "NAME", default_value = "row", hide_possible_values = true,
          value_parser = seed_layout())]
    pub(super) seed_layout: Seeding,
}

/// Which scheduler.
#[derive(Debug, Args)]
pub(super) struct SchedulerArgs {
    /// Scheduler: auto (the model's own), unclip, ddpm, ddim, dpm-solver++, euler, euler-ancestral or heun
    ///
    /// Another than the model's own is made as diffusers makes it, with `from_config` of the model's configuration. See
    /// `prior-embed help schedulers`.
    #[arg(help_heading = "Sampling", long, value_name = "NAME", default_value = "auto", hide_possible_values = true,
          value_parser = scheduler())]
    pub(super) scheduler: SchedulerName,

    /// Share of DDPM's noise that a step of ddim adds, 0 to 1 [default: 0]
    #[arg(help_heading = "Sampling", long, value_name = "ETA", allow_negative_numbers = true, value_parser = finite)]
    pub(super) eta: Option<f64>,

    /// Order of dpm-solver++: 1, 2 or 3 [default: the model's, or 2]
    #[arg(help_heading = "Sampling", long, value_name = "N", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(1..=3))]
    pub(super) solver_order: Option<i64>,

    /// Have dpm-solver++ solve the stochastic differential equation, whose steps add noise
    #[arg(help_heading = "Sampling", long)]
    pub(super) sde: bool,
}

/// Where and in which numbers the networks compute.
#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    /// Device: auto, cpu, cuda, cuda:I or mps
    #[arg(help_heading = "Computation", long, value_name = "NAME", default_value = "auto")]
    device: DeviceName,

    /// Number type to compute in: f32, bf16, f16 or int8; auto is f32, which gives diffusers' numbers
    ///
    /// int8 is for the prior on the CPU, and f16 for GPUs. On a processor without instructions for a 16-bit type, f32 is used, with a
    /// warning.
    #[arg(
        help_heading = "Computation",
        long,
        value_name = "NAME",
        default_value = "auto",
        hide_possible_values = true
    )]
    dtype: Dtype,

    /// CPU threads [default: all cores]
    ///
    /// A small model runs that many pipelines of one thread each, as far as memory allows.
    #[arg(help_heading = "Computation", long, value_name = "N", allow_negative_numbers = true,
          value_parser = at_least_one("a number of threads"))]
    pub(super) threads: Option<usize>,
}

impl DeviceArgs {
    /// # Errors
    /// [`crate::bad_input::BadInput`] for a device or number type that this machine does not have.
    pub(super) fn placement(&self) -> Result<Placement> {
        let device = self.device.device()?;
        Ok(Placement { device, precision: self.dtype.precision(device)? })
    }

    /// CPU threads, if the user says: more than cores slow each other down, and the system may not start as many.
    pub(super) fn threads(&self) -> Option<usize> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if let Some(threads) = self.threads.filter(|threads| *threads > cores) {
            log::warn!("--threads {threads} is more than the {cores} cores of this machine; using {cores}");
        }
        self.threads.map(|threads| threads.min(cores))
    }
}

/// Whether to compute negative embeddings: an output wants them, and they can be made, of texts (`has_texts`) or of a black
/// image.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the user asks for them and the model cannot make them.
pub(super) fn wants_negative(write: &WriteOptions, has_texts: bool, pipeline: &Pipeline) -> Result<bool> {
    let can = has_texts || pipeline.has_zero_embed();
    if write.needs_negative() && !can {
        let folder = pipeline.folder();
        return Err(bad_input!(
            "--negative-out: {folder} has no image encoder to make them with; give a --negative-prompt"
        ));
    }
    Ok(write.wants_negative() && can)
}

/// A model as the options say: which one, how it is loaded, and what is added to it.
#[derive(Debug, Clone)]
pub(super) struct PriorSource {
    pub(super) model: ModelSource,
    pub(super) load: Placement,
    pub(super) loras: Vec<LoraOption>,
    pub(super) inversions: Arc<[TextualInversion]>,
    pub(super) scheduler: SchedulerOptions,
}

impl PriorSource {
    /// # Errors
    /// [`crate::bad_input::BadInput`] for names that cannot be, a learned token that cannot be read, and a device or
    /// number type that this machine does not have.
    pub(super) fn new(
        model: &ModelArgs,
        scheduler: &SchedulerArgs,
        device: &DeviceArgs,
        hub: &HubOptions,
    ) -> Result<Self> {
        let inversions = model.textual_inversion.iter();
        let inversions = inversions.map(|option| TextualInversion::open(&option.path, option.token.as_deref()));
        let inversions = inversions.collect::<crate::Result<Vec<_>>>()?;
        let load = device.placement()?;
        let components = model.components.given(model.image_encoder.as_deref());
        Ok(Self {
            model: model.revision.model(model.model.as_deref().unwrap_or(EMOJI), &components, hub)?,
            load,
            loras: model.lora.clone(),
            inversions: inversions.into(),
            scheduler: SchedulerOptions {
                class: scheduler.scheduler.0,
                eta: scheduler.eta,
                solver_order: scheduler.solver_order,
                sde: scheduler.sde,
            },
        })
    }

    /// Opens the model, which is on this machine.
    ///
    /// # Errors
    /// If it is damaged or not supported, or what is added to it does not fit.
    pub(super) fn open(&self, model: &Model) -> Result<Pipeline> {
        let mut pipeline =
            Pipeline::open_with(&model.folder, &model.replacements(), self.load, self.scheduler.clone())?;
        self.inversions.iter().try_for_each(|inversion| pipeline.add_textual_inversion(inversion))?;
        for lora in &self.loras {
            pipeline.add_lora(&lora.path, lora.scale)?;
        }
        Ok(pipeline)
    }
}
