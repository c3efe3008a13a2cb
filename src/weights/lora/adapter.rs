//! How a LoRA is merged: PEFT's `adapter_config.json`, or the header of a file of diffusers.

use super::initialization;
use super::pattern::Pattern;
use crate::config::{self, Config};
use crate::error::{Error, Hint, Result};
use crate::files::Folder;
use crate::json::Json;
use crate::text::shorten;
use crate::weights::delta::Base;
use indexmap::IndexMap;
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The name of PEFT's configuration.
const FILE: &str = "adapter_config.json";

/// The entry of a safetensors header that holds the configuration. Source: diffusers 0.42 `loaders/lora_base.py`.
const HEADER_KEY: &str = "lora_adapter_metadata";

/// The prefixes of the keys there: the component that the LoRA is for.
const COMPONENTS: [&str; 2] = ["prior.", "transformer."];

/// Keys of PEFT's `LoraConfig` that do not matter for merging into linear layers, whatever their value.
const HARMLESS: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    // The settings of an initialization, which `init_lora_weights` names.
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    // PEFT takes it as false for `nn.Linear`.
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "library_name",
];

/// PEFT's `LoraConfig`; names and defaults as there.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Fields {
    /// The adapter type, `LORA`.
    peft_type: Option<String>,
    /// The rank.
    r: Option<i64>,
    /// Ranks of the modules whose names match a pattern; the first that matches counts.
    rank_pattern: Option<IndexMap<String, i64>>,
    /// The scale of the product, times the rank.
    lora_alpha: f64,
    /// Alphas by pattern, as in `rank_pattern`.
    alpha_pattern: Option<IndexMap<String, f64>>,
    /// Divides by the square root of the rank instead of the rank (arXiv 2312.03732).
    use_rslora: bool,
    /// The initialization of the matrices, which may have changed the model.
    init_lora_weights: Value,
    /// Which biases were trained.
    bias: Option<String>,
    target_modules: Option<Names>,
    exclude_modules: Option<Names>,
    layers_to_transform: Option<Numbers>,
    layers_pattern: Option<Names>,
    /// All other keys.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// A regular expression, or names.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Names {
    Pattern(String),
    Listed(Vec<String>),
}

/// One number or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Numbers {
    One(u64),
    Listed(Vec<u64>),
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            peft_type: None,
            r: None,
            rank_pattern: None,
            lora_alpha: 8.0,
            alpha_pattern: None,
            use_rslora: false,
            init_lora_weights: Value::Bool(true),
            bias: None,
            target_modules: None,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            others: BTreeMap::new(),
        }
    }
}

impl Config for Fields {
    const WARNS_OF_UNKNOWN_KEYS: bool = false;

    fn validate(&self) -> Result<()> {
        let mut ranks = self.rank_pattern.iter().flat_map(IndexMap::values).chain(&self.r);
        if let Some(rank) = ranks.find(|rank| **rank < 1) {
            return Err(Error::key("r", format!("or a rank of rank_pattern is {rank}, it must be at least 1")));
        }
        if let Some(other) = self.peft_type.as_deref().filter(|kind| *kind != "LORA") {
            return Err(Error::key("peft_type", format!("is {other:?}, only \"LORA\" is supported")));
        }
        let unsupported = |key: &str, value: &str| {
            Error::key(key, format!("is {value}, which is not supported")).with_hint(Hint::MergeWithPeft)
        };
        if let Some(bias) = self.bias.as_deref().filter(|bias| *bias != "none") {
            return Err(unsupported("bias", &format!("{bias:?}")));
        }
        // All other options of PEFT, and of later versions of it, are off if they are null, false or empty.
        let is_off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(values) => values.is_empty(),
            Value::Object(entries) => entries.is_empty(),
            _ => false,
        };
        let mut others = self.others.iter().filter(|(key, _)| !HARMLESS.contains(&key.as_str()));
        if let Some((key, value)) = others.find(|(_, value)| !is_off(value)) {
            return Err(unsupported(key, &shorten(&value.to_string(), 40)));
        }
        let mut alphas = self.alpha_pattern.iter().flat_map(IndexMap::values).chain([&self.lora_alpha]);
        if alphas.any(|alpha| !alpha.is_finite()) {
            return Err(Error::key("lora_alpha", "or an alpha of alpha_pattern is not finite"));
        }
        Ok(())
    }
}

