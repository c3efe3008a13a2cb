//! The index of sharded weights, as both libraries write it: which file each tensor is in.

use crate::error::{Error, Hint, Result};
use crate::json;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Which shard each tensor is in.
#[derive(Debug, Deserialize)]
pub struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Parses an index; `origin` is its name in messages.
    ///
    /// # Errors
    /// [`Error::File`] if it is not an index, or names anything but files beside it: a downloaded model must not read or write
    /// elsewhere.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let index: Self = json::from_str(text).map_err(|error| {
            let reason = format!("is not an index of shards with a weight_map ({error})");
            Error::file(origin, reason).with_hint(Hint::FetchAgain)
        })?;
        let is_plain = |shard: &str| {
            let is_harmless = |char: char| !char.is_control() && !"/\\:".contains(char);
            !["", ".", ".."].contains(&shard) && shard.chars().all(is_harmless)
        };
        match index.shards().into_iter().find(|shard| !is_plain(shard)) {
            Some(shard) => Err(Error::file(origin, format!("names shard {shard:?}, which is not a plain file name"))),
            None => Ok(index),
        }
    }

    /// The names of the shards, each once, sorted.
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
            assert!(message.starts_with("model.index.json names shard"), "{message}");
        }
        assert!(ShardIndex::parse("{}", "x").unwrap_err().to_string().contains("weight_map"));
    }
}
