//! The files of a saved tokenizer, in all forms that transformers has written over the years.

use crate::config::parse_json;
use crate::error::{Error, Result};
use crate::files::Folder;
use ahash::AHashMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use tokenizers::AddedToken;

/// The names of all files that a saved tokenizer may have.
pub const FILES: [&str; 6] = [
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

/// The roles of special tokens, in the order in which transformers adds them.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The defaults of CLIP.
const CLIP_DEFAULTS: [(&str, &str); 4] = [
    ("unk_token", "<|endoftext|>"),
    ("bos_token", "<|startoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("pad_token", "<|endoftext|>"),
];

/// A maximum length from here on means no limit; transformers writes 10³⁰.
const NO_LIMIT: f64 = 1e6;

/// A special or added token in a configuration: a plain string, or an object with matching rules.
#[derive(Debug, Clone)]
enum Token {
    Plain(String),
    Full(AddedToken),
}

impl Token {
    fn content(&self) -> &str {
        match self {
            Self::Plain(content) => content,
            Self::Full(token) => &token.content,
        }
    }

    fn to_added(&self, special: bool) -> AddedToken {
        match self {
            Self::Plain(content) => AddedToken::from(content.as_str(), special),
            Self::Full(token) => AddedToken { special: token.special || special, ..token.clone() },
        }
    }

    /// Whether both are strings or both objects, and of the same content; transformers keeps a string beside an equal
    /// object.
    fn is_same(&self, other: &Self) -> bool {
        let same_form = matches!((self, other), (Self::Plain(_), Self::Plain(_)) | (Self::Full(_), Self::Full(_)));
        same_form && self.content() == other.content()
    }
}

/// A token as an object. Older files lack `special`.
#[derive(Debug, Deserialize)]
struct TokenObject {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl TokenObject {
    fn into_added(self, special: bool) -> AddedToken {
        let special = self.special || special;
        AddedToken {
            content: self.content,
            single_word: self.single_word,
            lstrip: self.lstrip,
            rstrip: self.rstrip,
            normalized: self.normalized.unwrap_or(!special),
            special,
        }
    }
}

/// The contents of a tokenizer's files, in one form.
#[derive(Debug)]
pub struct TokenizerFiles {
    vocab: AHashMap<String, u32>,
    merges: Vec<(String, String)>,
    roles: BTreeMap<&'static str, Token>,
    /// Tokens that a configuration gives an id, by that id.
    added: BTreeMap<u32, AddedToken>,
    /// Special tokens without a role.
    extra: Vec<Token>,
    max_length: Option<usize>,
}

impl TokenizerFiles {
    /// Reads the files in `folder`.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Config`] if there is no vocabulary, or a file is damaged.
    pub fn read(folder: &Folder) -> Result<Self> {
        let config: Map<String, Value> = read_json(folder, "tokenizer_config.json")?.unwrap_or_default();
        let mut files = Self::read_vocabulary(folder)?;
        files.check_sides(folder, &config)?;
        files.max_length = max_length(&config);
        files.read_config_tokens(folder, &config)?;
        Ok(files)
    }

    /// Token ids by token.
    pub fn vocab(&self) -> &AHashMap<String, u32> {
        &self.vocab
    }

    /// The merges, by priority.
    pub fn merges(&self) -> &[(String, String)] {
        &self.merges
    }

    /// The token before the text.
    pub fn bos_token(&self) -> &str {
        self.role("bos_token")
    }

    /// The token after the text.
    pub fn eos_token(&self) -> &str {
        self.role("eos_token")
    }

    /// The token for what the vocabulary lacks.
    pub fn unk_token(&self) -> &str {
        self.role("unk_token")
    }

    /// The padding token.
    pub fn pad_token(&self) -> &str {
        self.role("pad_token")
    }

    /// The maximum number of ids in an encoded text, if the configuration has one.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// The tokens to add to the vocabulary, in the order in which transformers adds them: those with an id, then those
    /// with a role, then the rest.
    pub fn added_tokens(&self) -> Vec<AddedToken> {
        let named = |content: &str| self.roles.values().any(|token| token.content() == content);
        let with_id = self.added.values();
        let mut tokens: Vec<AddedToken> = with_id
            .map(|token| AddedToken { special: token.special || named(&token.content), ..token.clone() })
            .collect();
        let has_id = |content: &str| self.added.values().any(|token| token.content == content);
        let mut rest: Vec<&Token> = Vec::new();
        for token in ROLES.iter().filter_map(|role| self.roles.get(role)).chain(&self.extra) {
            if !has_id(token.content()) && !rest.iter().any(|other| other.is_same(token)) {
                rest.push(token);
            }
        }
        tokens.extend(
            rest.into_iter().map(|token| token.to_added(matches!(token, Token::Plain(_)) || named(token.content()))),
        );
        tokens
    }

    fn role(&self, role: &str) -> &str {
        self.roles.get(role).map_or("", Token::content)
    }

    fn read_vocabulary(folder: &Folder) -> Result<Self> {
        let (vocab, merges, added) = match read_json::<TokenizerJson>(folder, "tokenizer.json")? {
            Some(json) => json.into_parts(folder)?,
            None => {
                let vocab = read_json(folder, "vocab.json")?;
                let vocab = vocab.ok_or_else(|| {
                    let reason = "holds no tokenizer: neither tokenizer.json, nor vocab.json and merges.txt";
                    Error::file(folder.to_string(), reason)
                })?;
                (vocab, read_merges(folder)?, BTreeMap::new())
            }
        };
        let roles = CLIP_DEFAULTS.map(|(role, content)| (role, Token::Plain(content.into())));
        Ok(Self { vocab, merges, roles: roles.into(), added, extra: Vec::new(), max_length: None })
    }

    /// CLIP pads and truncates on the right, the only side that a causal model supports without a mask.
    fn check_sides(&self, folder: &Folder, config: &Map<String, Value>) -> Result<()> {
        for key in ["padding_side", "truncation_side"] {
            if let Some(side) = config.get(key).and_then(Value::as_str).filter(|side| *side != "right") {
                let error = Error::key(key, format!("is {side:?}, only \"right\" is supported"));
                return Err(error.with_path(&folder.path_of("tokenizer_config.json")));
            }
        }
        Ok(())
    }

    fn read_config_tokens(&mut self, folder: &Folder, config: &Map<String, Value>) -> Result<()> {
        self.read_roles(config, false, &folder.path_of("tokenizer_config.json"))?;
        if let Some(decoder) = config.get("added_tokens_decoder") {
            // The newest form replaces the older ones.
            self.added = parse_decoder(decoder, &folder.path_of("tokenizer_config.json"))?;
        } else {
            let mut map: Map<String, Value> = read_json(folder, "special_tokens_map.json")?.unwrap_or_default();
            // transformers reads this key too late to make the tokens in added_tokens.json special, and ignores it if
            // there are extra tokens by then.
            let late: Map<String, Value> = map.remove_entry("additional_special_tokens").into_iter().collect();
            self.read_roles(&map, true, &folder.path_of("special_tokens_map.json"))?;
            let added: BTreeMap<String, u32> = read_json(folder, "added_tokens.json")?.unwrap_or_default();
            for (content, id) in added {
                let special = self.roles.values().chain(&self.extra).any(|token| token.content() == content);
                self.added.entry(id).or_insert_with(|| AddedToken::from(content, special));
            }
            if self.extra.is_empty() {
                self.read_roles(&late, true, &folder.path_of("special_tokens_map.json"))?;
            }
        }
        // A token with an id keeps its matching rules in its role.
        for token in self.roles.values_mut() {
            if let Some(added) = self.added.values().find(|added| added.content == token.content()) {
                *token = Token::Full(added.clone());
            }
        }
        Ok(())
    }

    fn read_roles(&mut self, map: &Map<String, Value>, special: bool, path: &str) -> Result<()> {
        for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
            if let Some(&role) = ROLES.iter().find(|role| *role == key) {
                self.roles.insert(role, parse_token(value, special, path, key)?);
            } else if matches!(key.as_str(), "extra_special_tokens" | "additional_special_tokens") {
                for value in value.as_array().into_iter().flatten() {
                    self.extra.push(parse_token(value, true, path, key)?);
                }
            }
        }
        Ok(())
    }
}

/// The parts of `tokenizer.json` that matter.
#[derive(Deserialize)]
struct TokenizerJson {
    model: TokenizerJsonModel,
    #[serde(default)]
    added_tokens: Vec<TokenWithId>,
}

#[derive(Deserialize)]
struct TokenizerJsonModel {
    vocab: AHashMap<String, u32>,
    merges: Vec<Merge>,
}

/// A merge is a pair or, in older files, a line of two words.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

#[derive(Deserialize)]
struct TokenWithId {
    id: u32,
    #[serde(flatten)]
    token: TokenObject,
}

/// A vocabulary, its merges and the tokens added to it, by id.
type Vocabulary = (AHashMap<String, u32>, Vec<(String, String)>, BTreeMap<u32, AddedToken>);

impl TokenizerJson {
    fn into_parts(self, folder: &Folder) -> Result<Vocabulary> {
        let merges = self.model.merges.into_iter().enumerate().map(|(number, merge)| match merge {
            Merge::Pair(left, right) => Ok((left, right)),
            Merge::Line(line) => split_merge(&line).ok_or_else(|| {
                let error = Error::key("model.merges", format!("holds {line:?} as item {number}, which is not a pair"));
                error.with_path(&folder.path_of("tokenizer.json"))
            }),
        });
        let added = self.added_tokens.into_iter().map(|added| (added.id, added.token.into_added(false)));
        Ok((self.model.vocab, merges.collect::<Result<_>>()?, added.collect()))
    }
}

fn read_merges(folder: &Folder) -> Result<Vec<(String, String)>> {
    let text = folder.read_text("merges.txt")?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    let not_a_pair = |index| {
        Error::file(folder.path_of("merges.txt"), format!("has something else than a pair on line {}", index + 1))
    };
    lines.map(|(index, line)| split_merge(line).ok_or_else(|| not_a_pair(index))).collect()
}

fn split_merge(line: &str) -> Option<(String, String)> {
    let (left, right) = line.split_once(' ')?;
    (!right.contains(' ')).then(|| (left.to_string(), right.to_string()))
}

fn parse_token(value: &Value, special: bool, path: &str, key: &str) -> Result<Token> {
    match value {
        Value::String(content) => Ok(Token::Plain(content.clone())),
        object => {
            let token = TokenObject::deserialize(object);
            let token = token.map_err(|error| Error::key(key, format!("is not a token: {error}")).with_path(path))?;
            Ok(Token::Full(token.into_added(special)))
        }
    }
}

fn parse_decoder(decoder: &Value, path: &str) -> Result<BTreeMap<u32, AddedToken>> {
    let objects = BTreeMap::<u32, TokenObject>::deserialize(decoder).map_err(|error| {
        Error::key("added_tokens_decoder", format!("is not a map of ids to tokens: {error}")).with_path(path)
    })?;
    Ok(objects.into_iter().map(|(id, token)| (id, token.into_added(false))).collect())
}

fn max_length(config: &Map<String, Value>) -> Option<usize> {
    let value = config.get("model_max_length").or_else(|| config.get("max_len"))?;
    value.as_f64().filter(|length| (0.0..NO_LIMIT).contains(length)).map(|length| length as usize)
}

/// Reads a JSON file; `None` if there is no such file.
fn read_json<T: DeserializeOwned>(folder: &Folder, name: &str) -> Result<Option<T>> {
    folder.find_text(name)?.map(|text| parse_json(&text, &folder.path_of(name))).transpose()
}
