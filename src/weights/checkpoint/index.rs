//! The index of sharded weights, as both libraries write it: which file each tensor is in.

use crate::bad_input;
use crate::error::{FETCH_AGAIN, OrBadInput};
use crate::json;
use anyhow::Result;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Which shard each tensor is in.
#[derive(Debug, Deserialize)]
pub struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads the text of the index that messages call `name`.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if it is none, or names something else than files beside it: a downloaded model might read,
    /// or be written, where it should not.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let index: Self = json::from_str(text)
            .or_bad_input(|| format!("{name} is not an index of shards with a weight_map; {FETCH_AGAIN}"))?;
        let is_plain = |shard: &str| {
            let is_harmless = |character: char| !character.is_control() && !"/\\:".contains(character);
            !["", ".", ".."].contains(&shard) && shard.chars().all(is_harmless)
        };
        match index.shards().into_iter().find(|shard| !is_plain(shard)) {
            Some(shard) => Err(bad_input!("{name}: shard {shard:?} is not a plain file name")),
            None => Ok(index),
        }
    }

    /// The shards, each once.
    pub fn shards(&self) -> Vec<&str> {
        let shards: BTreeSet<&str> = self.weight_map.values().map(String::as_str).collect();
        shards.into_iter().collect()
    }

    /// The names of all tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.weight_map.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_files_beside_the_index() {
        let parse = |shard: &str| {
            let text = serde_json::json!({"weight_map": {"a": "first.bin", "b": shard, "c": "first.bin"}}).to_string();
            ShardIndex::parse(&text, "model.index.json")
        };
        let index = parse("second.bin").unwrap();
        assert_eq!(index.shards(), ["first.bin", "second.bin"]);
        assert_eq!(index.tensors().collect::<Vec<_>>(), ["a", "b", "c"]);
        for shard in ["", ".", "..", "../x", "/etc/passwd", "a\\b", "c:x", "a/b", "a\nb"] {
            let message = parse(shard).unwrap_err().to_string();
            assert!(message.starts_with("model.index.json: shard"), "{message}");
        }
        assert!(ShardIndex::parse("{}", "x").unwrap_err().to_string().contains("weight_map"));
    }
}
