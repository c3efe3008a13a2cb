//! Where the scale of a LoRA is kept: PEFT's `adapter_config.json`, or the header of a file that diffusers wrote.

use crate::bad_input;
use crate::error::OrBadInput;
use crate::files::Folder;
use crate::model::config::{self, Config};
use anyhow::Result;
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The file's name.
const FILE: &str = "adapter_config.json";

/// The entry of a safetensors header that holds the same. Source: diffusers 0.42 `loaders/lora_base.py`.
const HEADER_KEY: &str = "lora_adapter_metadata";

/// What a pipeline puts before the keys there: the component that the LoRA is for.
const COMPONENTS: [&str; 2] = ["prior.", "transformer."];

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
    /// Reads the configuration of the LoRA in the file `name`, if it has one: what its own header says comes before a file
    /// beside it.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if it is broken or asks for what is not supported.
    pub(super) fn find(folder: &Folder, name: &str) -> Result<Option<Self>> {
        let in_header = Self::in_header(folder, name)?;
        if in_header.is_some() { Ok(in_header) } else { Self::beside(folder) }
    }

    fn in_header(folder: &Folder, name: &str) -> Result<Option<Self>> {
        if Path::new(name).extension().is_none_or(|extension| extension != "safetensors") {
            return Ok(None);
        }
        let path = folder.path_of(name);
        let bytes = folder.open(name).or_bad_input(|| format!("cannot read {path}"))?;
        let (_, header) =
            SafeTensors::read_metadata(&bytes).or_bad_input(|| format!("{path} is not a sound safetensors file"))?;
        let text = header.metadata().as_ref().and_then(|entries| entries.get(HEADER_KEY));
        text.map(|text| Self::parse_entry(text, &format!("{HEADER_KEY} in {path}"))).transpose()
    }

    /// Parses a header's entry, without the component's name before the keys.
    fn parse_entry(text: &str, origin: &str) -> Result<Self> {
        let entry: Map<String, Value> =
            serde_json::from_str(text).or_bad_input(|| format!("{origin} is not a JSON object"))?;
        let plain = |key: String| {
            let inner = COMPONENTS.iter().find_map(|component| key.strip_prefix(component));
            inner.map_or_else(|| key.clone(), String::from)
        };
        let entry: Map<String, Value> = entry.into_iter().map(|(key, value)| (plain(key), value)).collect();
        config::parse(&Value::Object(entry).to_string(), origin)
    }

    fn beside(folder: &Folder) -> Result<Option<Self>> {
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
    fn a_header_names_the_component_or_not() {
        for text in [
            r#"{"lora_alpha": 6, "alpha_pattern": {"to_q": 12}}"#,
            r#"{"prior.lora_alpha": 6, "prior.alpha_pattern": {"to_q": 12}, "text_encoder.lora_alpha": 1}"#,
            r#"{"transformer.lora_alpha": 6, "transformer.alpha_pattern": {"to_q": 12}}"#,
        ] {
            let config = AdapterConfig::parse_entry(text, HEADER_KEY).unwrap();
            assert_eq!((config.strength("proj_in", 3), config.strength("attn1.to_q", 3)), (2.0, 4.0), "{text}");
        }
        for (text, word) in [("[]", "JSON object"), (r#"{"prior.use_dora": true}"#, "use_dora")] {
            let error = AdapterConfig::parse_entry(text, HEADER_KEY).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(HEADER_KEY), "{error}");
        }
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
