//! A row on its way through the server.

use crate::pipeline::Settings;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// An embedding, `(dim)`.
pub(super) type Embedding = Arc<[f32]>;

/// What a row's embedding depends on, beside the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) prompt: Arc<str>,
    /// Empty if there is none.
    pub(super) negative_prompt: Arc<str>,
    pub(super) seed: u64,
    /// Tokens of the prompt, start and end included.
    pub(super) tokens: usize,
}

/// Names an embedding in the cache: a hash of all that it depends on.
pub(super) type RowKey = [u8; 32];

impl Row {
    /// Its key among rows of one model.
    pub(super) fn key(&self, settings: &Settings) -> RowKey {
        let Settings { steps, guidance_scale, temperature, strength: _ } = settings;
        let mut hash = Sha256::new();
        hash.update((self.prompt.len() as u64).to_le_bytes());
        hash.update(self.prompt.as_bytes());
        hash.update(self.negative_prompt.as_bytes());
        for number in [self.seed, *steps as u64, guidance_scale.to_bits(), temperature.to_bits()] {
            hash.update(number.to_le_bytes());
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_all_that_the_embedding_depends_on() {
        let row = |prompt: &str, negative: &str, seed| Row {
            prompt: prompt.into(),
            negative_prompt: negative.into(),
            seed,
            tokens: 3,
        };
        let settings = Settings::new(25, 4.0);
        let key = row("ab", "c", 0).key(&settings);
        assert_eq!(key, Row { tokens: 4, ..row("ab", "c", 0) }.key(&settings));
        for other in [row("a", "bc", 0), row("abc", "", 0), row("ab", "c", 1), row("ab", "d", 0)] {
            assert_ne!(key, other.key(&settings), "{other:?}");
        }
        let others = [Settings::new(24, 4.0), Settings::new(25, 4.5), Settings { temperature: 0.5, ..settings }];
        for other in others {
            assert_ne!(key, row("ab", "c", 0).key(&other), "{other:?}");
        }
    }
}
