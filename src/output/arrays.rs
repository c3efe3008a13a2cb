//! The arrays of embeddings that an output can hold.

use serde::{Deserialize, Serialize};

/// An array of embeddings, `(rows, dim)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayName {
    /// `image_embeds`.
    Image,
    /// `negative_image_embeds`.
    Negative,
}

impl ArrayName {
    /// The name that decoders know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image_embeds",
            Self::Negative => "negative_image_embeds",
        }
    }
}

/// The arrays of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrays {
    /// The image embeddings alone.
    Image,
    /// The negative image embeddings alone, in a file of their own.
    Negative,
    /// Both.
    Both,
}

impl Arrays {
    /// The arrays in the order in which they are written.
    pub fn names(self) -> &'static [ArrayName] {
        match self {
            Self::Image => &[ArrayName::Image],
            Self::Negative => &[ArrayName::Negative],
            Self::Both => &[ArrayName::Image, ArrayName::Negative],
        }
    }

    /// The arrays of either.
    pub(crate) fn union(self, other: Self) -> Self {
        if self == other { self } else { Self::Both }
    }
}
