//! CLIP's byte-level BPE, as transformers' `CLIPTokenizer` applies it.
//!
//! Source: transformers 5.23 `models/clip/tokenization_clip.py` and `tokenization_utils_tokenizers.py`. transformers
//! takes the vocabulary, the merges and the special tokens from any form of a saved tokenizer, and builds CLIP's own
//! normalizer and pre-tokenizer around them; so does this.

mod files;

use crate::error::{Error, Result};
use crate::files::Folder;
pub use files::FILES;
use files::TokenizerFiles;
use std::borrow::Cow;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as Backend};

/// Marks the end of a word in the vocabulary.
const END_OF_WORD: &str = "</w>";

/// CLIP's words (openai/CLIP `simple_tokenizer.py`).
const WORD_PATTERN: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The bytes of a long prompt that are tokenized first: many times the length of any sensible prompt.
const FIRST_BYTES: usize = 16 << 10;

/// The maximum length of all added tokens together, in bytes. The automaton that finds them takes some 80 times as much
/// memory; thousands of learned words take a tenth of this.
const MAX_ADDED_BYTES: usize = 1 << 20;

/// Turns prompts into token ids.
#[derive(Debug)]
pub struct Tokenizer {
    backend: Backend,
    max_length: usize,
    pad_id: i64,
    /// Whether no token spans a space, so that the tokens before one do not depend on what follows it.
    ends_at_spaces: bool,
    /// Bytes of all added tokens together.
    added_bytes: usize,
    /// Whether a learned token stands for several.
    has_learned: bool,
}

/// A prompt as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Start, text, end and padding: exactly [`Tokenizer::max_length`] ids.
    pub ids: Vec<i64>,
    /// The number of ids that are not padding; the attention mask is that many ones, then zeros.
    pub len: usize,
    /// The part of the prompt that was truncated, if any, as decoded from its tokens; far behind the cut, as it is
    /// written.
    pub removed: Option<String>,
}

impl Tokenizer {
    /// Reads a tokenizer's folder: `tokenizer.json`, or `vocab.json` and `merges.txt`, with `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json` if they exist.
    ///
    /// `default_max_length` is the maximum length if no file has a `model_max_length`.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Config`] if files are missing, damaged or those of another tokenizer.
    pub fn open(folder: impl Into<Folder>, default_max_length: usize) -> Result<Self> {
        let folder = folder.into();
        let files = TokenizerFiles::read(&folder)?;
        let added = files.added_tokens();
        let added_bytes: usize = added.iter().map(|token| token.content.len()).sum();
        let refused = |reason: String| Error::file(folder.to_string(), reason);
        if added_bytes > MAX_ADDED_BYTES {
            let lengths = format!("{added_bytes} bytes long, the maximum is {MAX_ADDED_BYTES}");
            return Err(refused(format!("has added tokens that are together {lengths}")));
        }
        let ends_at_spaces = !added.iter().any(|token| token.content.contains(char::is_whitespace));
        let invalid = |error| refused(format!("does not hold a valid CLIP tokenizer ({error})"));
        let mut backend = build_backend(&files).map_err(invalid)?;
        backend.add_tokens(added).map_err(invalid)?;
        let id = |content: &str| {
            let id = backend.token_to_id(content);
            id.ok_or_else(|| refused(format!("lacks token {content:?} in its vocabulary")))
        };
        let (bos, eos, pad) = (files.bos_token(), files.eos_token(), files.pad_token());
        let (bos_id, eos_id, pad_id) = (id(bos)?, id(eos)?, id(pad)?);
        let post_processor = RobertaProcessing::new((eos.into(), eos_id), (bos.into(), bos_id));
        backend.with_post_processor(Some(post_processor.trim_offsets(false).add_prefix_space(false)));
        let max_length = files.max_length().unwrap_or(default_max_length);
        if max_length < 2 {
            let error = Error::key("model_max_length", format!("is {max_length}, start and end of text need 2"));
            return Err(error.with_path(&folder.to_string()));
        }
        Ok(Self { backend, max_length, pad_id: i64::from(pad_id), ends_at_spaces, added_bytes, has_learned: false })
    }

