//! Opens a pipeline, checks that its components fit each other, and loads its networks when they are needed.

use super::layout::{CONFIG, Layout, Replacements, SCHEDULER_CONFIG};
use super::negative::NegativeCache;
use super::parameters::Parameters;
use super::progress::Progress;
use super::request::Timings;
use super::text::TextStage;
use crate::config;
use crate::diffusion::scheduler::{SchedulerClass, SchedulerConfig};
use crate::error::{Component, Hint};
use crate::files::Folder;
use crate::nn::image_encoder::ImageEncoderConfig;
use crate::nn::prior::{ADDITIONAL_TOKENS, PriorConfig, PriorTransformer};
use crate::nn::text_encoder::{TextEncoder, TextEncoderConfig};
use crate::text;
use crate::tokenizer::Tokenizer;
use crate::weights::checkpoint::{Checkpoint, Placement, Weights};
use crate::weights::lora::Lora;
use crate::{Error, Result};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// A model. Its networks are loaded when they are first needed.
#[derive(Debug)]
pub struct Pipeline {
    pub(super) layout: Layout,
    /// Where and in which type the prior computes, whatever its weights are stored in. The CLIP encoders compute in the
    /// same type, but are never quantized.
    pub(super) placement: Placement,
    pub(super) text: TextStage,
    pub(super) prior_config: PriorConfig,
    pub(super) prior: Option<PriorTransformer>,
    pub(super) loras: Vec<Lora>,
    pub(super) scheduler: Box<dyn SchedulerConfig>,
    pub(super) parameters: OnceCell<Parameters>,
    pub(super) negative: Option<NegativeCache>,
    pub(super) keeps_text_encoder: bool,
    pub(super) timings: Timings,
}

impl Pipeline {
    /// Opens the model in a folder, some of whose components may come from elsewhere: reads and checks all that is
    /// small, and no weights.
    ///
    /// # Errors
    /// If a component is missing, damaged, not supported, or does not fit the others.
    pub fn open_with(folder: &Folder, replacements: &Replacements, placement: Placement) -> Result<Self> {
        Self::of_layout(Layout::find(folder, replacements)?, placement)
    }

    /// The same with the model's own components.
    #[cfg(test)]
    pub fn open(folder: impl Into<Folder>, placement: Placement) -> Result<Self> {
        Self::open_with(&folder.into(), &Replacements::new(), placement)
    }

