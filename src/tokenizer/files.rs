//! The files of a saved tokenizer, in each of the forms that transformers has written over the years.

use crate::bad_input;
use crate::error::{BadInput, OrBadInput, json_advice};
use crate::files::Folder;
use crate::json;
use ahash::AHashMap;
use anyhow::Result;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use tokenizers::AddedToken;

/// The tokens that have a role, in the order in which transformers adds them.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The roles that CLIP gives a default.
const CLIP_DEFAULTS: [(&str, &str); 4] = [
    ("unk_token", "<|endoftext|>"),
    ("bos_token", "<|startoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("pad_token", "<|endoftext|>"),
];

/// The longest text that a configuration can mean; transformers writes 10³⁰ for "no limit".
const NO_LIMIT: f64 = 1e6;

/// A special or added token as a configuration has it: a plain string, or an object with its matching rules.
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

    /// Two objects, or two strings, with the same content; transformers keeps a string beside an equal object.
    fn is_same(&self, other: &Self) -> bool {
        let same_form = matches!((self, other), (Self::Plain(_), Self::Plain(_)) | (Self::Full(_), Self::Full(_)));
        same_form && self.content() == other.content()
    }
}

/// An object form of a token. `special` is left out in older files.
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

/// What the files of a tokenizer say, brought to one form.
#[derive(Debug)]
pub struct TokenizerFiles {
    vocab: AHashMap<String, u32>,
    merges: Vec<(String, String)>,
    roles: BTreeMap<&'static str, Token>,
    /// Tokens with an id of their own in a configuration, by that id.
    added: BTreeMap<u32, AddedToken>,
    /// Special tokens without a role.
    extra: Vec<Token>,
    max_length: Option<usize>,
}

impl TokenizerFiles {
    /// Reads the files in `folder`.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there is no vocabulary, or a file is broken.
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

    /// The merges, the first one first.
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

    /// The token that fills up.
    pub fn pad_token(&self) -> &str {
        self.role("pad_token")
    }

    /// Most ids in an encoded text, if it is said.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// The tokens to add to the vocabulary's own, in the order in which transformers adds them: those with an id, then
    /// those with a role, then the rest.
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
                    bad_input!(
                        "{folder} holds no tokenizer: tokenizer.json, or vocab.json and merges.txt, must be there"
                    )
                })?;
                (vocab, read_merges(folder)?, BTreeMap::new())
            }
        };
        let roles = CLIP_DEFAULTS.map(|(role, content)| (role, Token::Plain(content.into())));
        Ok(Self { vocab, merges, roles: roles.into(), added, extra: Vec::new(), max_length: None })
    }

    /// Right is the side that CLIP pads and cuts off on, and the only one that a causal model can do without a mask.
    fn check_sides(&self, folder: &Folder, config: &Map<String, Value>) -> Result<()> {
        for key in ["padding_side", "truncation_side"] {
            if let Some(side) = config.get(key).and_then(Value::as_str).filter(|side| *side != "right") {
                return Err(bad_input!(
                    "{folder}/tokenizer_config.json: {key} {side:?} is not supported, only \"right\" is"
                ));
            }
        }
        Ok(())
    }

    fn read_config_tokens(&mut self, folder: &Folder, config: &Map<String, Value>) -> Result<()> {
        self.read_roles(config, false, &folder.path_of("tokenizer_config.json"))?;
        if let Some(decoder) = config.get("added_tokens_decoder") {
            // This is the newest form and replaces the older ones.
            self.added = parse_decoder(decoder, &folder.path_of("tokenizer_config.json"))?;
        } else {
            let mut map: Map<String, Value> = read_json(folder, "special_tokens_map.json")?.unwrap_or_default();
            // transformers hears of this key too late to make the tokens in added_tokens.json special by it, and not at
            // all if there are extra tokens by then.
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
        // A token with an id brings its own matching rules to its role.
        for token in self.roles.values_mut() {
            if let Some(added) = self.added.values().find(|added| added.content == token.content()) {
                *token = Token::Full(added.clone());
            }
        }
        Ok(())
    }

    fn read_roles(&mut self, map: &Map<String, Value>, special: bool, origin: &str) -> Result<()> {
        for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
            if let Some(&role) = ROLES.iter().find(|role| *role == key) {
                self.roles.insert(role, parse_token(value, special, &format!("{origin}: {key}"))?);
            } else if matches!(key.as_str(), "extra_special_tokens" | "additional_special_tokens") {
                for value in value.as_array().into_iter().flatten() {
                    self.extra.push(parse_token(value, true, &format!("{origin}: {key}"))?);
                }
            }
        }
        Ok(())
    }
}

/// The parts of `tokenizer.json` that count.
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
            Merge::Line(line) => split_merge(&line)
                .ok_or_else(|| bad_input!("{folder}/tokenizer.json: merge {number} is not a pair: {line:?}")),
        });
        let added = self.added_tokens.into_iter().map(|added| (added.id, added.token.into_added(false)));
        Ok((self.model.vocab, merges.collect::<Result<_>>()?, added.collect()))
    }
}

fn read_merges(folder: &Folder) -> Result<Vec<(String, String)>> {
    let path = folder.path_of("merges.txt");
    let text = folder.read_text("merges.txt");
    let text = text.or_bad_input(|| format!("cannot read {path}, which belongs to vocab.json beside it"))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    let merges = lines
        .map(|(index, line)| split_merge(line).ok_or_else(|| bad_input!("{path}:{}: a merge is two words", index + 1)));
    merges.collect()
}

fn split_merge(line: &str) -> Option<(String, String)> {
    let (left, right) = line.split_once(' ')?;
    (!right.contains(' ')).then(|| (left.to_string(), right.to_string()))
}

fn parse_token(value: &Value, special: bool, origin: &str) -> Result<Token> {
    match value {
        Value::String(content) => Ok(Token::Plain(content.clone())),
        object => {
            let token = TokenObject::deserialize(object).or_bad_input(|| format!("{origin} is not a token"))?;
            Ok(Token::Full(token.into_added(special)))
        }
    }
}

fn parse_decoder(decoder: &Value, origin: &str) -> Result<BTreeMap<u32, AddedToken>> {
    let broken = || format!("{origin}: added_tokens_decoder is not a map of ids to tokens");
    let objects = BTreeMap::<u32, TokenObject>::deserialize(decoder).or_bad_input(broken)?;
    Ok(objects.into_iter().map(|(id, token)| (id, token.into_added(false))).collect())
}

fn max_length(config: &Map<String, Value>) -> Option<usize> {
    let value = config.get("model_max_length").or_else(|| config.get("max_len"))?;
    value.as_f64().filter(|length| (0.0..NO_LIMIT).contains(length)).map(|length| length as usize)
}

/// Reads a JSON file; `None` if it is not there.
fn read_json<T: DeserializeOwned>(folder: &Folder, name: &str) -> Result<Option<T>> {
    let path = || folder.path_of(name);
    let Some(text) = folder.find_text(name).or_bad_input(|| format!("cannot read {}", path()))? else {
        return Ok(None);
    };
    json::from_str(&text).map(Some).map_err(|error| {
        let line = format!("{} is not what a CLIP tokenizer has there{}", path(), json_advice(&error));
        anyhow::Error::new(error).context(BadInput(line))
    })
}
