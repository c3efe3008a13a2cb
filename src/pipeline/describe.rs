//! What a model is, read from its configurations, and from the headers of its weights if they are here.

use super::layout::Layout;
use super::load::read_scheduler;
use crate::config;
use crate::files::Folder;
use crate::hub::ModelFile;
use crate::nn::precision::Precision;
use crate::nn::prior::PriorConfig;
use crate::nn::text_encoder::{TextEncoder, TextEncoderConfig};
use crate::tokenizer::Tokenizer;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::checkpoint::candidates::is_weights;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;

/// A model's architecture and size.
#[derive(Debug, Serialize)]
pub struct Description {
    /// The prior.
    pub prior: PriorShape,
    /// The CLIP text encoder.
    pub text_encoder: TextEncoderShape,
    /// Numbers of weights, as far as that can be known.
    pub parameters: Option<ParameterCounts>,
    /// Bytes that the weights of prior and text encoder take, by `--dtype`. Encoders are never quantized.
    pub memory_bytes: Option<BTreeMap<&'static str, u64>>,
    /// The scheduler.
    pub scheduler: SchedulerShape,
    /// The tokenizer.
    pub tokenizer: TokenizerShape,
}

/// The shape of a `PriorTransformer`.
#[derive(Debug, Serialize)]
pub struct PriorShape {
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Width of a head.
    pub attention_head_dim: i64,
    /// Number of blocks.
    pub num_layers: i64,
    /// Numbers in an embedding.
    pub embedding_dim: i64,
}

/// The shape of a `CLIPTextModelWithProjection`.
#[derive(Debug, Serialize)]
pub struct TextEncoderShape {
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Width of a token.
    pub hidden_size: i64,
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Numbers in a text embedding.
    pub projection_dim: i64,
}

/// Numbers of weights.
#[derive(Debug, Serialize)]
pub struct ParameterCounts {
    /// In the prior.
    pub prior: u64,
    /// In the text encoder.
    pub text_encoder: u64,
    /// Whether they are worked out from the sizes of files that are not here.
    pub is_estimate: bool,
}

/// What a scheduler is.
#[derive(Debug, Serialize)]
pub struct SchedulerShape {
    /// The class in diffusers.
    pub class: &'static str,
    /// Timesteps that the model was trained with.
    pub num_train_timesteps: i64,
    /// `epsilon`, `sample` or `v_prediction`.
    pub prediction_type: String,
}

impl SchedulerShape {
    /// What the model predicts, in a word.
    pub fn predicts(&self) -> &'static str {
        match self.prediction_type.as_str() {
            "sample" => "embedding",
            "v_prediction" => "velocity",
            _ => "noise",
        }
    }
}

/// What a tokenizer is.
#[derive(Debug, Serialize)]
pub struct TokenizerShape {
    /// Number of tokens that the text encoder knows.
    pub vocabulary: i64,
    /// Most tokens in a prompt.
    pub max_tokens: i64,
}

/// Describes the model in a folder. Weights need not be there: then `files` has their sizes.
///
/// # Errors
/// [`crate::error::BadInput`] if a component is missing, broken or not supported.
pub fn describe(folder: &Folder, files: &[ModelFile]) -> Result<Description> {
    let layout = Layout::find(folder)?;
    let prior: PriorConfig = config::read(&layout.prior, "config.json")?;
    let text: TextEncoderConfig = config::read(&layout.text_encoder, "config.json")?;
    let scheduler = read_scheduler(&layout)?;
    // That it opens is worth knowing too.
    Tokenizer::open(&layout.tokenizer, text.max_position_embeddings as usize)?;
    let parameters = count_parameters(&layout, files)?;
    let memory_bytes = parameters.as_ref().map(|parameters| {
        let bytes = |precision: Precision| {
            let prior = parameters.prior.saturating_mul(precision.bytes());
            prior.saturating_add(parameters.text_encoder.saturating_mul(precision.unquantized().bytes()))
        };
        let precisions = [Precision::F32, Precision::Bf16, Precision::F16, Precision::Int8];
        precisions.map(|precision| (precision.name(), bytes(precision))).into()
    });
    Ok(Description {
        prior: PriorShape {
            num_attention_heads: prior.num_attention_heads,
            attention_head_dim: prior.attention_head_dim,
            num_layers: prior.num_layers,
            embedding_dim: prior.embedding_dim,
        },
        text_encoder: TextEncoderShape {
            num_hidden_layers: text.num_hidden_layers,
            hidden_size: text.hidden_size,
            num_attention_heads: text.num_attention_heads,
            projection_dim: text.projection_dim,
        },
        parameters,
        memory_bytes,
        scheduler: SchedulerShape {
            class: scheduler.class().class_name(),
            num_train_timesteps: scheduler.num_train_timesteps(),
            prediction_type: scheduler.prediction_type().into(),
        },
        tokenizer: TokenizerShape { vocabulary: text.vocab_size, max_tokens: text.max_position_embeddings },
    })
}

fn count_parameters(layout: &Layout, files: &[ModelFile]) -> Result<Option<ParameterCounts>> {
    let parts = [&layout.prior, &layout.text_encoder];
    let weights_of = |part: &Folder| -> Vec<&ModelFile> {
        let prefix = format!("{}/", part.name());
        files.iter().filter(|file| file.path.starts_with(&prefix) && is_weights(&file.path)).collect()
    };
    if parts.iter().all(|part| weights_of(part).iter().all(|file| file.is_here)) {
        let prior = Checkpoint::open_folder(&layout.prior)?.parameters();
        let text_encoder = Checkpoint::open_folder(&layout.text_encoder)?.parameters_beside(&TextEncoder::REST_OF_CLIP);
        return Ok(Some(ParameterCounts { prior, text_encoder, is_estimate: false }));
    }
    // Headers are a few kilobytes; the rest is numbers, of 2 bytes each where the name says so.
    let estimate = |part: &Folder| {
        let weight = |file: &&ModelFile| {
            let is_sixteen_bit = file.path.contains(".fp16") || file.path.contains(".bf16");
            file.bytes.map(|bytes| bytes / if is_sixteen_bit { 2 } else { 4 })
        };
        weights_of(part).iter().map(weight).sum::<Option<u64>>()
    };
    let [prior, text_encoder] = parts.map(estimate);
    let (Some(prior), Some(text_encoder)) = (prior, text_encoder) else { return Ok(None) };
    Ok(Some(ParameterCounts { prior, text_encoder, is_estimate: true }))
}
