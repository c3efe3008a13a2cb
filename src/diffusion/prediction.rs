//! What a model predicts.

use serde::Deserialize;

/// What the model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// `x_0`.
    Sample,
    /// The velocity, `√ᾱ_t · noise - √(1 - ᾱ_t) · x_0` (arXiv 2202.00512).
    VPrediction,
}

impl PredictionType {
    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::Sample => "sample",
            Self::VPrediction => "v_prediction",
        }
    }
}
