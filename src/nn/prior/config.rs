//! The configuration of a prior.

use crate::config::{Config, check_layers, check_sizes};
use crate::error::{Error, Result};
use crate::nn::layers::Activation;
use serde::{Deserialize, Deserializer};

/// The number of tokens after the text states: text embedding, timestep, `x_t`, query.
pub(super) const ADDITIONAL_TOKENS: i64 = 4;

/// The same in a one-step prior, which has no timestep.
const ONE_STEP_TOKENS: i64 = 3;

/// What a prior makes, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PriorKind {
    /// An image embedding by denoising.
    Diffusion,
    /// An image embedding in one pass, without steps or guidance.
    OneStep,
    /// A sequence of latents by denoising, without negative prompts.
    Sequence,
    /// An image embedding token by token, with guidance and a temperature.
    Autoregressive,
}

impl PriorKind {
    /// Its name in messages.
    pub fn title(self) -> &'static str {
        match self {
            Self::Diffusion => "a diffusion prior",
            Self::OneStep => "a one-step prior",
            Self::Sequence => "Shap-E's prior",
            Self::Autoregressive => "an autoregressive prior",
        }
    }

    /// Whether it takes steps, of a scheduler.
    pub fn has_steps(self) -> bool {
        matches!(self, Self::Diffusion | Self::Sequence)
    }

    /// Whether it can be guided.
    pub fn has_guidance(self) -> bool {
        self != Self::OneStep
    }

    /// Whether it takes a temperature.
    pub fn has_temperature(self) -> bool {
        self == Self::Autoregressive
    }
}

/// `config.json` of a `PriorTransformer`; names and defaults as in diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct PriorConfig {
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Width of a head. The inner dimension of the transformer is the number of heads times this.
    pub attention_head_dim: i64,
    /// Number of transformer blocks.
    pub num_layers: i64,
    /// Width of `hidden_states` (the noisy image embedding) and of `encoder_hidden_states`.
    pub embedding_dim: i64,
    /// Number of text states.
    pub num_embeddings: i64,
    /// Number of tokens after the text states that have learned positions.
    pub additional_embeddings: i64,
    /// Unused at inference.
    pub dropout: f64,
    /// Activation of the timestep's MLP: `silu`, `swish`, `mish`, `gelu` or `relu`; by default `silu`.
    #[serde(deserialize_with = "some_text")]
    pub time_embed_act_fn: Option<String>,
    /// `layer` for a layer norm before the first block.
    pub norm_in_type: Option<String>,
    /// `layer` for a layer norm of `proj_embedding` before its projection.
    pub embedding_proj_norm_type: Option<String>,
    /// `linear` if text states are projected to the inner dimension.
    pub encoder_hid_proj_type: Option<String>,
    /// `prd` if the sequence ends in a learned query, from which the prediction is read.
    pub added_emb_type: Option<String>,
    /// Width inside the timestep's MLP; by default the inner dimension.
    pub time_embed_dim: Option<i64>,
    /// Width of `proj_embedding`; by default `embedding_dim`.
    pub embedding_proj_dim: Option<i64>,
    /// Width of the prediction; by default `embedding_dim`.
    pub clip_embed_dim: Option<i64>,
}

impl Default for PriorConfig {
    fn default() -> Self {
        Self {
            num_attention_heads: 32,
            attention_head_dim: 64,
            num_layers: 20,
            embedding_dim: 768,
            num_embeddings: 77,
            additional_embeddings: 4,
            dropout: 0.0,
            time_embed_act_fn: None,
            norm_in_type: None,
            embedding_proj_norm_type: None,
            encoder_hid_proj_type: Some("linear".into()),
            added_emb_type: Some("prd".into()),
            time_embed_dim: None,
            embedding_proj_dim: None,
            clip_embed_dim: None,
        }
    }
}

/// Text, which may be left out but not null.
fn some_text<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

impl PriorConfig {
    /// Whether the prior predicts the image embedding in one step, as ECLIPSE's do (arXiv 2312.04655): it has no timestep,
    /// so one token less than diffusers' priors and no keys on the timestep's embedding.
    ///
    /// Source: `src/priors/prior_transformer.py` of eclipse-t2i/eclipse-inference.
    pub fn is_one_step(&self) -> bool {
        self.additional_embeddings == ONE_STEP_TOKENS && self.added_emb_type.is_some() && self.time_key().is_none()
    }

    /// Whether the prior denoises a sequence of latents, as Shap-E's does (arXiv 2305.02463): it takes a text embedding
    /// alone, has no query and no mask, and predicts the latents and their variance.
    pub fn is_sequence(&self) -> bool {
        self.added_emb_type.is_none() && self.encoder_hid_proj_type.is_none()
    }

    /// What kind of prior it is.
    pub fn kind(&self) -> PriorKind {
        match self {
            _ if self.is_one_step() => PriorKind::OneStep,
            _ if self.is_sequence() => PriorKind::Sequence,
            _ => PriorKind::Diffusion,
        }
    }