    /// Adds a learned token of `vectors` embeddings: `token`, `token_1`, `token_2` … Returns their ids.
    ///
    /// From then on a prompt's `token` stands for all of them, as it does for diffusers' `maybe_convert_prompt`: not if
    /// it has capital letters, which is a warning.
    ///
    /// # Errors
    /// Why it cannot be added: the vocabulary has such a token, or there are too many.
    pub fn add_learned(&mut self, token: &str, vectors: usize) -> std::result::Result<Vec<i64>, String> {
        let tokens: Vec<String> =
            (0..vectors).map(|place| if place == 0 { token.to_string() } else { format!("{token}_{place}") }).collect();
        // A later token_1 would become a part of this one.
        let second = format!("{token}_1");
        let taken = tokens.iter().chain([&second]).find(|token| self.backend.token_to_id(token).is_some());
        if let Some(taken) = taken {
            return Err(format!("the tokenizer has a token {taken:?} already"));
        }
        self.added_bytes = tokens.iter().fold(self.added_bytes, |bytes, token| bytes.saturating_add(token.len()));
        if self.added_bytes > MAX_ADDED_BYTES {
            return Err(format!("added tokens of more than {MAX_ADDED_BYTES} bytes in all are not supported"));
        }
        let added = tokens.iter().map(|token| AddedToken::from(token.as_str(), false));
        self.backend.add_tokens(added.collect::<Vec<_>>()).map_err(|error| error.to_string())?;
        self.ends_at_spaces &= !token.contains(char::is_whitespace);
        self.has_learned = true;
        if vectors > 1 && self.expand(token).is_ok_and(|expanded| expanded == token) {
            log::warn!(
                "in prompts the learned token {token:?} stands for the first of its {vectors} vectors alone, as in \
                 diffusers: it has capital letters, and prompts are read in small ones; give it another name"
            );
        }
        let id = |token: &String| self.backend.token_to_id(token).map(i64::from);
        tokens.iter().map(id).collect::<Option<_>>().ok_or_else(|| "the tokenizer does not take this token".into())
    }

    /// The prompt with every added token of several vectors followed by the others of its vectors.
    ///
    /// Source: diffusers 0.42 `loaders/textual_inversion.py`, `maybe_convert_prompt`.
    fn expand<'a>(&self, prompt: &'a str) -> Result<Cow<'a, str>> {
        let mut expanded = Cow::Borrowed(prompt);
        if !self.has_learned {
            return Ok(expanded);
        }
        let encoding = self.backend.encode(prompt, false).map_err(internal)?;
        let added = self.backend.get_added_tokens_decoder();
        let is_added = |content: &str| added.values().any(|token| token.content == content);
        let mut seen = Vec::new();
        // As they stand in the normalized prompt: a token with capital letters is not among them, in diffusers neither.
        for token in encoding.get_tokens() {
            if seen.contains(&token) || !is_added(token) {
                continue;
            }
            seen.push(token);
            let others = (1..).map(|place| format!(" {token}_{place}")).take_while(|other| is_added(&other[1..]));
            let others: String = others.collect();
            if !others.is_empty() {
                expanded = expanded.replace(token.as_str(), &format!("{token}{others}")).into();
            }
        }
        Ok(expanded)
    }

    /// The same with another token as padding.
    pub fn padded_with(self, pad_id: i64) -> Self {
        Self { pad_id, ..self }
    }

    /// The number of ids in every [`Encoding`].
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Encodes a prompt, truncated at [`Tokenizer::max_length`] and padded to it.
    ///
    /// # Errors
    /// [`Error::Internal`] if the backend fails, which no known text makes it do.
    pub fn encode(&self, prompt: &str) -> Result<Encoding> {
        let prompt = &*self.expand(prompt)?;
        // Only the start of a very long prompt is tokenized. Words, added tokens, and what normalization composes or
        // reorders all end at a space, so the tokens before one do not depend on what follows it.
        let mut min = FIRST_BYTES;
        while let Some(end) = self.space_after(prompt, min) {
            let mut encoding = self.encode_whole(&prompt[..end])?;
            if let Some(removed) = &mut encoding.removed {
                removed.push_str(&prompt[end..]);
                return Ok(encoding);
            }
            min = min.saturating_mul(8);
        }
        self.encode_whole(prompt)
    }

    /// The first space after `min` bytes, if a prompt can be cut at spaces.
    fn space_after(&self, prompt: &str, min: usize) -> Option<usize> {
        let rest = prompt.as_bytes().get(min..).filter(|_| self.ends_at_spaces)?;
        Some(min + memchr::memchr3(b' ', b'\n', b'\t', rest)?)
    }

    fn encode_whole(&self, prompt: &str) -> Result<Encoding> {
        let encoding = self.backend.encode_fast(prompt, true).map_err(internal)?;
        let all: &[u32] = encoding.get_ids();
        let mut ids: Vec<i64> = all.iter().take(self.max_length).map(|&id| i64::from(id)).collect();
        let len = ids.len();
        let mut removed = None;
        if let ([.., last], true) = (all, all.len() > self.max_length) {
            // A truncated prompt keeps its end of text.
            ids[self.max_length - 1] = i64::from(*last);
            removed = Some(self.decode(&all[self.max_length - 1..all.len() - 1])?);
        }
        ids.resize(self.max_length, self.pad_id);
        Ok(Encoding { ids, len, removed })
    }

    /// Ids as text.
    fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.backend.decode(ids, false).map_err(internal)?;
        Ok(text.replace(END_OF_WORD, " ").trim().to_string())
    }
}

