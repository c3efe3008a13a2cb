//! Opens a pipeline, checks that its components fit each other, and loads its networks when they are needed.

use super::conditions::Conditions;
use super::layout::{Layout, SCHEDULER_CONFIG};
use super::negative::NegativeCache;
use super::parameters::Parameters;
use super::progress::Progress;
use super::request::Timings;
use super::text::TextStage;
use crate::config;
use crate::diffusion::scheduler::{SchedulerClass, SchedulerConfig};
use crate::error::{Component, Hint};
use crate::files::Folder;
use crate::nn::prior::{ADDITIONAL_TOKENS, PriorConfig, PriorTransformer};
use crate::nn::text_encoder::{TextEncoder, TextEncoderConfig};
use crate::text;
use crate::tokenizer::Tokenizer;
use crate::weights::checkpoint::{Checkpoint, Placement, Weights};
use crate::weights::lora::Lora;
use crate::{Error, Result};
use std::cell::OnceCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The file that a network is configured in.
pub const CONFIG: &str = "config.json";

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
    /// What stands in the place of prompts.
    pub(super) conditions: Option<Arc<Conditions>>,
    pub(super) keeps_text_encoder: bool,
    /// Whether runs have texts to encode; if not, the weights may be absent.
    pub(super) needs_text_encoder: bool,
    pub(super) timings: Timings,
}

impl Pipeline {
    /// Opens the model in a folder: reads and checks all that is small, and no weights.
    ///
    /// # Errors
    /// If a component is missing, damaged, not supported, or does not fit the others.
    pub fn open(folder: impl Into<Folder>, placement: Placement) -> Result<Self> {
        let start = Instant::now();
        let mut pipeline = Self::of_layout(Layout::find(&folder.into())?, placement)?;
        pipeline.timings.load = start.elapsed();
        Ok(pipeline)
    }

    /// Opens a model whose components were found before.
    ///
    /// # Errors
    /// As [`Pipeline::open`].
    pub fn of_layout(layout: Layout, placement: Placement) -> Result<Self> {
        let scheduler = read_scheduler(&layout)?;
        let prior_config: PriorConfig = config::read(&layout.prior, CONFIG)?;
        let text_config: TextEncoderConfig = config::read(&layout.text_encoder, CONFIG)?;
        let tokenizer = Tokenizer::open(&layout.tokenizer, text_config.max_position_embeddings as usize)?;
        check_fit(&layout, &tokenizer, &text_config, &prior_config, &*scheduler)?;
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
            loras: Vec::new(),
            scheduler,
            parameters: OnceCell::new(),
            negative: None,
            conditions: None,
            keeps_text_encoder: true,
            needs_text_encoder: true,
            timings: Timings::default(),
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

    /// Plans without the text encoder, whose weights may be absent: all prompts are [`Prompt::Condition`]s, the negative
    /// ones too as far as guidance needs them.
    ///
    /// [`Prompt::Condition`]: super::Prompt::Condition
    pub fn leave_out_text_encoder(&mut self) {
        self.needs_text_encoder = false;
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
            let load = |weights: &Weights| PriorTransformer::load(weights, &self.prior_config);
            self.prior = Some(checkpoint.build("", self.placement, load)?);
            self.timings.load += start.elapsed();
        }
        Ok(())
    }

    /// The error on a result that is not finite: names the tensors of `components` that are to blame, if any.
    pub(super) fn explain_non_finite(&self, what: &str, components: &[&Folder]) -> Error {
        let names = non_finite_tensors(components).unwrap_or_default();
        if names.is_empty() {
            let reason = format!("{what} is not finite (NaN or infinity)");
            return Error::NotFinite { reason, hint: Some(Hint::UseFloat32) };
        }
        let (folder, names) = (&self.layout.folder, text::list(&names));
        let reason = format!("{what} is not finite: {folder} has NaN or infinity in {names}");
        Error::NotFinite { reason, hint: Some(Hint::FetchAgain) }
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

    /// The dimension of text embeddings.
    pub fn text_embedding_dim(&self) -> usize {
        usize::try_from(self.text.config.projection_dim).unwrap_or(0)
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

/// The tensors in components' folders that are not finite.
fn non_finite_tensors(components: &[&Folder]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in components {
        let component = folder.name();
        let found = Checkpoint::open_folder(folder)?.non_finite_tensors()?;
        names.extend(found.into_iter().map(|name| format!("{component}/{name}")));
    }
    Ok(names)
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
    let equal = [
        (
            "the tokenizer's model_max_length",
            tokenizer.max_length() as i64,
            "the prior's num_embeddings",
            prior.num_embeddings,
        ),
        (
            "the number of tokens after the text",
            ADDITIONAL_TOKENS,
            "the prior's additional_embeddings",
            prior.additional_embeddings,
        ),
        ("the text encoder's hidden_size", text.hidden_size, "the width of the prior's text states", state_dim),
        (
            "the text encoder's projection_dim",
            text.projection_dim,
            "the prior's embedding_proj_dim",
            prior.embedding_proj_dim(),
        ),
        ("the prior's embedding_dim", prior.embedding_dim, "the prior's clip_embed_dim", prior.clip_embed_dim()),
    ];
    if let Some((left, left_value, right, right_value)) = equal.into_iter().find(|(_, left, _, right)| left != right) {
        return mismatch(format!("{left} ({left_value}) and {right} ({right_value}) must be equal"));
    }
    if tokenizer.max_length() as i64 > text.max_position_embeddings {
        let (max, length) = (text.max_position_embeddings, tokenizer.max_length());
        return mismatch(format!("the tokenizer gives {length} tokens and the text encoder takes at most {max}"));
    }
    if scheduler.needs_variance() {
        let reason = "the scheduler's variance_type \"learned_range\" needs a prior that predicts a variance";
        return mismatch(reason.into());
    }
    Ok(())
}
