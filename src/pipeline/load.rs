//! Loads the components of a pipeline and checks that they fit each other.

use super::layout::{Layout, SCHEDULER_CONFIG, ZERO_IMAGE_EMBED};
use super::text::TextStage;
use super::{Observer, Pipeline, Timings, to_rows};
use crate::bad_input;
use crate::config::{self, Config};
use crate::diffusion::scheduler::{SchedulerClass, SchedulerConfig};
use crate::files::Folder;
use crate::nn::image_encoder::{ImageEncoder, ImageEncoderConfig};
use crate::nn::precision::Precision;
use crate::nn::prior::{ADDITIONAL_TOKENS, PriorConfig, PriorTransformer};
use crate::nn::text_encoder::{TextEncoder, TextEncoderConfig};
use crate::tokenizer::Tokenizer;
use crate::weights::checkpoint::{Checkpoint, Placement, Weights};
use crate::weights::lora::Lora;
use anyhow::{Result, anyhow};
use ndarray::Array1;
use std::cell::OnceCell;
use std::path::Path;
use std::time::Instant;
use tch::Device;

/// Where and in which type the networks compute.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// The device that holds the weights.
    pub device: Device,
    /// What the prior computes in, whatever its weights are stored in: float32 is diffusers with `torch_dtype=torch.float32`,
    /// without which the CLIP encoders compute there in the type that they are stored in. They are never quantized here.
    pub precision: Precision,
}

impl LoadOptions {
    fn encoder_placement(self) -> Placement {
        Placement { device: self.device, precision: self.precision.unquantized() }
    }
}

impl Pipeline {
    /// Opens the model in a folder: reads and checks all that is small, and no weights.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if a component is missing, broken, unsupported, or does not fit the others.
    pub fn open(folder: impl Into<Folder>, options: LoadOptions) -> Result<Self> {
        let start = Instant::now();
        let mut pipeline = Self::of_layout(Layout::find(&folder.into())?, options)?;
        pipeline.timings.load = start.elapsed();
        Ok(pipeline)
    }

    /// The same of components that were found before.
    ///
    /// # Errors
    /// As [`Pipeline::open`].
    pub fn of_layout(layout: Layout, options: LoadOptions) -> Result<Self> {
        let scheduler = read_scheduler(&layout)?;
        let prior_config: PriorConfig = config::read(&layout.prior, "config.json")?;
        let text_config: TextEncoderConfig = config::read(&layout.text_encoder, "config.json")?;
        let tokenizer = Tokenizer::open(&layout.tokenizer, text_config.max_position_embeddings as usize)?;
        check_fit(&layout, &tokenizer, &text_config, &prior_config, &scheduler)?;
        let text = TextStage { tokenizer, config: text_config, encoder: None };
        let timings = Timings::default();
        let parameters = OnceCell::new();
        Ok(Self {
            layout,
            options,
            text,
            prior_config,
            prior: None,
            loras: Vec::new(),
            scheduler,
            parameters,
            negative: None,
            timings,
        })
    }

    /// Merges a LoRA into the prior when it is loaded: a file or a folder, with `scale` times its strength.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if it is broken or for another model.
    pub fn add_lora(&mut self, path: &Path, scale: f64) -> Result<()> {
        let lora = Lora::open(path, scale)?;
        // Now, and not after all prompts have been encoded.
        Checkpoint::open_folder(&self.layout.prior)?.add_lora(&lora)?;
        self.loras.push(lora);
        Ok(())
    }

    /// Loads the text encoder if it is not there.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if its weights are broken or do not fit its configuration.
    pub(super) fn load_text_encoder(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.text.encoder.is_none() {
            observer.loading("text encoder");
            let start = Instant::now();
            let checkpoint = Checkpoint::open_folder(&self.layout.text_encoder)?;
            let placement = self.options.encoder_placement();
            self.text.encoder = Some(load_module(&checkpoint, &self.text.config, placement, TextEncoder::load)?);
            self.timings.load += start.elapsed();
        }
        Ok(())
    }

    /// Loads the prior if it is not there.
    ///
    /// # Errors
    /// As [`Pipeline::load_text_encoder`].
    pub(super) fn load_prior(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.prior.is_none() {
            observer.loading("prior");
            let start = Instant::now();
            let mut checkpoint = Checkpoint::open_folder(&self.layout.prior)?;
            for lora in &self.loras {
                checkpoint.add_lora(lora)?;
            }
            let LoadOptions { device, precision } = self.options;
            let placement = Placement { device, precision };
            self.prior = Some(load_module(&checkpoint, &self.prior_config, placement, PriorTransformer::load)?);
            self.timings.load += start.elapsed();
        }
        Ok(())
    }

