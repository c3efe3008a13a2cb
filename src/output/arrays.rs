//! The arrays that an output can hold.

use ArrayName::{Image, Negative, Scores, Text};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An array, `(rows, dim)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayName {
    /// `image_embeds`.
    Image,
    /// `negative_image_embeds`.
    Negative,
    /// `text_embeds`.
    Text,
    /// `scores`: the dot products of a row's draws, as many as there are, in an output of their own.
    Scores,
}

impl ArrayName {
    /// The name that decoders know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image_embeds",
            Self::Negative => "negative_image_embeds",
            Self::Text => "text_embeds",
            Self::Scores => "scores",
        }
    }
}

/// The arrays of an output: a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrays(u8);

/// Every set, by its bits: its name in records, and its arrays in the order in which they are written.
const SETS: [(&str, &[ArrayName]); 16] = [
    ("none", &[]),
    ("image", &[Image]),
    ("negative", &[Negative]),
    ("both", &[Image, Negative]),
    ("text", &[Text]),
    ("image+text", &[Image, Text]),
    ("negative+text", &[Negative, Text]),
    ("all", &[Image, Negative, Text]),
    ("scores", &[Scores]),
    ("image+scores", &[Image, Scores]),
    ("negative+scores", &[Negative, Scores]),
    ("both+scores", &[Image, Negative, Scores]),
    ("text+scores", &[Text, Scores]),
    ("image+text+scores", &[Image, Text, Scores]),
    ("negative+text+scores", &[Negative, Text, Scores]),
    ("all+scores", &[Image, Negative, Text, Scores]),
];

impl Arrays {
    /// The image embeddings alone.
    pub const IMAGE: Self = Self(1);
    /// The negative image embeddings alone, in a file of their own.
    pub const NEGATIVE: Self = Self(2);
    /// The text embeddings alone, in a file of their own.
    pub const TEXT: Self = Self(4);
    /// The scores alone, in a file of their own.
    pub const SCORES: Self = Self(8);
    /// The image embeddings and the negative ones.
    #[cfg(test)]
    pub const BOTH: Self = Self(3);

    /// The arrays in the order in which they are written.
    pub fn names(self) -> &'static [ArrayName] {
        SETS[usize::from(self.0)].1
    }

    /// Whether an array is among them.
    pub fn has(self, array: ArrayName) -> bool {
        self.names().contains(&array)
    }

    /// The arrays of either.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Serialize for Arrays {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(SETS[usize::from(self.0)].0)
    }
}

impl<'de> Deserialize<'de> for Arrays {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = (1_u8..).zip(&SETS[1..]).find(|(_, (known, _))| *known == name);
        found.map(|(bits, _)| Self(bits)).ok_or_else(|| D::Error::custom(format!("no arrays are called {name:?}")))
    }
}
