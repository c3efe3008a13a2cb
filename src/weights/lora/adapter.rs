//! How a LoRA is merged: PEFT's `adapter_config.json`, or the header of a file that diffusers wrote.

use super::base::Base;
use super::pattern::Pattern;
use crate::bad_input;
use crate::config::{self, Config};
use crate::error::{OrBadInput, shorten};
use crate::files::Folder;
use crate::json::Json;
use anyhow::Result;
use indexmap::IndexMap;
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The file's name.
const FILE: &str = "adapter_config.json";

/// The entry of a safetensors header that holds the same. Source: diffusers 0.42 `loaders/lora_base.py`.
const HEADER_KEY: &str = "lora_adapter_metadata";

/// What a pipeline puts before the keys there: the component that the LoRA is for.
const COMPONENTS: [&str; 2] = ["prior.", "transformer."];

/// Keys of PEFT's `LoraConfig` that have no say when a LoRA is merged into the linear layers of a prior, whatever they hold.
const HARMLESS: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    // What an initialization was computed with; that itself is in `init_lora_weights`.
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    // PEFT takes it as false where a layer is `nn.Linear`.
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
    /// The kind of adapter, `LORA`.
    peft_type: Option<String>,
    /// The rank.
    r: Option<i64>,
    /// The same for modules whose names match; the first pattern that does counts.
    rank_pattern: Option<IndexMap<String, i64>>,
    /// What the product is scaled by, times the rank.
    lora_alpha: f64,
    /// The same for modules whose names match.
    alpha_pattern: Option<IndexMap<String, f64>>,
    /// Whether the square root of the rank takes the rank's place (arXiv 2312.03732).
    use_rslora: bool,
    /// What the matrices were made of before training, which may have changed the model.
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

/// A number, or several.
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
            return Err(bad_input!("a rank is {rank}, it must be at least 1"));
        }
        if let Some(other) = self.peft_type.as_deref().filter(|kind| *kind != "LORA") {
            return Err(bad_input!("peft_type {other:?} is not supported; only \"LORA\" is"));
        }
        if let Some(bias) = self.bias.as_deref().filter(|bias| *bias != "none") {
            return Err(bad_input!("bias is {bias:?}, which is not supported; merge the LoRA with PEFT"));
        }
        // Every other option of PEFT's, and of versions to come, is off if it is null, false or empty.
        let is_off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(values) => values.is_empty(),
            Value::Object(entries) => entries.is_empty(),
            _ => false,
        };
        let mut others = self.others.iter().filter(|(key, _)| !HARMLESS.contains(&key.as_str()));
        if let Some((key, value)) = others.find(|(_, value)| !is_off(value)) {
            let value = shorten(&value.to_string(), 40);
            return Err(bad_input!("{key} is {value}, which is not supported; merge the LoRA with PEFT"));
        }
        let mut alphas = self.alpha_pattern.iter().flat_map(IndexMap::values).chain([&self.lora_alpha]);
        if alphas.any(|alpha| !alpha.is_finite()) {
            return Err(bad_input!("an alpha is not a finite number"));
        }
        Ok(())
    }
}

/// What of a configuration counts when a LoRA is merged.
#[derive(Debug)]
pub(crate) struct AdapterConfig {
    /// What messages call it.
    origin: String,
    /// Whether the LoRA's own file holds it. What lies beside a file is for names as PEFT writes them.
    pub(crate) is_in_header: bool,
    rank: Option<i64>,
    rank_pattern: Vec<(Pattern, i64)>,
    alpha: f64,
    alpha_pattern: Vec<(Pattern, f64)>,
    use_rslora: bool,
    targets: Option<Targets>,
    /// What the initialization took from the model.
    pub(crate) base: Option<Base>,
}

impl AdapterConfig {
    /// Reads the configuration of the LoRA in the file `name`, if it has one: what its own header says comes before a file
    /// beside it.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if it is broken or asks for what is not supported.
    pub(crate) fn find(folder: &Folder, name: &str) -> Result<Option<Self>> {
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
        text.map(|text| Self::parse_entry(text, format!("{HEADER_KEY} in {path}"))).transpose()
    }

    /// Parses a header's entry, without the component's name before the keys. diffusers takes the modules from the file and
    /// not from what it says.
    fn parse_entry(text: &str, origin: String) -> Result<Self> {
        let Ok(Json::Object(entries)) = Json::parse(text) else {
            return Err(bad_input!("{origin} is not a JSON object"));
        };
        let plain = |key: &str| {
            let inner = COMPONENTS.iter().find_map(|component| key.strip_prefix(component)).unwrap_or(key);
            // What is left with a dot is another component's.
            (!inner.contains('.')).then(|| inner.to_string())
        };
        let entries = entries.into_iter().filter_map(|(key, value)| Some((plain(&key)?, value))).collect();
        let mut config = Self::of_json(Json::Object(entries), origin)?;
        (config.is_in_header, config.targets) = (true, None);
        Ok(config)
    }