    /// The image embedding of a black image, which decoders take as the negative embedding when there is no negative
    /// prompt; `None` if the model comes with neither an image encoder nor a file that holds the embedding.
    ///
    /// The image encoder is read for this alone, and the other networks make room for it: where they are needed again, they
    /// are loaded again.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the image encoder or the file is broken; an error if the embedding is not finite.
    pub fn zero_embed(&mut self) -> Result<Option<Array1<f32>>> {
        let Some(folder) = &self.layout.image_encoder else { return self.read_zero_embed() };
        self.text.release();
        (self.prior, self.negative) = (None, None);
        let start = Instant::now();
        let config: ImageEncoderConfig = config::read(folder, "config.json")?;
        let checkpoint = Checkpoint::open_folder(folder)?;
        let encoder = load_module(&checkpoint, &config, self.options.encoder_placement(), ImageEncoder::load)?;
        self.timings.load += start.elapsed();
        let embed = to_rows(&encoder.zero_embed()?)?;
        if embed.iter().any(|value| !value.is_finite()) {
            return Err(self.explain_non_finite("the embedding of a black image", &[folder]));
        }
        Ok(Some(embed.row(0).to_owned()))
    }

    /// The same from [`ZERO_IMAGE_EMBED`].
    fn read_zero_embed(&self) -> Result<Option<Array1<f32>>> {
        let Layout { folder, has_zero_image_embed: true, .. } = &self.layout else { return Ok(None) };
        let path = folder.path_of(ZERO_IMAGE_EMBED);
        let checkpoint = Checkpoint::open_file(folder, ZERO_IMAGE_EMBED)?;
        let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
        let shape = [1, self.prior_config.embedding_dim];
        let embed = to_rows(&checkpoint.build("", placement, |weights| weights.tensor("image_embeds", &shape))?)?;
        if embed.iter().any(|value| !value.is_finite()) {
            return Err(anyhow!("the embedding of a black image is not finite: {path} has NaN or infinity in it"));
        }
        Ok(Some(embed.row(0).to_owned()))
    }

    /// Whether [`Pipeline::zero_embed`] gives one.
    pub fn has_zero_embed(&self) -> bool {
        self.layout.image_encoder.is_some() || self.layout.has_zero_image_embed
    }

    /// Where and in what the networks compute.
    pub fn options(&self) -> LoadOptions {
        self.options
    }

    /// The folder that the model was loaded from.
    pub fn folder(&self) -> &Folder {
        &self.layout.folder
    }
}

/// Reads the scheduler's configuration.
///
/// # Errors
/// [`crate::error::BadInput`] if it is missing, broken or not supported.
pub(super) fn read_scheduler(layout: &Layout) -> Result<SchedulerConfig> {
    match layout.scheduler_class {
        SchedulerClass::Unclip => Ok(SchedulerConfig::Unclip(config::read(&layout.scheduler, SCHEDULER_CONFIG)?)),
        SchedulerClass::Ddpm => Ok(SchedulerConfig::Ddpm(config::read(&layout.scheduler, SCHEDULER_CONFIG)?)),
    }
}

fn load_module<C, M>(
    checkpoint: &Checkpoint,
    config: &C,
    placement: Placement,
    load: impl Fn(&Weights, &C) -> crate::Result<M>,
) -> crate::Result<M>
where
    C: Config,
{
    checkpoint.build("", placement, |weights| load(weights, config))
}

/// The tensors in components' folders that are not finite.
///
/// # Errors
/// If a checkpoint cannot be opened again.
pub(super) fn non_finite_tensors(components: &[&Folder]) -> Result<Vec<String>> {
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
    scheduler: &SchedulerConfig,
) -> Result<()> {
    let state_dim = if prior.encoder_hid_proj_type.is_some() { prior.embedding_dim } else { prior.inner_dim() };
    let equal = [
        (
            "the tokenizer's model_max_length",
            tokenizer.max_length() as i64,
            "the prior's num_embeddings",
            prior.num_embeddings,
        ),
        (
            "the number of tokens behind the text",
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
    let folder = &layout.folder;
    if prior.added_emb_type.is_none() {
        return Err(bad_input!(
            "{folder}: the prior has no query token (added_emb_type is null), so it gives no CLIP embedding"
        ));
    }
    if let Some((left, left_value, right, right_value)) = equal.into_iter().find(|(_, left, _, right)| left != right) {
        return Err(bad_input!("{folder}: {left} ({left_value}) and {right} ({right_value}) must be equal"));
    }
    if tokenizer.max_length() as i64 > text.max_position_embeddings {
        let (most, length) = (text.max_position_embeddings, tokenizer.max_length());
        return Err(bad_input!(
            "{folder}: the tokenizer gives {length} tokens and the text encoder takes at most {most}"
        ));
    }
    if scheduler.needs_variance() {
        return Err(bad_input!(
            "{folder}: the scheduler's variance_type \"learned_range\" needs a prior that predicts a variance"
        ));
    }
    Ok(())
}
