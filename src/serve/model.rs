//! What the handlers ask of the model: they load no networks.

use super::failure::{Failure, Kind};
use super::options::Defaults;
use super::row::Embedding;
use super::zero_embed::ZeroEmbed;
use crate::job::Opener;
use crate::nn::prior::PriorKind;
use crate::pipeline::{Pipeline, Settings};
use serde::Serialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::spawn_blocking;

/// The model as the handlers see it.
#[derive(Debug)]
pub(super) struct Model {
    /// Without networks: its tokenizer and its scheduler are what is needed.
    pipeline: Mutex<Pipeline>,
    zero_embed: Arc<ZeroEmbed>,
    pub(super) info: Info,
}

/// What the server tells of the model.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Info {
    /// What clients call it.
    pub(super) model_id: String,
    pub(super) embedding_dim: usize,
    /// The shape of a row that is a sequence of latents.
    pub(super) row_shape: Option<[usize; 2]>,
    /// Tokens of a prompt, start and end included; text-embeddings-inference has it under this name too.
    pub(super) max_input_length: usize,
    pub(super) max_steps: usize,
    /// Whether a request may say how many.
    pub(super) takes_steps: bool,
    pub(super) takes_guidance: bool,
    /// Whether `/draw` draws its embeddings.
    pub(super) has_decoder: bool,
    /// Those of a request that does not say otherwise.
    pub(super) steps: usize,
    pub(super) guidance_scale: f64,
    pub(super) model_dtype: &'static str,
    pub(super) device: String,
    pub(super) max_batch_size: usize,
    pub(super) max_batch_tokens: usize,
    /// Rows of a request.
    pub(super) max_client_batch_size: usize,
    /// Whether prompts that are too long are truncated, where a request does not say.
    pub(super) auto_truncate: bool,
    /// Pipelines side by side.
    pub(super) workers: usize,
    pub(super) version: &'static str,
}

/// What of its settings a request says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted {
    pub(super) steps: Option<usize>,
    pub(super) guidance_scale: Option<f64>,
    pub(super) temperature: Option<f64>,
}

impl Model {
    pub(super) fn new(pipeline: Pipeline, open: &Opener, info: Info) -> Self {
        let zero_embed = Arc::new(ZeroEmbed::new(Arc::clone(open)));
        Self { pipeline: Mutex::new(pipeline), zero_embed, info }
    }

    /// The settings of a request.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the model does not take one that is wanted.
    pub(super) fn settings(&self, wanted: Wanted, defaults: &Defaults, max_steps: usize) -> Result<Settings, Failure> {
        let Wanted { steps, guidance_scale, temperature } = wanted;
        if let Some(steps) = steps.filter(|steps| !(1..=max_steps).contains(steps)) {
            return Err(Failure::of("steps", format!("steps is {steps}; it must be between 1 and {max_steps}")));
        }
        if let Some(scale) = guidance_scale.filter(|scale| !scale.is_finite()) {
            let message = format!("guidance_scale is {scale}; it must be a finite number");
            return Err(Failure::of("guidance_scale", message));
        }
        let settings = self.lock().settings(
            steps.or(defaults.steps),
            guidance_scale.or(defaults.guidance_scale),
            temperature.or(defaults.temperature),
        );
        settings.map_err(|error| Failure::from(&error))
    }

    /// The number of tokens of each prompt, and whether it has more than the model takes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the text encoder does not know a token.
    pub(super) fn count_tokens(&self, prompts: &[&str]) -> Result<Vec<(usize, bool)>, Failure> {
        // One by one, so that others are not kept waiting.
        let counts = prompts.iter().map(|prompt| self.lock().count_tokens(prompt));
        counts.collect::<crate::Result<_>>().map_err(|error| Failure::from(&error))
    }

    /// # Errors
    /// [`Kind::Invalid`] if the prior takes no negative prompts.
    pub(super) fn check_negative(&self) -> Result<(), Failure> {
        let kind = self.lock().kind();
        if kind == PriorKind::Sequence {
            let message = format!("the model has {}, which takes no negative prompts", kind.title());
            return Err(Failure::new(Kind::Invalid, message));
        }
        Ok(())
    }

    /// # Errors
    /// [`Kind::Invalid`] if [`Model::zero_embed`] would find nothing to make it with.
    pub(super) fn check_zero_embed(&self) -> Result<(), Failure> {
        let pipeline = self.lock();
        match pipeline.kind() {
            kind if kind == PriorKind::Sequence => {
                let message = format!("the model has {}, which has no negative embeddings", kind.title());
                Err(Failure::of("negative_image_embeds", message))
            }
            _ if !pipeline.has_zero_embed() => {
                let message = "negative_image_embeds without negative_prompts is of a black image, and the model has no \
                               image encoder here to make it with; give negative_prompts";
                Err(Failure::of("negative_image_embeds", message))
            }
            _ => Ok(()),
        }
    }

    /// The embedding of a black image, `(dim)`.
    ///
    /// # Errors
    /// [`Kind::Engine`] if the image encoder is damaged, or there is no memory for it.
    pub(super) async fn zero_embed(&self) -> Result<Embedding, Failure> {
        let zero_embed = Arc::clone(&self.zero_embed);
        spawn_blocking(move || zero_embed.get()).await.map_err(Failure::internal)?
    }

    fn lock(&self) -> MutexGuard<'_, Pipeline> {
        self.pipeline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
