//! Checks that components fit each other, and names those that do not: the sizes at which they meet, and where they come
//! from.

use super::layout::{CONFIG, Layout};
use crate::config;
use crate::diffusion::scheduler::SchedulerConfig;
use crate::error::Component;
use crate::nn::image_encoder::ImageEncoderConfig;
use crate::nn::prior::{AutoregressiveConfig, NetworkConfig, PriorConfig};
use crate::nn::text_encoder::TextEncoderConfig;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Checks the sizes at which components meet.
pub(super) fn check_fit(
    layout: &Layout,
    tokenizer: &Tokenizer,
    text: &TextEncoderConfig,
    prior: &NetworkConfig,
    scheduler: Option<&dyn SchedulerConfig>,
) -> Result<()> {
    let prior = match prior {
        NetworkConfig::Transformer(prior) => prior,
        NetworkConfig::Autoregressive(prior) => return check_autoregressive_fit(layout, tokenizer, text, prior),
    };
    if prior.is_sequence() {
        return check_sequence_fit(layout, tokenizer, text, prior, scheduler);
    }
    if prior.added_emb_type.is_none() {
        let reason = "the prior has no query token (added_emb_type is null), so it gives no CLIP embedding";
        return Err(mismatch(layout, reason.into()));
    }
    let state_dim = if prior.encoder_hid_proj_type.is_some() { prior.embedding_dim } else { prior.inner_dim() };
    use Component::{Prior, TextEncoder, Tokenizer as TokenizerFiles};
    let equal = [
        (
            (TokenizerFiles, "the tokenizer's model_max_length", tokenizer.max_length() as i64),
            (Prior, "the prior's num_embeddings", prior.num_embeddings),
        ),
        (
            (Prior, "the number of tokens after the text", prior.expected_tokens()),
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
    check_equal(layout, &equal)?;
    check_lengths(layout, tokenizer, text)?;
    check_rest(layout, prior.embedding_dim, scheduler)
}

/// The same with a prior of a sequence of latents, which takes text embeddings alone.
fn check_sequence_fit(
    layout: &Layout,
    tokenizer: &Tokenizer,
    text: &TextEncoderConfig,
    prior: &PriorConfig,
    scheduler: Option<&dyn SchedulerConfig>,
) -> Result<()> {
    use Component::{Prior, TextEncoder};
    let equal = [
        (
            (Prior, "the number of tokens with positions beside the latents", 0),
            (Prior, "the prior's additional_embeddings", prior.additional_embeddings),
        ),
        (
            (TextEncoder, "the text encoder's projection_dim", text.projection_dim),
            (Prior, "the prior's embedding_proj_dim", prior.embedding_proj_dim()),
        ),
        (
            (Prior, "twice the prior's embedding_dim", prior.embedding_dim.saturating_mul(2)),
            (Prior, "the prior's clip_embed_dim", prior.clip_embed_dim()),
        ),
    ];
    check_equal(layout, &equal)?;
    // As in diffusers' pipeline, which gives it no generator.
    if let Some(scheduler) = scheduler
        && scheduler.scheduler(2)?.noisy_steps() > 0
    {
        let reason = "the scheduler adds noise at its steps, and Shap-E's prior takes only one that does not: heun";
        return Err(mismatch(layout, reason.into()));
    }
    check_lengths(layout, tokenizer, text)?;
    check_rest(layout, prior.embedding_dim, scheduler)
}

/// The same with an autoregressive prior.
fn check_autoregressive_fit(
    layout: &Layout,
    tokenizer: &Tokenizer,
    text: &TextEncoderConfig,
    prior: &AutoregressiveConfig,
) -> Result<()> {
    use Component::{Prior, TextEncoder, Tokenizer as TokenizerFiles};
    let equal = [
        (
            (TokenizerFiles, "the tokenizer's model_max_length", tokenizer.max_length() as i64),
            (Prior, "the prior's num_embeddings", prior.num_embeddings),
        ),
        (
            (TextEncoder, "the text encoder's hidden_size", text.hidden_size),
            (Prior, "the prior's encoder_hid_dim", prior.encoder_hid_dim()),
        ),
        (
            (TextEncoder, "the text encoder's projection_dim", text.projection_dim),
            (Prior, "the prior's embedding_proj_dim", prior.embedding_proj_dim()),
        ),
    ];
    check_equal(layout, &equal)?;
    check_lengths(layout, tokenizer, text)?;
    check_rest(layout, prior.embedding_dim, None)
}

/// A size of a component, and its name.
type Size<'a> = (Component, &'a str, i64);

fn check_equal(layout: &Layout, sizes: &[(Size, Size)]) -> Result<()> {
    let differ = sizes.iter().find(|((_, _, left), (_, _, right))| left != right);
    let Some(&((left, left_size, left_value), (right, right_size, right_value))) = differ else { return Ok(()) };
    let origins = origins(layout, &[left, right]);
    let reason = format!("{left_size} ({left_value}) and {right_size} ({right_value}) must be equal{origins}");
    Err(mismatch(layout, reason))
}

fn check_lengths(layout: &Layout, tokenizer: &Tokenizer, text: &TextEncoderConfig) -> Result<()> {
    let (max, length) = (text.max_position_embeddings, tokenizer.max_length());
    if length as i64 <= max {
        return Ok(());
    }
    let origins = origins(layout, &[Component::Tokenizer, Component::TextEncoder]);
    let reason = format!("the tokenizer gives {length} tokens and the text encoder takes at most {max}{origins}");
    Err(mismatch(layout, reason))
}

fn check_rest(layout: &Layout, embedding_dim: i64, scheduler: Option<&dyn SchedulerConfig>) -> Result<()> {
    if scheduler.is_some_and(SchedulerConfig::needs_variance) {
        let reason = "the scheduler's variance_type \"learned_range\" needs a prior that predicts a variance";
        return Err(mismatch(layout, reason.into()));
    }
    if layout.is_replaced(Component::ImageEncoder) {
        check_image_encoder(layout, embedding_dim)?;
    }
    Ok(())
}

fn mismatch(layout: &Layout, reason: String) -> Error {
    Error::Mismatch { path: layout.folder.to_string(), reason }
}

/// Checks that an image encoder's embeddings are as wide as the prior's `embedding_dim`.
///
/// # Errors
/// [`Error::Mismatch`] if they are not, or an error if its configuration is damaged.
pub(super) fn check_image_encoder(layout: &Layout, embedding_dim: i64) -> Result<()> {
    let Some(folder) = &layout.image_encoder else { return Ok(()) };
    let config: ImageEncoderConfig = config::read(folder, CONFIG)?;
    let (image, prior) = (config.projection_dim, embedding_dim);
    if image == prior {
        return Ok(());
    }
    let origins = origins(layout, &[Component::ImageEncoder, Component::Prior]);
    let sizes = format!("the image encoder's projection_dim ({image}) and the prior's embedding_dim ({prior})");
    Err(mismatch(layout, format!("{sizes} must be equal{origins}")))
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
