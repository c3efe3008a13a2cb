//! `adapter_config.json`, where PEFT keeps the scale of a LoRA.

use crate::bad_input;
use crate::error::OrBadInput;
use crate::files::Folder;
use crate::model::config::{self, Config};
use anyhow::Result;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The file's name.
const FILE: &str = "adapter_config.json";

/// What of the file counts when a LoRA is merged; names and defaults as in PEFT's `LoraConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct AdapterConfig {
    /// The kind of adapter, `LORA`.
    peft_type: String,
    /// What the product is scaled by, times the rank.
    lora_alpha: f64,
    /// The same for modules whose names end in these.
    alpha_pattern: BTreeMap<String, f64>,
    /// Whether the square root of the rank takes the rank's place (arXiv 2312.03732).
    use_rslora: bool,
    /// Another way to merge, which is not done here.
    use_dora: bool,
    /// Whether weights are transposed, as in GPT-2.
    fan_in_fan_out: bool,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            peft_type: "LORA".into(),
            lora_alpha: 8.0,
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            use_dora: false,
            fan_in_fan_out: false,
        }
    }
}

impl Config for AdapterConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = false;

    fn validate(&self) -> Result<()> {
        if self.peft_type != "LORA" {
            return Err(bad_input!("peft_type {:?} is not supported; only \"LORA\" is", self.peft_type));
        }
        let flags = [("use_dora", self.use_dora), ("fan_in_fan_out", self.fan_in_fan_out)];
        if let Some((key, _)) = flags.into_iter().find(|(_, is_set)| *is_set) {
            return Err(bad_input!("{key} is true, which is not supported; merge the LoRA with PEFT"));
        }
        let is_plain = |pattern: &&String| pattern.chars().all(|char| char.is_alphanumeric() || "._".contains(char));
        if let Some(pattern) = self.alpha_pattern.keys().find(|pattern| !is_plain(pattern)) {
            return Err(bad_input!(
                "alpha_pattern has the regular expression {pattern:?}, which is not supported; only names are"
            ));
        }
        let mut alphas = self.alpha_pattern.values().chain([&self.lora_alpha]);
        if alphas.any(|alpha| !alpha.is_finite()) {
            return Err(bad_input!("an alpha is not a finite number"));
        }
        Ok(())
    }
}

impl AdapterConfig {
    /// Reads the configuration in a LoRA's folder, if there is one.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if it is broken or asks for what is not supported.
    pub(super) fn find(folder: &Folder) -> Result<Option<Self>> {
        let path = folder.path_of(FILE);
        let text = folder.find_text(FILE).or_bad_input(|| format!("cannot read {path}"))?;
        text.map(|text| config::parse(&text, &path)).transpose()
    }

    /// What the product of a module's matrices of this rank is multiplied by.
    pub(super) fn strength(&self, module: &str, rank: i64) -> f64 {
        let is_named = |pattern: &str| {
            module.strip_suffix(pattern).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let own = self.alpha_pattern.iter().find(|(pattern, _)| is_named(pattern));
        let alpha = own.map_or(self.lora_alpha, |(_, alpha)| *alpha);
        alpha / if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AdapterConfig> {
        config::parse(text, FILE)
    }

    #[test]
    fn the_strength_is_alpha_over_the_rank() {
        let config = parse(r#"{"lora_alpha": 6, "r": 3, "alpha_pattern": {"attn1.to_q": 12, "q": 1}}"#).unwrap();
        assert_eq!(config.strength("transformer_blocks.0.attn1.to_k", 3), 2.0);
        assert_eq!(config.strength("transformer_blocks.0.attn1.to_q", 3), 4.0);
        assert_eq!(config.strength("a.q", 2), 0.5);
        let config = parse(r#"{"lora_alpha": 6, "use_rslora": true}"#).unwrap();
        assert_eq!(config.strength("proj_in", 9), 2.0);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_key() {
        for (text, word) in [
            (r#"{"peft_type": "LOHA"}"#, "LOHA"),
            (r#"{"use_dora": true}"#, "use_dora"),
            (r#"{"fan_in_fan_out": true}"#, "fan_in_fan_out"),
            (r#"{"alpha_pattern": {".*to_q": 1}}"#, ".*to_q"),
            (r#"{"lora_alpha": "8"}"#, "lora_alpha"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(FILE), "{error}");
        }
    }
}
