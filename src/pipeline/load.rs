//! Opens a pipeline, and loads its networks when they are needed.

use super::conditions::Conditions;
use super::fit::check_fit;
use super::layout::{CONFIG, Layout, Replacements, SCHEDULER, SCHEDULER_CONFIG};
use super::negative::NegativeCache;
use super::parameters::{Networks, Parameters};
use super::progress::Progress;
use super::request::{Settings, Timings};
use super::text::TextStage;
use crate::config;
use crate::diffusion::scheduler::{SchedulerClass, SchedulerConfig, SchedulerOptions};
use crate::diffusion::schedulers;
use crate::error::{Component, Hint};
use crate::files::Folder;
use crate::nn::image_encoder::ImageEncoder;
use crate::nn::prior::{Network, NetworkConfig, PriorConfig, PriorKind};
use crate::nn::text_encoder::{TextEncoder, TextEncoderConfig};
use crate::text;
use crate::tokenizer::Tokenizer;
use crate::weights::checkpoint::{Checkpoint, Placement, Weights};
use crate::weights::lora::Lora;
use crate::{Error, Result};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A model. Its networks are loaded when they are first needed.
#[derive(Debug)]
pub struct Pipeline {
    pub(super) layout: Layout,
    /// Where and in which type the prior computes, whatever its weights are stored in. The CLIP encoders compute in the
    /// same type, but are never quantized.
    pub(super) placement: Placement,
    pub(super) text: TextStage,
    pub(super) prior_config: NetworkConfig,
    pub(super) prior: Option<Network>,
    pub(super) image_encoder: Option<ImageEncoder>,
    pub(super) loras: Vec<Lora>,
    /// Not with a prior that takes no steps.
    pub(super) scheduler: Option<Box<dyn SchedulerConfig>>,
    pub(super) parameters: OnceCell<Parameters>,
    pub(super) negative: Option<NegativeCache>,
    /// What stands in the place of prompts.
    pub(super) conditions: Option<Arc<Conditions>>,
    pub(super) keeps_text_encoder: bool,
    pub(super) networks: Networks,
    pub(super) timings: Timings,
}

impl Pipeline {
    /// Opens the model in a folder, some of whose components may come from elsewhere: reads and checks all that is
    /// small, and no weights.
    ///
    /// # Errors
    /// If a component is missing, damaged, not supported, or does not fit the others, and [`Error::Option`] if the
    /// scheduler has no use for an option.
    pub fn open_with(
        folder: &Folder,
        replacements: &Replacements,
        placement: Placement,
        scheduler_options: SchedulerOptions,
    ) -> Result<Self> {
        let layout = Layout { scheduler_options, ..Layout::find(folder, replacements)? };
        Self::of_layout(layout, placement)
    }

    /// The same with the model's own components, to sample as its own configuration says.
    #[cfg(test)]
    pub fn open(folder: impl Into<Folder>, placement: Placement) -> Result<Self> {
        Self::open_with(&folder.into(), &Replacements::new(), placement, SchedulerOptions::default())
    }

    /// Opens a model whose components were found before.
    ///
    /// # Errors
    /// As [`Pipeline::open_with`].
    pub fn of_layout(layout: Layout, placement: Placement) -> Result<Self> {
        let start = Instant::now();
        let prior_config = read_prior_config(&layout)?;
        let scheduler = match prior_config.kind() {
            kind if !kind.has_steps() => refuse_scheduler(&layout, kind).map(|()| None)?,
            _ => Some(read_scheduler(&layout)?),
        };
        let text_config: TextEncoderConfig = config::read(&layout.text_encoder, CONFIG)?;
        let tokenizer = Tokenizer::open(&layout.tokenizer, text_config.max_position_embeddings as usize)?;
        check_fit(&layout, &tokenizer, &text_config, &prior_config, scheduler.as_deref())?;
        // Shap-E's pipeline pads with token 0 whatever the tokenizer says.
        let tokenizer = if prior_config.is_sequence() { tokenizer.padded_with(0) } else { tokenizer };
        Ok(Self {
            layout,
            placement,
            text: TextStage {
                tokenizer,
                config: text_config,
                encoder: None,
                learned: Vec::new(),
                inversions: Vec::new(),
            },
            prior_config,
            prior: None,
            image_encoder: None,
            loras: Vec::new(),
            scheduler,
            parameters: OnceCell::new(),
            negative: None,
            conditions: None,
            keeps_text_encoder: true,
            networks: Networks::TextAndPrior,
            timings: Timings { load: start.elapsed(), ..Timings::default() },
        })
    }