    /// The key on the timestep's embedding that is set, if any. Old versions of diffusers wrote none.
    fn time_key(&self) -> Option<&'static str> {
        let keys = [
            ("time_embed_act_fn", self.time_embed_act_fn.is_some()),
            ("time_embed_dim", self.time_embed_dim.is_some()),
        ];
        keys.into_iter().find(|(_, is_set)| *is_set).map(|(key, _)| key)
    }

    /// Checks that a checkpoint is of the kind of prior that the configuration is of. `names` are its tensors with their
    /// names in diffusers, none if it is not here; `origin` is what messages call it.
    ///
    /// # Errors
    /// [`Error::Tensor`] that names a tensor which says otherwise, or [`Error::Config`], without the file, if already the
    /// keys contradict each other.
    pub fn check_kind<'a>(&self, names: impl Iterator<Item = &'a str>, origin: &str) -> Result<()> {
        let tokens = self.additional_embeddings;
        if let (true, Some(key)) = (tokens == ONE_STEP_TOKENS && self.added_emb_type.is_some(), self.time_key()) {
            let predicate = format!("is {tokens}, as of a one-step prior, which has no timestep, but {key} is set too");
            return Err(Error::key("additional_embeddings", predicate));
        }
        let (mut has_blocks, mut of_time) = (false, None);
        for name in names {
            if name.starts_with("embedding_control.") {
                let reason =
                    format!("{name} is of λ-ECLIPSE, which takes embeddings of pictures too and is not supported");
                return Err(Error::tensor(origin, name, reason));
            }
            has_blocks |= name.starts_with("transformer_blocks.");
            of_time = of_time.or(Some(name).filter(|name| name.starts_with("time_embedding.")));
        }
        match of_time {
            Some(name) if self.is_one_step() => {
                let reason =
                    format!("{name} is there, but a one-step prior (additional_embeddings {tokens}) has no timestep");
                Err(Error::tensor(origin, name, reason))
            }
            None if has_blocks && !self.is_one_step() => {
                let name = "time_embedding.linear_1.weight";
                let reason = format!(
                    "{name} is missing, and only a one-step prior (additional_embeddings {ONE_STEP_TOKENS}, not {tokens}) \
                     has no timestep"
                );
                Err(Error::tensor(origin, name, reason))
            }
            _ => Ok(()),
        }
    }

    /// The number of tokens after the text states in a prior of this kind that has a query.
    pub fn expected_tokens(&self) -> i64 {
        if self.is_one_step() { ONE_STEP_TOKENS } else { ADDITIONAL_TOKENS }
    }

    /// The inner dimension of the transformer.
    pub fn inner_dim(&self) -> i64 {
        inner_dim(self.num_attention_heads, self.attention_head_dim)
    }

    /// Number of learned positions.
    pub fn positions(&self) -> i64 {
        self.num_embeddings.saturating_add(self.additional_embeddings)
    }

    /// Width of `proj_embedding`.
    pub fn embedding_proj_dim(&self) -> i64 {
        self.embedding_proj_dim.unwrap_or(self.embedding_dim)
    }

    /// Width of the prediction.
    pub fn clip_embed_dim(&self) -> i64 {
        self.clip_embed_dim.unwrap_or(self.embedding_dim)
    }

    /// Width inside the timestep's MLP.
    pub(super) fn time_embed_dim(&self) -> i64 {
        self.time_embed_dim.unwrap_or(self.inner_dim())
    }

    /// The activation that `time_embed_act_fn` names.
    pub(super) fn time_embed_activation(&self) -> Result<Activation> {
        let name = self.time_embed_act_fn.as_deref().unwrap_or("silu");
        Ok(match name.to_lowercase().as_str() {
            "silu" | "swish" => Activation::Silu,
            "mish" => Activation::Mish,
            "gelu" => Activation::Gelu,
            "relu" => Activation::Relu,
            _ => {
                let predicate = format!("is {name:?}, it must be silu, swish, mish, gelu or relu");
                return Err(Error::key("time_embed_act_fn", predicate));
            }
        })
    }
}

impl Config for PriorConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = true;

    fn validate(&self) -> Result<()> {
        check_blocks(self.num_attention_heads, self.attention_head_dim, self.num_layers)?;
        check_sizes(&[
            ("embedding_dim", self.embedding_dim),
            ("num_embeddings + additional_embeddings", self.positions()),
            ("time_embed_dim", self.time_embed_dim()),
            ("embedding_proj_dim", self.embedding_proj_dim()),
            ("clip_embed_dim", self.clip_embed_dim()),
        ])?;
        let counts = [("num_embeddings", self.num_embeddings), ("additional_embeddings", self.additional_embeddings)];
        if let Some((key, count)) = counts.into_iter().find(|(_, count)| *count < 0) {
            return Err(Error::key(key, format!("is {count}, it cannot be negative")));
        }
        check_choice("norm_in_type", &self.norm_in_type, "layer")?;
        check_choice("embedding_proj_norm_type", &self.embedding_proj_norm_type, "layer")?;
        check_choice("encoder_hid_proj_type", &self.encoder_hid_proj_type, "linear")?;
        check_choice("added_emb_type", &self.added_emb_type, "prd")?;
        self.time_embed_activation().map(drop)
    }
}

/// The inner dimension of a transformer with so many heads of a width.
pub(super) fn inner_dim(heads: i64, head_dim: i64) -> i64 {
    heads.saturating_mul(head_dim)
}

/// Checks the sizes of the transformer's blocks, of which priors of both classes are made.
///
/// # Errors
/// [`Error::Config`] that names the key.
pub(super) fn check_blocks(heads: i64, head_dim: i64, layers: i64) -> Result<()> {
    check_sizes(&[
        ("num_attention_heads", heads),
        ("attention_head_dim", head_dim),
        ("num_attention_heads * attention_head_dim", inner_dim(heads, head_dim)),
    ])?;
    check_layers("num_layers", layers)
}

fn check_choice(key: &str, value: &Option<String>, only: &str) -> Result<()> {
    match value {
        Some(value) if value != only => Err(Error::key(key, format!("is {value:?}, it must be {only:?} or null"))),
        _ => Ok(()),
    }
}
