//! What a LoRA's initialization took out of the matrix that it was trained on.
//!
//! Source: PEFT 0.21 `tuners/lora/layer.py`. Such a LoRA begins with a part of the matrix itself, which is subtracted from
//! it, so that nothing changes before training. Whoever loads the LoRA has to subtract the same again.

use crate::bad_input;
use anyhow::Result;
use serde_json::Value;
use tch::Tensor;

/// The part of a matrix that a LoRA began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// Its largest singular values and their vectors (PiSSA, arXiv 2404.02948).
    Principal,
    /// The same, found with random numbers that nobody kept.
    RandomizedPrincipal,
    /// The first columns and rows of its QR decomposition, times the LoRA's strength (OLoRA, arXiv 2406.01775).
    Orthogonal,
}

impl Base {
    /// What `init_lora_weights` says.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the part depends on data that the LoRA does not come with, or the name is unknown.
    pub(crate) fn of_init(init: &Value) -> Result<Option<Self>> {
        let name = match init {
            Value::Null | Value::Bool(_) => return Ok(None),
            Value::String(name) => name.as_str(),
            _ => return Err(bad_input!("init_lora_weights is {init}, which is neither a name nor true or false")),
        };
        if let Some(iterations) = name.strip_prefix("pissa_niter_")
            && !iterations.is_empty()
            && iterations.chars().all(|char| char.is_ascii_digit())
        {
            return Ok(Some(Self::RandomizedPrincipal));
        }
        // As PEFT compares them.
        match (name, name.to_lowercase().as_str()) {
            ("pissa", _) => Ok(Some(Self::Principal)),
            (_, "olora") => Ok(Some(Self::Orthogonal)),
            // These begin with matrices whose product is not taken from the model, or with nothing.
            (_, "gaussian" | "mica") | ("eva" | "orthogonal", _) => Ok(None),
            ("loftq" | "lora_ga", _) => Err(depends_on_data(name)),
            _ if name.starts_with("corda") => Err(depends_on_data(name)),
            _ => Err(bad_input!("init_lora_weights is {name:?}, which is not supported; merge the LoRA with PEFT")),
        }
    }

    /// Whether a LoRA of this strength can have begun so: PEFT divides by it, and takes the square root.
    pub(crate) fn has_strength(self, strength: f64) -> bool {
        self == Self::Orthogonal || strength > 0.0
    }

    /// The part of `weight`, `(outputs, inputs)` in float32, that a LoRA of this rank and strength began with.
    ///
    /// # Errors
    /// If the decomposition fails, as it does for numbers that are not finite.
    pub(crate) fn part(self, weight: &Tensor, rank: i64, strength: f64) -> Result<Tensor> {
        let most = weight.size().iter().copied().min().unwrap_or(0);
        let rank = rank.min(most);
        match self {
            Self::Principal | Self::RandomizedPrincipal => {
                let (left, values, right) = weight.f_svd(true, true)?;
                let left = left.f_narrow(1, 0, rank)?.f_mul(&values.f_narrow(0, 0, rank)?)?;
                Ok(left.f_matmul(&right.f_narrow(1, 0, rank)?.f_tr()?)?)
            }
            Self::Orthogonal => {
                let (left, right) = Tensor::f_linalg_qr(weight, "reduced")?;
                let part = left.f_narrow(1, 0, rank)?.f_matmul(&right.f_narrow(0, 0, rank)?)?;
                Ok(part.f_mul_scalar(strength)?)
            }
        }
    }
}

fn depends_on_data(name: &str) -> anyhow::Error {
    bad_input!(
        "init_lora_weights is {name:?}: the LoRA changes the model's weights by what it was initialized with, which does not come with it; save it with PEFT's path_initial_model_for_weight_conversion, or merge it with PEFT"
    )
}