    /// Adds a LoRA, a file or a folder, which is merged into the prior with `scale` times its strength when the prior
    /// is loaded.
    ///
    /// # Errors
    /// [`Error::Lora`] if it is damaged or for another model.
    pub fn add_lora(&mut self, path: &Path, scale: f64) -> Result<()> {
        let lora = Lora::open(path, scale)?;
        // Checked now, not after all prompts have been encoded.
        Checkpoint::open_folder(&self.layout.prior)?.add_lora(&lora)?;
        self.loras.push(lora);
        (self.prior, self.negative) = (None, None);
        Ok(())
    }

    /// Whether the text encoder stays in memory once a batch is encoded (the default), for the next batch.
    ///
    /// If it does not, networks of one batch never share the memory, and the negative prompts share the prompts'
    /// forward passes. If it does, they have passes of their own, so that a row's last bits do not depend on which
    /// batch came first.
    pub fn keep_text_encoder(&mut self, keeps: bool) {
        self.keeps_text_encoder = keeps;
    }

    /// Plans without the text encoder, whose weights may be absent: all prompts are [`Prompt::Condition`]s, and so are
    /// the negative ones as far as guidance needs them.
    ///
    /// [`Prompt::Condition`]: super::Prompt::Condition
    pub fn leave_out_text_encoder(&mut self) {
        self.networks = Networks::Prior;
    }

    /// Loads the networks that texts need, before the first of them comes.
    ///
    /// # Errors
    /// If weights are damaged or do not fit their configuration.
    #[cfg(feature = "serve")]
    pub fn load(&mut self, progress: &mut dyn Progress) -> Result<()> {
        self.load_text_encoder(progress)?;
        self.load_prior(progress)
    }

    /// Loads the text encoder unless it is loaded.
    ///
    /// # Errors
    /// If its weights are damaged or do not fit its configuration.
    pub(super) fn load_text_encoder(&mut self, progress: &mut dyn Progress) -> Result<()> {
        if self.text.encoder.is_none() {
            progress.loading(Component::TextEncoder);
            let start = Instant::now();
            let checkpoint = Checkpoint::open_folder(&self.layout.text_encoder)?;
            let load = |weights: &Weights| TextEncoder::load(weights, &self.text.config);
            let mut encoder = checkpoint.build("", self.encoder_placement(), load)?;
            encoder.add_tokens(&self.text.learned)?;
            self.text.encoder = Some(encoder);
            self.timings.load += start.elapsed();
        }
        Ok(())
    }

    /// Loads the prior, and merges the LoRAs, unless it is loaded.
    ///
    /// # Errors
    /// As [`Pipeline::load_text_encoder`].
    pub(super) fn load_prior(&mut self, progress: &mut dyn Progress) -> Result<()> {
        if self.prior.is_none() {
            progress.loading(Component::Prior);
            let start = Instant::now();
            let mut checkpoint = Checkpoint::open_folder(&self.layout.prior)?;
            for lora in &self.loras {
                checkpoint.add_lora(lora)?;
            }
            let load = |weights: &Weights| Network::load(weights, &self.prior_config);
            self.prior = Some(checkpoint.build("", self.placement, load)?);
            self.timings.load += start.elapsed();
        }
        Ok(())
    }