fn internal(error: tokenizers::Error) -> Error {
    Error::Internal(format!("the tokenizer failed: {error}"))
}

fn build_backend(files: &TokenizerFiles) -> tokenizers::Result<Backend> {
    let bpe = BPE::builder()
        .vocab_and_merges(files.vocab().clone(), files.merges().to_vec())
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(END_OF_WORD.into())
        .unk_token(files.unk_token().into())
        .fuse_unk(false)
        .build()?;
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    let pattern = SplitPattern::Regex(WORD_PATTERN.into());
    let words = Split::new(pattern, SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::default().add_prefix_space(false);
    let mut backend = Backend::new(bpe);
    let normalizer = Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()]);
    backend.with_normalizer(Some(normalizer))?;
    backend.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
    backend.with_decoder(Some(ByteLevel::default()));
    Ok(backend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;
    use std::sync::LazyLock;

    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip_tokenizer");
        Tokenizer::open(&folder, 77).unwrap()
    });

    #[test]
    fn a_very_long_prompt_has_the_tokens_of_its_start() {
        let tokenizer = &*TOKENIZER;
        // The last has its words beyond the first bytes.
        for text in
            ["two cats ".repeat(4000), "x\n".repeat(20_000), format!("{}{}", " ".repeat(40_000), "a b ".repeat(40_000))]
        {
            let (cut, whole) = (tokenizer.encode(&text).unwrap(), tokenizer.encode_whole(&text).unwrap());
            assert_eq!((&cut.ids, cut.len), (&whole.ids, whole.len));
            let start = |encoding: &Encoding| encoding.removed.as_ref().unwrap()[..200].to_string();
            assert_eq!(start(&cut), start(&whole));
        }
        let few = format!("{}a b", " ".repeat(400_000));
        assert_eq!(tokenizer.encode(&few).unwrap(), tokenizer.encode_whole(&few).unwrap());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn tokens_before_a_space_do_not_depend_on_what_follows_it(
            parts in proptest::collection::vec(
                "[a-zA-Z0-9 \n\t.,'!ΣσςßİéÅ\u{300}\u{327}\u{1100}\u{1161}\u{2003}]{0,12}|<\\|endoftext\\|>|'s|<\\|",
                1..30,
            ),
            behind in "[ \n\t][a-z\u{300}\u{327}'sΣ|>]{0,12}",
        ) {
            let before = parts.concat();
            let ids = |text: &str| TOKENIZER.backend.encode_fast(text, false).unwrap().get_ids().to_vec();
            prop_assert!(ids(&(before.clone() + &behind)).starts_with(&ids(&before)), "{before:?} {behind:?}");
        }
    }
}
