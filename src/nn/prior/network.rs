//! The network of a prior, which is of one of two classes.

use super::autoregressive::{AutoregressiveConfig, AutoregressivePrior};
use super::config::{PriorConfig, PriorKind};
use super::transformer::PriorTransformer;
use crate::config;
use crate::error::Result;
use crate::files::Folder;
use crate::json;
use crate::weights::checkpoint::Weights;
use serde_json::Value;

/// The configuration of either class.
#[derive(Debug, Clone)]
pub enum NetworkConfig {
    /// Of diffusers' `PriorTransformer`.
    Transformer(PriorConfig),
    /// Of an `AutoregressivePrior`.
    Autoregressive(AutoregressiveConfig),
}

impl NetworkConfig {
    /// The class of diffusers' priors.
    pub const TRANSFORMER: &str = "PriorTransformer";

    /// The class of autoregressive priors.
    pub const AUTOREGRESSIVE: &str = "AutoregressivePrior";

    /// Reads the configuration in the file `name` of a prior's folder. Without a class it is a `PriorTransformer`'s.
    ///
    /// # Errors
    /// As [`config::read`].
    pub fn read(folder: &Folder, name: &str) -> Result<Self> {
        let (text, path) = (folder.read_text(name)?, folder.path_of(name));
        // Whether it is JSON is reported below.
        let value: Value = json::from_str(&text).unwrap_or_default();
        match value.get("_class_name").and_then(Value::as_str) {
            Some(Self::AUTOREGRESSIVE) => Ok(Self::Autoregressive(config::parse(&text, &path)?)),
            _ => Ok(Self::Transformer(config::parse(&text, &path)?)),
        }
    }

    /// The class in `_class_name`.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Transformer(_) => Self::TRANSFORMER,
            Self::Autoregressive(_) => Self::AUTOREGRESSIVE,
        }
    }

    /// What kind of prior it is.
    pub fn kind(&self) -> PriorKind {
        match self {
            Self::Transformer(config) => config.kind(),
            Self::Autoregressive(_) => PriorKind::Autoregressive,
        }
    }

    /// Whether the prior denoises a sequence of latents.
    pub fn is_sequence(&self) -> bool {
        self.kind() == PriorKind::Sequence
    }

    /// As [`PriorConfig::check_kind`].
    ///
    /// # Errors
    /// Its errors.
    pub fn check_kind<'a>(&self, names: impl Iterator<Item = &'a str>, origin: &str) -> Result<()> {
        match self {
            Self::Transformer(config) => config.check_kind(names, origin),
            Self::Autoregressive(_) => Ok(()),
        }
    }

    /// Width of the image embedding, or of each latent.
    pub fn embedding_dim(&self) -> i64 {
        match self {
            Self::Transformer(config) => config.embedding_dim,
            Self::Autoregressive(config) => config.embedding_dim,
        }
    }

    /// Number of text states, or of latents.
    pub fn num_embeddings(&self) -> i64 {
        match self {
            Self::Transformer(config) => config.num_embeddings,
            Self::Autoregressive(config) => config.num_embeddings,
        }
    }

    /// Number of attention heads.
    pub fn num_attention_heads(&self) -> i64 {
        match self {
            Self::Transformer(config) => config.num_attention_heads,
            Self::Autoregressive(config) => config.num_attention_heads,
        }
    }

    /// Width of a head.
    pub fn attention_head_dim(&self) -> i64 {
        match self {
            Self::Transformer(config) => config.attention_head_dim,
            Self::Autoregressive(config) => config.attention_head_dim,
        }
    }

    /// Number of transformer blocks.
    pub fn num_layers(&self) -> i64 {
        match self {
            Self::Transformer(config) => config.num_layers,
            Self::Autoregressive(config) => config.num_layers,
        }
    }

    /// The inner dimension of the transformer.
    pub fn inner_dim(&self) -> i64 {
        self.num_attention_heads().saturating_mul(self.attention_head_dim())
    }
}

/// A prior of either class.
#[derive(Debug)]
pub enum Network {
    /// diffusers' `PriorTransformer`.
    Transformer(Box<PriorTransformer>),
    /// An `AutoregressivePrior`.
    Autoregressive(Box<AutoregressivePrior>),
}

impl Network {
    /// Reads the module from the root of its checkpoint.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, config: &NetworkConfig) -> Result<Self> {
        Ok(match config {
            NetworkConfig::Transformer(config) => Self::Transformer(Box::new(PriorTransformer::load(weights, config)?)),
            NetworkConfig::Autoregressive(config) => {
                Self::Autoregressive(Box::new(AutoregressivePrior::load(weights, config)?))
            }
        })
    }
}