    /// The error on a result that is not finite: names the tensors of `components` that are to blame, if any.
    pub(super) fn explain_non_finite(&self, what: &str, components: &[Component]) -> Error {
        let found = non_finite_tensors(&self.layout, components).unwrap_or_default();
        if found.is_empty() {
            let reason = format!("{what} is not finite (NaN or infinity)");
            return Error::NotFinite { reason, hint: Some(Hint::UseFloat32) };
        }
        let list =
            |(folder, names): (String, Vec<String>)| format!("{folder} has NaN or infinity in {}", text::list(&names));
        let places = found.into_iter().map(list).collect::<Vec<_>>().join(", ");
        Error::NotFinite { reason: format!("{what} is not finite: {places}"), hint: Some(Hint::FetchAgain) }
    }

    /// Where and in which type the prior computes.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Where and in which type the CLIP encoders compute.
    pub(super) fn encoder_placement(&self) -> Placement {
        Placement { precision: self.placement.precision.unquantized(), ..self.placement }
    }

    /// The folder that the model was loaded from.
    pub fn folder(&self) -> &Folder {
        &self.layout.folder
    }

    /// The embedding dimension: how many numbers a row has.
    pub fn embedding_dim(&self) -> usize {
        let dim = match self.prior_config.is_sequence() {
            true => self.prior_config.num_embeddings().saturating_mul(self.prior_config.embedding_dim()),
            false => self.prior_config.embedding_dim(),
        };
        usize::try_from(dim).unwrap_or(0)
    }

    /// The dimension of text embeddings.
    pub fn text_embedding_dim(&self) -> usize {
        usize::try_from(self.text.config.projection_dim).unwrap_or(0)
    }

    /// The shape of a row that is a sequence of latents, `(tokens, dim)`; `None` for an embedding.
    pub fn row_shape(&self) -> Option<[usize; 2]> {
        let NetworkConfig::Transformer(PriorConfig { num_embeddings, embedding_dim, .. }) = self.prior_config else {
            return None;
        };
        let shape = [usize::try_from(num_embeddings).ok()?, usize::try_from(embedding_dim).ok()?];
        self.prior_config.is_sequence().then_some(shape)
    }

    /// The kind of the prior.
    pub fn kind(&self) -> PriorKind {
        self.prior_config.kind()
    }

    /// Whether the prior makes an embedding in one step: without a scheduler, guidance or a number of steps.
    pub fn is_one_step(&self) -> bool {
        self.kind() == PriorKind::OneStep
    }

    /// The class of the scheduler in force; `None` with a prior that takes no steps.
    pub fn scheduler_class(&self) -> Option<SchedulerClass> {
        self.scheduler.as_ref().map(|_| self.scheduler_options().class.unwrap_or(self.layout.scheduler_class))
    }

    /// How to sample otherwise than the model's own configuration says.
    pub fn scheduler_options(&self) -> &SchedulerOptions {
        &self.layout.scheduler_options
    }

    /// The largest number of denoising steps such that the model can do any smaller one.
    pub fn max_steps(&self) -> usize {
        self.scheduler.as_ref().map_or(Settings::ONE_STEP.steps, |scheduler| scheduler.max_steps())
    }

    /// The settings of a run: those that are given, or the defaults.
    ///
    /// # Errors
    /// [`Error::Option`] if the model cannot do so many denoising steps, or its kind of prior does not take one that is
    /// given, or the temperature is negative or not finite.
    pub fn settings(
        &self,
        steps: Option<usize>,
        guidance_scale: Option<f64>,
        temperature: Option<f64>,
    ) -> Result<Settings> {
        let kind = self.kind();
        let refused = [
            ("steps", steps.is_some() && !kind.has_steps()),
            ("guidance_scale", guidance_scale.is_some() && !kind.has_guidance()),
            ("temperature", temperature.is_some() && !kind.has_temperature()),
        ];
        if let Some((option, _)) = refused.into_iter().find(|(_, is_refused)| *is_refused) {
            return Err(takes_none(&self.layout, option, kind));
        }
        let default = if kind == PriorKind::OneStep { Settings::ONE_STEP } else { Settings::default() };
        let steps = match &self.scheduler {
            Some(scheduler) => {
                let steps = steps.unwrap_or(default.steps);
                scheduler.scheduler(steps).map(|_| steps)?
            }
            None => Settings::ONE_STEP.steps,
        };
        let temperature = temperature.unwrap_or(default.temperature);
        if !(0.0..=f64::MAX).contains(&temperature) {
            let reason = format!("it is {temperature}, and must be a finite number, 0 or above");
            return Err(Error::Option { option: "temperature", reason });
        }
        let guidance_scale = guidance_scale.unwrap_or(default.guidance_scale);
        Ok(Settings { steps, guidance_scale, temperature, strength: None })
    }