    fn beside(folder: &Folder) -> Result<Option<Self>> {
        let path = folder.path_of(FILE);
        let text = folder.find_text(FILE).or_bad_input(|| format!("cannot read {path}"))?;
        text.map(|text| Self::parse(&text, path)).transpose()
    }

    fn parse(text: &str, origin: String) -> Result<Self> {
        Self::of_result(config::parse(text, &origin), origin)
    }

    fn of_json(json: Json, origin: String) -> Result<Self> {
        Self::of_result(config::from_json(json, &origin), origin)
    }

    fn of_result(fields: Result<Fields>, origin: String) -> Result<Self> {
        let fields = fields?;
        match Self::of_fields(fields, origin.clone()) {
            Err(error) => Err(bad_input!("{origin}: {error}")),
            config => config,
        }
    }

    fn of_fields(fields: Fields, origin: String) -> Result<Self> {
        let base = Base::of_init(&fields.init_lora_weights)?;
        if let Some(Base::RandomizedPrincipal) = base {
            log::warn!(
                "{origin}: init_lora_weights is {}, which PEFT computes with random numbers; the exact decomposition that they approach is taken",
                fields.init_lora_weights
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

    /// What messages call it.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// The rank that a module's matrices must have, if it is said.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if a pattern takes too long to match.
    pub(crate) fn rank(&self, module: &str) -> Result<Option<i64>> {
        Ok(first(&self.rank_pattern, module)?.or(self.rank))
    }

    /// What the product of a module's matrices of this rank is multiplied by.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if a pattern takes too long to match.
    pub(crate) fn strength(&self, module: &str, rank: i64) -> Result<f64> {
        let alpha = first(&self.alpha_pattern, module)?.unwrap_or(self.alpha);
        Ok(alpha / if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 })
    }

    /// Whether PEFT changes this module; it leaves out what a file holds for others.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if a pattern takes too long to match.
    pub(crate) fn targets(&self, module: &str) -> Result<bool> {
        self.targets.as_ref().map_or(Ok(true), |targets| targets.contains(module))
    }
}

fn patterns<T>(patterns: Option<IndexMap<String, T>>) -> Result<Vec<(Pattern, T)>> {
    patterns.into_iter().flatten().map(|(pattern, value)| Ok((Pattern::of_end(&pattern)?, value))).collect()
}

/// The value of the first pattern that matches. Source: PEFT's `get_pattern_key`.
fn first<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if pattern.matches(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Which modules a LoRA is for. Source: PEFT's `check_target_module_exists`.
#[derive(Debug)]
struct Targets {
    included: Selection,
    excluded: Option<Selection>,
    /// The numbers of the blocks that it is for, and what finds a module's.
    blocks: Option<(Vec<u64>, Vec<String>)>,
}

/// Modules by their names.
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
        let is_end = |name: &String| {
            module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        match self {
            Self::All => Ok(true),
            Self::Matching(pattern) => pattern.matches(module),
            Self::Ending(names) => Ok(names.iter().any(is_end)),
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
            return Err(bad_input!("layers_pattern has {other:?}; only names are supported"));
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
        // PEFT asks for the block where a module is found by the end of its name, not by all of it.
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

/// The number of the block that a module is in, which is followed by something in its name: behind the first of these names
/// that a number follows, or, without names, behind any two parts.
fn block_of(module: &str, lists: &[String]) -> Option<u64> {
    let parts: Vec<&str> = module.split('.').collect();
    let numbers: Vec<(usize, u64)> = (1..parts.len().saturating_sub(1))
        .filter(|&place| parts[place].chars().all(|char| char.is_ascii_digit()))
        .filter_map(|place| Some((place, parts[place].parse().ok()?)))
        .collect();
    let find = |is_there: &dyn Fn(usize) -> bool| numbers.iter().find(|(place, _)| is_there(*place));
    let found = match lists {
        [] => find(&|place| place >= 2),
        _ => lists.iter().find_map(|name| find(&|place| parts[place - 1] == name)),
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
            // As in Python, a key that comes again keeps its place and takes the new value.
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
            // Without a list's name a block's number follows two names; a module that is named whole is in.
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
    fn what_is_not_supported_is_refused_by_key() {
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
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(FILE), "{error}");
        }
    }

    #[test]
    fn what_says_nothing_is_accepted() {
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