/// The parts of a configuration that matter for merging.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    /// Its name in messages.
    origin: String,
    /// Whether it is in the header of the LoRA's own file. A file beside it is for tensors under PEFT's names alone.
    pub(super) is_in_header: bool,
    rank: Option<i64>,
    rank_pattern: Vec<(Pattern, i64)>,
    alpha: f64,
    alpha_pattern: Vec<(Pattern, f64)>,
    use_rslora: bool,
    targets: Option<Targets>,
    /// The part of each matrix that the initialization subtracted from it.
    pub(super) base: Option<Base>,
}

impl AdapterConfig {
    /// Reads the configuration of the LoRA in the file `name`, if it has one: from its header, else from a file beside it.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::File`] if it is damaged, or something in it is not supported.
    pub(super) fn find(folder: &Folder, name: &str) -> Result<Option<Self>> {
        let in_header = Self::in_header(folder, name)?;
        if in_header.is_some() { Ok(in_header) } else { Self::beside(folder) }
    }

    fn in_header(folder: &Folder, name: &str) -> Result<Option<Self>> {
        if Path::new(name).extension().is_none_or(|extension| extension != "safetensors") {
            return Ok(None);
        }
        let (path, bytes) = (folder.path_of(name), folder.open(name)?);
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| Error::damaged(&path, "safetensors", error))?;
        let text = header.metadata().as_ref().and_then(|entries| entries.get(HEADER_KEY));
        text.map(|text| Self::parse_entry(text, format!("{HEADER_KEY} in {path}"))).transpose()
    }

    /// Parses the entry of a header, without the component before each key. Its targets are ignored: diffusers takes the modules
    /// that the file holds.
    fn parse_entry(text: &str, origin: String) -> Result<Self> {
        let Ok(Json::Object(entries)) = Json::parse(text) else {
            return Err(Error::file(origin, "is not a JSON object"));
        };
        let plain = |key: &str| {
            let inner = COMPONENTS.iter().find_map(|component| key.strip_prefix(component)).unwrap_or(key);
            // A dot in the rest means another component.
            (!inner.contains('.')).then(|| inner.to_string())
        };
        let entries = entries.into_iter().filter_map(|(key, value)| Some((plain(&key)?, value))).collect();
        let mut config = Self::new(config::from_json(Json::Object(entries), &origin)?, origin)?;
        (config.is_in_header, config.targets) = (true, None);
        Ok(config)
    }

    fn beside(folder: &Folder) -> Result<Option<Self>> {
        folder.find_text(FILE)?.map(|text| Self::parse(&text, folder.path_of(FILE))).transpose()
    }

    fn parse(text: &str, origin: String) -> Result<Self> {
        Self::new(config::parse(text, &origin)?, origin)
    }

    fn new(fields: Fields, origin: String) -> Result<Self> {
        Self::of_fields(fields, origin.clone()).map_err(|error| error.with_path(&origin))
    }

    fn of_fields(fields: Fields, origin: String) -> Result<Self> {
        let base = initialization::base(&fields.init_lora_weights)?;
        if let Some(Base::RandomizedPrincipal) = base {
            let init = &fields.init_lora_weights;
            log::warn!(
                "{origin}: init_lora_weights is {init}, a randomized algorithm; the exact decomposition is used"
            );
        }
        Ok(Self {
            origin,
            is_in_header: false,
            rank: fields.r,
            rank_pattern: patterns(fields.rank_pattern)?,
            alpha: fields.lora_alpha,
            alpha_pattern: patterns(fields.alpha_pattern)?,
            use_rslora: fields.use_rslora,
            targets: Targets::of_fields(
                fields.target_modules,
                fields.exclude_modules,
                fields.layers_to_transform,
                fields.layers_pattern,
            )?,
            base,
        })
    }

    /// Its name in messages.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// The rank that a module's matrices must have, if there is one.
    ///
    /// # Errors
    /// [`Error::Config`] if a pattern takes too long to match.
    pub(super) fn rank(&self, module: &str) -> Result<Option<i64>> {
        Ok(self.first(&self.rank_pattern, module)?.or(self.rank))
    }

    /// The factor of the product of a module's matrices of this rank.
    ///
    /// # Errors
    /// [`Error::Config`] if a pattern takes too long to match.
    pub(super) fn strength(&self, module: &str, rank: i64) -> Result<f64> {
        let alpha = self.first(&self.alpha_pattern, module)?.unwrap_or(self.alpha);
        Ok(alpha / if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 })
    }

    /// Whether PEFT changes this module; it ignores what a file holds for others.
    ///
    /// # Errors
    /// [`Error::Config`] if a pattern takes too long to match.
    pub(super) fn targets(&self, module: &str) -> Result<bool> {
        let contains = |targets: &Targets| targets.contains(module).map_err(|error| error.with_path(&self.origin));
        self.targets.as_ref().map_or(Ok(true), contains)
    }

    /// The value of the first pattern that matches. Source: PEFT's `get_pattern_key`.
    fn first<T: Copy>(&self, patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>> {
        for (pattern, value) in patterns {
            if pattern.matches(module).map_err(|error| error.with_path(&self.origin))? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

fn patterns<T>(patterns: Option<IndexMap<String, T>>) -> Result<Vec<(Pattern, T)>> {
    patterns.into_iter().flatten().map(|(pattern, value)| Ok((Pattern::of_end(&pattern)?, value))).collect()
}

/// Which modules a LoRA is for. Source: PEFT's `check_target_module_exists`.
#[derive(Debug)]
struct Targets {
    included: Selection,
    excluded: Option<Selection>,
    /// The numbers of the blocks that it is for, and the names of the lists that the blocks are in.
    blocks: Option<(Vec<u64>, Vec<String>)>,
}

/// A set of modules, by name.
#[derive(Debug)]
enum Selection {
    All,
    Matching(Pattern),
    Ending(Vec<String>),
}

impl Selection {
    fn new(names: Names) -> Result<Self> {
        Ok(match names {
            Names::Pattern(text) => Self::Matching(Pattern::of_whole(&text)?),
            Names::Listed(names) => Self::Ending(names),
        })
    }

    fn contains(&self, module: &str) -> Result<bool> {
        let is_suffix = |name: &String| {
            module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        match self {
            Self::All => Ok(true),
            Self::Matching(pattern) => pattern.matches(module),
            Self::Ending(names) => Ok(names.iter().any(is_suffix)),
        }
    }
}

impl Targets {
    fn of_fields(
        targets: Option<Names>,
        excluded: Option<Names>,
        blocks: Option<Numbers>,
        block_lists: Option<Names>,
    ) -> Result<Option<Self>> {
        let included = match targets {
            // Without targets PEFT refuses a model that it does not know.
            None => Selection::All,
            Some(Names::Pattern(text)) if text.eq_ignore_ascii_case("all-linear") => Selection::All,
            Some(names) => Selection::new(names)?,
        };
        let is_empty = |names: &Names| match names {
            Names::Pattern(text) => text.is_empty(),
            Names::Listed(names) => names.is_empty(),
        };
        let excluded = excluded.filter(|names| !is_empty(names)).map(Selection::new).transpose()?;
        let blocks = match blocks {
            Some(Numbers::One(number)) => Some(vec![number]),
            Some(Numbers::Listed(numbers)) if !numbers.is_empty() => Some(numbers),
            _ => None,
        };
        let block_lists = match block_lists.filter(|names| !is_empty(names)) {
            Some(Names::Pattern(name)) => vec![name],
            Some(Names::Listed(names)) => names,
            None => Vec::new(),
        };
        if blocks.is_some()
            && let Some(other) = block_lists.iter().find(|name| name.contains(|char: char| !is_word(char)))
        {
            return Err(Error::key("layers_pattern", format!("holds {other:?}, only names are supported")));
        }
        Ok(Some(Self { included, excluded, blocks: blocks.map(|numbers| (numbers, block_lists)) }))
    }

    fn contains(&self, module: &str) -> Result<bool> {
        if let Some(excluded) = &self.excluded
            && excluded.contains(module)?
        {
            return Ok(false);
        }
        if !self.included.contains(module)? {
            return Ok(false);
        }
        // PEFT looks at the block of a module that is selected by the end of its name, but not by its whole name.
        let is_named_whole =
            matches!(&self.included, Selection::Ending(names) if names.iter().any(|name| name == module));
        Ok(match &self.blocks {
            Some((numbers, lists)) if !is_named_whole => {
                block_of(module, lists).is_some_and(|number| numbers.contains(&number))
            }
            _ => true,
        })
    }
}

fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

/// The number of the block that a module is in: the one after the first of these lists that a number follows, or without
/// lists, the first after at least two parts. It is never the last part of the name.
fn block_of(module: &str, lists: &[String]) -> Option<u64> {
    let parts: Vec<&str> = module.split('.').collect();
    let numbers: Vec<(usize, u64)> = (1..parts.len().saturating_sub(1))
        .filter(|&index| parts[index].chars().all(|char| char.is_ascii_digit()))
        .filter_map(|index| Some((index, parts[index].parse().ok()?)))
        .collect();
    let find = |matches: &dyn Fn(usize) -> bool| numbers.iter().find(|(index, _)| matches(*index));
    let found = match lists {
        [] => find(&|index| index >= 2),
        _ => lists.iter().find_map(|name| find(&|index| parts[index - 1] == name)),
    };
    found.map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AdapterConfig> {
        AdapterConfig::parse(text, FILE.into())
    }

    fn strength(config: &AdapterConfig, module: &str, rank: i64) -> f64 {
        config.strength(module, rank).unwrap()
    }

    #[test]
    fn the_strength_is_alpha_over_the_rank() {
        let config = parse(r#"{"lora_alpha": 6, "r": 3, "alpha_pattern": {"attn1.to_q": 12, "q": 1}}"#).unwrap();
        assert_eq!(strength(&config, "transformer_blocks.0.attn1.to_k", 3), 2.0);
        assert_eq!(strength(&config, "transformer_blocks.0.attn1.to_q", 3), 4.0);
        assert_eq!(strength(&config, "a.q", 2), 0.5);
        let config = parse(r#"{"lora_alpha": 6, "use_rslora": true}"#).unwrap();
        assert_eq!(strength(&config, "proj_in", 9), 2.0);
    }

    #[test]
    fn the_first_pattern_that_matches_counts() {
        for (patterns, expected) in [
            (r#""to_q": 2, "attn1.to_q": 3"#, 2.0),
            (r#""attn1.to_q": 3, "to_q": 2"#, 3.0),
            (r#""^attn1.to_q": 3, "to_[qk]": 2"#, 2.0),
            (r#""z": 1, ".*": 4, "to_q": 2"#, 4.0),
            // As in Python, a repeated key keeps its place and takes the new value.
            (r#""to_q": 2, ".*": 4, "to_q": 7"#, 7.0),
        ] {
            let config =
                parse(&format!(r#"{{"r": 1, "alpha_pattern": {{{patterns}}}, "rank_pattern": {{{patterns}}}}}"#))
                    .unwrap();
            let module = "transformer_blocks.0.attn1.to_q";
            assert_eq!(strength(&config, module, 1), expected, "{patterns}");
            assert_eq!(config.rank(module).unwrap(), Some(expected as i64), "{patterns}");
            let header = format!(r#"{{"prior.alpha_pattern": {{{patterns}}}, "prior.r": 1}}"#);
            let config = AdapterConfig::parse_entry(&header, HEADER_KEY.into()).unwrap();
            assert_eq!(strength(&config, module, 1), expected, "{header}");
        }
    }

    #[test]
    fn a_header_names_the_component_or_not() {
        for text in [
            r#"{"lora_alpha": 6, "alpha_pattern": {"to_q": 12}}"#,
            r#"{"prior.lora_alpha": 6, "prior.alpha_pattern": {"to_q": 12}, "text_encoder.use_dora": true}"#,
            r#"{"transformer.lora_alpha": 6, "transformer.alpha_pattern": {"to_q": 12}}"#,
        ] {
            let config = AdapterConfig::parse_entry(text, HEADER_KEY.into()).unwrap();
            assert_eq!((strength(&config, "proj_in", 3), strength(&config, "attn1.to_q", 3)), (2.0, 4.0), "{text}");
        }
        for (text, word) in [("[]", "JSON object"), (r#"{"prior.use_dora": true}"#, "use_dora")] {
            let error = AdapterConfig::parse_entry(text, HEADER_KEY.into()).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(HEADER_KEY), "{error}");
        }
    }

    #[test]
    fn modules_are_chosen_as_in_peft() {
        let (q0, q1) = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_q");
        for (text, expected) in [
            ("{}", [true, true, true]),
            (r#"{"target_modules": ["to_q"]}"#, [true, true, false]),
            (r#"{"target_modules": ["o_q", "proj_in"]}"#, [false, false, true]),
            (r#"{"target_modules": "All-Linear"}"#, [true, true, true]),
            (r#"{"target_modules": ".*0.*to_q"}"#, [true, false, false]),
            (r#"{"target_modules": "to_q"}"#, [false, false, false]),
            (r#"{"exclude_modules": ["to_q"]}"#, [false, false, true]),
            (r#"{"exclude_modules": ".*1\\.to_q"}"#, [false, false, true]),
            (
                r#"{"target_modules": ["to_q"], "layers_to_transform": 1, "layers_pattern": "transformer_blocks"}"#,
                [false, true, false],
            ),
            (
                r#"{"target_modules": ["to_q"], "layers_to_transform": [0], "layers_pattern": ["transformer_blocks"]}"#,
                [true, false, false],
            ),
            (
                r#"{"target_modules": ["to_q", "transformer_blocks.1.attn1.to_q"], "layers_to_transform": []}"#,
                [true, true, false],
            ),
            // Without lists, a block's number follows two names; a module that is named in full is always in.
            (r#"{"target_modules": ["to_q", "proj_in"], "layers_to_transform": [0, 1]}"#, [false, false, true]),
        ] {
            let config = parse(text).unwrap();
            let found = [q0, q1, "proj_in"].map(|module| config.targets(module).unwrap());
            assert_eq!(found, expected, "{text}");
        }
        // diffusers goes by what the file holds.
        let header = AdapterConfig::parse_entry(r#"{"target_modules": ["to_v"]}"#, HEADER_KEY.into()).unwrap();
        assert!(header.targets(q0).unwrap());
    }

    #[test]
    fn unsupported_keys_are_refused_by_name() {
        for (text, word) in [
            (r#"{"peft_type": "LOHA"}"#, "LOHA"),
            (r#"{"use_dora": true}"#, "use_dora is true"),
            (r#"{"bias": "lora_only"}"#, "bias"),
            (r#"{"lora_bias": true}"#, "lora_bias"),
            (r#"{"modules_to_save": ["proj_in"]}"#, "modules_to_save"),
            (r#"{"kasa_config": {"beta": 0.0001}}"#, "kasa_config"),
            (r#"{"layer_replication": [[0, 1]]}"#, "layer_replication"),
            (r#"{"target_parameters": ["prd_embedding"]}"#, "target_parameters"),
            (r#"{"trainable_token_indices": [1]}"#, "trainable_token_indices"),
            (r#"{"use_something_new": "yes"}"#, "use_something_new"),
            (r#"{"alpha_pattern": {"(?i)to_q": 1}}"#, "(?i)to_q"),
            (r#"{"rank_pattern": {"[[a]]": 1}}"#, "[[a]]"),
            (r#"{"target_modules": "(?i)to_q"}"#, "(?i)to_q"),
            (r#"{"layers_to_transform": 1, "layers_pattern": "a.b"}"#, "layers_pattern"),
            (r#"{"lora_alpha": "8"}"#, "lora_alpha"),
            (r#"{"init_lora_weights": "corda"}"#, "corda"),
            (r#"{"init_lora_weights": "loftq"}"#, "loftq"),
            (r#"{"init_lora_weights": "lora_ga"}"#, "lora_ga"),
            (r#"{"init_lora_weights": "pissa_niter_x"}"#, "pissa_niter_x"),
            (r#"{"init_lora_weights": "new"}"#, "new"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.path(), Some(FILE), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn keys_without_effect_are_accepted() {
        let text = r#"{"peft_type": "LORA", "r": 4, "fan_in_fan_out": true, "lora_dropout": 0.1, "bias": "none",
            "use_dora": false, "modules_to_save": null, "eva_config": {"rho": 2.0}, "loftq_config": {}, "task_type": null,
            "use_something_new": null, "init_lora_weights": "eva", "alpha_pattern": {}, "rank_pattern": null}"#;
        let config = parse(text).unwrap();
        assert!(config.base.is_none() && config.rank("proj_in").unwrap() == Some(4));
        for init in ["true", "false", "null", r#""gaussian""#, r#""orthogonal""#, r#""mica""#, r#""eva""#] {
            assert!(parse(&format!(r#"{{"init_lora_weights": {init}}}"#)).unwrap().base.is_none(), "{init}");
        }
    }
}