    /// How often the prior runs: steps of denoising, or tokens of an autoregressive one.
    ///
    /// # Errors
    /// [`Error::Option`] if the model cannot do so many.
    pub fn passes(&self, settings: &Settings) -> Result<usize> {
        match &self.scheduler {
            Some(scheduler) => {
                let timesteps = scheduler.scheduler(settings.steps)?.timesteps().len();
                Ok(timesteps.saturating_sub(settings.first_step()))
            }
            None => Ok(match &self.prior_config {
                NetworkConfig::Autoregressive(config) => usize::try_from(config.num_tokens).unwrap_or(1),
                NetworkConfig::Transformer(_) => 1,
            }),
        }
    }

    /// Where the time went so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }
}

/// Reads the prior's configuration, and checks that it and the weights, if they are there, are of one kind of prior.
///
/// # Errors
/// If it is missing, damaged or not supported.
pub(super) fn read_prior_config(layout: &Layout) -> Result<NetworkConfig> {
    let config = NetworkConfig::read(&layout.prior, CONFIG)?;
    // Checked now, not after all prompts have been encoded. Damaged weights are reported when they are loaded.
    let checkpoint = Checkpoint::open_folder(&layout.prior).ok();
    let names = checkpoint.iter().flat_map(Checkpoint::names);
    let checked = config.check_kind(names, &layout.prior.to_string());
    checked.map_err(|error| error.with_path(&layout.prior.path_of(CONFIG)))?;
    Ok(config)
}

/// Reads the scheduler's configuration, for the class in force.
///
/// # Errors
/// If it is missing, damaged or not supported.
pub(super) fn read_scheduler(layout: &Layout) -> Result<Box<dyn SchedulerConfig>> {
    let folder = layout.scheduler.as_ref().ok_or_else(|| SCHEDULER.missing_in(&layout.folder))?;
    let (text, path) = (folder.read_text(SCHEDULER_CONFIG)?, folder.path_of(SCHEDULER_CONFIG));
    schedulers::configure(&text, &path, layout.scheduler_class, &layout.scheduler_options)
}

/// Refuses a choice of scheduler, for a prior that takes no steps.
fn refuse_scheduler(layout: &Layout, kind: PriorKind) -> Result<()> {
    let options = &layout.scheduler_options;
    let class = options.class.map(|_| "scheduler");
    match class.or_else(|| options.given().next()) {
        Some(option) => Err(takes_none(layout, option, kind)),
        None => Ok(()),
    }
}

/// The error on an option that a kind of prior does not take.
fn takes_none(layout: &Layout, option: &'static str, kind: PriorKind) -> Error {
    let reason = format!("{} has {}, which takes none; leave it out", layout.folder, kind.title());
    Error::Option { option, reason }
}

/// The tensors of components that are not finite, by folder: the model's own, or that of a component from elsewhere.
fn non_finite_tensors(layout: &Layout, components: &[Component]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for &component in components {
        let Some(folder) = layout.folder_of(component) else { continue };
        let names = Checkpoint::open_folder(folder)?.non_finite_tensors()?.into_iter();
        let (place, names): (String, Vec<String>) = match layout.is_replaced(component) {
            true => (folder.to_string(), names.collect()),
            false => (layout.folder.to_string(), names.map(|name| format!("{}/{name}", folder.name())).collect()),
        };
        if !names.is_empty() {
            found.entry(place).or_default().extend(names);
        }
    }
    Ok(found)
}
