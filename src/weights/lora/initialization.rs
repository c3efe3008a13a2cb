//! PEFT's `init_lora_weights`: how the LoRA was initialized, and what that changed in the model.
//!
//! Source: PEFT 0.21 `tuners/lora/layer.py`.

use crate::error::{Error, Hint, Result};
use crate::weights::delta::Base;
use serde_json::Value;

const KEY: &str = "init_lora_weights";

/// The part of each matrix that the initialization subtracted from it.
///
/// # Errors
/// [`Error::Config`] if the part depends on data that does not come with the LoRA, or the name is unknown.
pub(super) fn base(init: &Value) -> Result<Option<Base>> {
    let name = match init {
        Value::Null | Value::Bool(_) => return Ok(None),
        Value::String(name) => name.as_str(),
        _ => return Err(Error::key(KEY, format!("is {init}, which is neither a name nor true or false"))),
    };
    if let Some(iterations) = name.strip_prefix("pissa_niter_")
        && !iterations.is_empty()
        && iterations.chars().all(|char| char.is_ascii_digit())
    {
        return Ok(Some(Base::RandomizedPrincipal));
    }
    // As PEFT compares them.
    match (name, name.to_lowercase().as_str()) {
        ("pissa", _) => Ok(Some(Base::Principal)),
        (_, "olora") => Ok(Some(Base::Orthogonal)),
        // These start from matrices that do not depend on the model's, or whose product is zero.
        (_, "gaussian" | "mica") | ("eva" | "orthogonal", _) => Ok(None),
        ("loftq" | "lora_ga", _) => Err(depends_on_data(name)),
        _ if name.starts_with("corda") => Err(depends_on_data(name)),
        _ => Err(Error::key(KEY, format!("is {name:?}, which is not supported")).with_hint(Hint::MergeWithPeft)),
    }
}

fn depends_on_data(name: &str) -> Error {
    let predicate =
        format!("is {name:?}: the LoRA changes the model by its initial weights, which do not come with it");
    let clause = "save it with PEFT's path_initial_model_for_weight_conversion, or merge it with PEFT";
    Error::key(KEY, predicate).with_hint(Hint::Other(clause.into()))
}
