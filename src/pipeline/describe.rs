//! A model's architecture and size, from its configurations and, if they are here, the headers of its weights.

use super::layout::{CONFIG, Layout, ModelFile};
use super::load::{read_prior_config, read_scheduler};
use super::memory::{RunMemory, Sizes};
use super::parameters::{Networks, Parameters};
use crate::Result;
use crate::config;
use crate::files::Folder;
use crate::nn::prior::{NetworkConfig, PriorKind};
use crate::nn::text_encoder::TextEncoderConfig;
use crate::tokenizer::Tokenizer;
use crate::weights::checkpoint::Placement;
use crate::weights::checkpoint::candidates::is_weights;
use crate::weights::parameter_count::ParameterCount;
use crate::weights::precision::Precision;
use serde::Serialize;
use std::collections::BTreeMap;
use tch::Device;

/// A model's architecture and size.
#[derive(Debug, Serialize)]
pub struct Description {
    /// The prior.
    pub prior: PriorShape,
    /// The CLIP text encoder.
    pub text_encoder: TextEncoderShape,
    /// Weight counts, if they are known.
    pub parameters: Option<ParameterCounts>,
    /// Bytes of the weights of prior and text encoder in each `--dtype` on this CPU. Encoders are never quantized.
    pub memory_bytes: Option<BTreeMap<&'static str, u64>>,
    /// What runs take on this CPU, in each `--dtype` that it computes in.
    pub run_bytes: Option<BTreeMap<&'static str, RunMemory>>,
    /// The scheduler; a prior that takes no steps has none.
    pub scheduler: Option<SchedulerShape>,
    /// The tokenizer.
    pub tokenizer: TokenizerShape,
}

/// The shape of a prior.
#[derive(Debug, Serialize)]
pub struct PriorShape {
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Width of a head.
    pub attention_head_dim: i64,
    /// Number of blocks.
    pub num_layers: i64,
    /// The embedding dimension.
    pub embedding_dim: i64,
    /// Whether it makes an embedding in one step.
    pub is_one_step: bool,
    /// The number of latents that it makes in place of an embedding, each of the embedding dimension.
    pub latents: Option<i64>,
    /// Of an autoregressive prior, the tokens of an embedding, and the buckets of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenShape>,
}

/// The tokens of an embedding.
#[derive(Debug, Serialize)]
pub struct TokenShape {
    /// Number of tokens: leading dimensions of the embedding.
    pub count: i64,
    /// Number of buckets of each.
    pub buckets: i64,
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
    /// The dimension of a text embedding.
    pub projection_dim: i64,
}

/// Weight counts.
#[derive(Debug, Serialize)]
pub struct ParameterCounts {
    /// In the prior.
    pub prior: u64,
    /// In the text encoder.
    pub text_encoder: u64,
    /// Whether they are estimated from the sizes of files that are not here.
    pub is_estimate: bool,
}

/// The properties of a scheduler.
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
    /// What the model predicts, as a word.
    pub fn predicts(&self) -> &'static str {
        match self.prediction_type.as_str() {
            "sample" => "embedding",
            "v_prediction" => "velocity",
            _ => "noise",
        }
    }
}

/// The properties of a tokenizer.
#[derive(Debug, Serialize)]
pub struct TokenizerShape {
    /// The vocabulary size of the text encoder.
    pub vocabulary: i64,
    /// The maximum number of tokens in a prompt.
    pub max_tokens: i64,
}