    /// Opens a model whose components were found before.
    ///
    /// # Errors
    /// As [`Pipeline::open_with`].
    pub fn of_layout(layout: Layout, placement: Placement) -> Result<Self> {
        let start = Instant::now();
        let scheduler = read_scheduler(&layout)?;
        let prior_config: PriorConfig = config::read(&layout.prior, CONFIG)?;
        let text_config: TextEncoderConfig = config::read(&layout.text_encoder, CONFIG)?;
        let tokenizer = Tokenizer::open(&layout.tokenizer, text_config.max_position_embeddings as usize)?;
        check_fit(&layout, &tokenizer, &text_config, &prior_config, &*scheduler)?;
        Ok(Self {
            layout,
            placement,
            text: TextStage { tokenizer, config: text_config, encoder: None },
            prior_config,
            prior: None,
            loras: Vec::new(),
            scheduler,
            parameters: OnceCell::new(),
            negative: None,
            keeps_text_encoder: true,
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
            self.text.encoder = Some(checkpoint.build("", self.encoder_placement(), load)?);
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
            let load = |weights: &Weights| PriorTransformer::load(weights, &self.prior_config);
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

    /// The embedding dimension.
    pub fn embedding_dim(&self) -> usize {
        usize::try_from(self.prior_config.embedding_dim).unwrap_or(0)
    }

    /// The class of the model's scheduler.
    pub fn scheduler_class(&self) -> SchedulerClass {
        self.layout.scheduler_class
    }

    /// The largest number of denoising steps such that the model can do any smaller one.
    pub fn max_steps(&self) -> usize {
        self.scheduler.max_steps()
    }

    /// Checks that the model can do so many denoising steps.
    ///
    /// # Errors
    /// [`Error::Option`] if it cannot.
    pub fn check_steps(&self, steps: usize) -> Result<()> {
        self.scheduler.scheduler(steps).map(drop)
    }

    /// Where the time went so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }
}

/// Reads the scheduler's configuration.
///
/// # Errors
/// If it is missing, damaged or not supported.
pub(super) fn read_scheduler(layout: &Layout) -> Result<Box<dyn SchedulerConfig>> {
    let path = layout.scheduler.path_of(SCHEDULER_CONFIG);
    (layout.scheduler_class.parse)(&layout.scheduler.read_text(SCHEDULER_CONFIG)?, &path)
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

/// Checks the sizes at which components meet.
fn check_fit(
    layout: &Layout,
    tokenizer: &Tokenizer,
    text: &TextEncoderConfig,
    prior: &PriorConfig,
    scheduler: &dyn SchedulerConfig,
) -> Result<()> {
    let mismatch = |reason: String| Err(Error::Mismatch { path: layout.folder.to_string(), reason });
    if prior.added_emb_type.is_none() {
        return mismatch("the prior has no query token (added_emb_type is null), so it gives no CLIP embedding".into());
    }
    let state_dim = if prior.encoder_hid_proj_type.is_some() { prior.embedding_dim } else { prior.inner_dim() };
    use Component::{Prior, TextEncoder, Tokenizer as TokenizerFiles};
    let equal = [
        (
            (TokenizerFiles, "the tokenizer's model_max_length", tokenizer.max_length() as i64),
            (Prior, "the prior's num_embeddings", prior.num_embeddings),
        ),
        (
            (Prior, "the number of tokens after the text", ADDITIONAL_TOKENS),
            (Prior, "the prior's additional_embeddings", prior.additional_embeddings),
        ),
        (
            (TextEncoder, "the text encoder's hidden_size", text.hidden_size),
            (Prior, "the width of the prior's text states", state_dim),
        ),
        (
            (TextEncoder, "the text encoder's projection_dim", text.projection_dim),
            (Prior, "the prior's embedding_proj_dim", prior.embedding_proj_dim()),
        ),
        (
            (Prior, "the prior's embedding_dim", prior.embedding_dim),
            (Prior, "the prior's clip_embed_dim", prior.clip_embed_dim()),
        ),
    ];
    if let Some((left, right)) = equal.into_iter().find(|((_, _, left), (_, _, right))| left != right) {
        let ((left, left_size, left_value), (right, right_size, right_value)) = (left, right);
        let origins = origins(layout, &[left, right]);
        return mismatch(format!("{left_size} ({left_value}) and {right_size} ({right_value}) must be equal{origins}"));
    }
    if tokenizer.max_length() as i64 > text.max_position_embeddings {
        let (max, length) = (text.max_position_embeddings, tokenizer.max_length());
        let origins = origins(layout, &[TokenizerFiles, TextEncoder]);
        return mismatch(format!(
            "the tokenizer gives {length} tokens and the text encoder takes at most {max}{origins}"
        ));
    }
    if scheduler.needs_variance() {
        let reason = "the scheduler's variance_type \"learned_range\" needs a prior that predicts a variance";
        return mismatch(reason.into());
    }
    if layout.is_replaced(Component::ImageEncoder) {
        check_image_encoder(layout, prior)?;
    }
    Ok(())
}

/// Checks that an image encoder's embeddings are as wide as the prior's.
///
/// # Errors
/// [`Error::Mismatch`] if they are not, or an error if its configuration is damaged.
pub(super) fn check_image_encoder(layout: &Layout, prior: &PriorConfig) -> Result<()> {
    let Some(folder) = &layout.image_encoder else { return Ok(()) };
    let config: ImageEncoderConfig = config::read(folder, CONFIG)?;
    let (image, prior) = (config.projection_dim, prior.embedding_dim);
    if image == prior {
        return Ok(());
    }
    let origins = origins(layout, &[Component::ImageEncoder, Component::Prior]);
    let sizes = format!("the image encoder's projection_dim ({image}) and the prior's embedding_dim ({prior})");
    Err(Error::Mismatch { path: layout.folder.to_string(), reason: format!("{sizes} must be equal{origins}") })
}

/// Where two components come from, as the end of a sentence; empty if both are the model's own.
fn origins(layout: &Layout, components: &[Component; 2]) -> String {
    let is_replaced = |component: &Component| layout.is_replaced(*component);
    if components[0] == components[1] || !components.iter().any(is_replaced) {
        return String::new();
    }
    let origin = |component: &Component| {
        layout.folder_of(*component).map(|folder| format!("the {component} is that of {folder}"))
    };
    let origins = components.iter().filter_map(origin).collect::<Vec<_>>().join(", ");
    format!("; {origins}")
}