/// Describes a model. Weights need not be there; `files` has their sizes.
///
/// # Errors
/// If a component is missing, damaged or not supported.
pub fn describe(layout: &Layout, files: &[ModelFile]) -> Result<Description> {
    let prior = read_prior_config(layout)?;
    let text: TextEncoderConfig = config::read(&layout.text_encoder, CONFIG)?;
    let scheduler = if prior.kind().has_steps() { Some(read_scheduler(layout)?) } else { None };
    // For its errors.
    Tokenizer::open(&layout.tokenizer, text.max_position_embeddings as usize)?;
    let counts = count_parameters(layout, files, &text)?;
    let memory_bytes = counts.as_ref().map(|counts| {
        let bytes = |precision: Precision| {
            let prior = counts.prior.bytes(precision, Device::Cpu);
            prior.saturating_add(counts.text_encoder.bytes(precision.unquantized(), Device::Cpu))
        };
        let precisions = [Precision::F32, Precision::Bf16, Precision::F16, Precision::Int8];
        precisions.map(|precision| (precision.name(), bytes(precision))).into()
    });
    let run_bytes = counts.as_ref().map(|counts| {
        let Counts { prior: of_prior, text_encoder, .. } = *counts;
        let parameters = Parameters { prior: of_prior, text_encoder, image_encoder: ParameterCount::default() };
        let of = |precision: Precision| {
            let placement = Placement { device: Device::Cpu, precision: precision.on(Device::Cpu) };
            let text_width = text.hidden_size;
            Sizes { prior: &prior, text_width, parameters, placement, has_loras: false }.run_memory()
        };
        [Precision::F32, Precision::Bf16, Precision::Int8].map(|precision| (precision.name(), of(precision))).into()
    });
    Ok(Description {
        prior: PriorShape {
            num_attention_heads: prior.num_attention_heads(),
            attention_head_dim: prior.attention_head_dim(),
            num_layers: prior.num_layers(),
            embedding_dim: prior.embedding_dim(),
            is_one_step: prior.kind() == PriorKind::OneStep,
            latents: prior.is_sequence().then(|| prior.num_embeddings()),
            tokens: match &prior {
                NetworkConfig::Autoregressive(config) => {
                    Some(TokenShape { count: config.num_tokens, buckets: config.num_buckets })
                }
                NetworkConfig::Transformer(_) => None,
            },
        },
        text_encoder: TextEncoderShape {
            num_hidden_layers: text.num_hidden_layers,
            hidden_size: text.hidden_size,
            num_attention_heads: text.num_attention_heads,
            projection_dim: text.projection_dim,
        },
        parameters: counts.map(|counts| ParameterCounts {
            prior: counts.prior.all,
            text_encoder: counts.text_encoder.all,
            is_estimate: counts.is_estimate,
        }),
        memory_bytes,
        run_bytes,
        scheduler: scheduler.map(|scheduler| SchedulerShape {
            class: layout.scheduler_class.class_name,
            num_train_timesteps: scheduler.num_train_timesteps(),
            prediction_type: scheduler.prediction_type().into(),
        }),
        tokenizer: TokenizerShape { vocabulary: text.vocab_size, max_tokens: text.max_position_embeddings },
    })
}

/// The parameters of both networks.
struct Counts {
    prior: ParameterCount,
    text_encoder: ParameterCount,
    is_estimate: bool,
}

fn count_parameters(layout: &Layout, files: &[ModelFile], text: &TextEncoderConfig) -> Result<Option<Counts>> {
    let parts = [&layout.prior, &layout.text_encoder];
    let weights_of = |part: &Folder| -> Vec<&ModelFile> {
        files.iter().filter(|file| is_weights(&file.path) && file.is_in(part)).collect()
    };
    if parts.iter().all(|part| weights_of(part).iter().all(|file| file.is_here)) {
        let Parameters { prior, text_encoder, .. } = Parameters::count(layout, Networks::TextAndPrior)?;
        return Ok(Some(Counts { prior, text_encoder, is_estimate: false }));
    }
    // Headers are a few kilobytes; the rest is weights, of 2 bytes each if the file's name says so. Those of a text
    // encoder may be in the file of a whole CLIPModel.
    let is_sixteen_bit = |file: &&ModelFile| file.path.contains(".fp16") || file.path.contains(".bf16");
    let of_files = |part: &Folder| {
        let weight = |file: &&ModelFile| file.bytes.map(|bytes| bytes / if is_sixteen_bit(file) { 2 } else { 4 });
        weights_of(part).iter().map(weight).sum::<Option<u64>>()
    };
    let count = |part: &Folder, all: u64| {
        let files = weights_of(part);
        let stays = !files.is_empty() && files.iter().all(is_sixteen_bit);
        ParameterCount { all, sixteen_bit: if stays { all } else { 0 } }
    };
    let Some(prior) = of_files(&layout.prior) else { return Ok(None) };
    Ok(Some(Counts {
        prior: count(&layout.prior, prior),
        text_encoder: count(&layout.text_encoder, text.parameters()),
        is_estimate: true,
    }))
}
