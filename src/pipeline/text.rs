//! The tokenizer and the text encoder.

use super::progress::shorten;
use crate::error::Hint;
use crate::nn::prior::TextCondition;
use crate::nn::text_encoder::{TextEncoder, TextEncoderConfig};
use crate::tokenizer::{Encoding, Tokenizer};
use crate::weights::checkpoint::textual_inversion::TextualInversion;
use crate::{Error, Result};
use tch::Tensor;

/// The tokenizer, and the text encoder while it is loaded.
#[derive(Debug)]
pub(super) struct TextStage {
    pub(super) tokenizer: Tokenizer,
    pub(super) config: TextEncoderConfig,
    pub(super) encoder: Option<TextEncoder>,
    /// Embeddings of learned tokens, and the id of each.
    pub(super) learned: Vec<(i64, Vec<f32>)>,
    /// The hash of each file of these, and its token.
    pub(super) inversions: Vec<String>,
}

impl TextStage {
    /// Adds a learned token.
    ///
    /// # Errors
    /// [`Error::File`] if there is such a token, or its embeddings do not fit the text encoder.
    pub(super) fn add(&mut self, inversion: &TextualInversion) -> Result<()> {
        let TextualInversion { origin, token, vectors, .. } = inversion;
        let (width, wanted) = (vectors.ncols() as i64, self.config.hidden_size);
        let refused = |reason: String| Error::file(origin, reason);
        if width != wanted {
            let reason = format!("has embeddings of {width} numbers, and this model's text encoder takes {wanted}");
            return Err(refused(reason));
        }
        let taken = |why| refused(format!("cannot add its token {token:?}: {why}")).with_hint(Hint::NameToken);
        let ids = self.tokenizer.add_learned(token, vectors.nrows()).map_err(taken)?;
        for (id, vector) in ids.into_iter().zip(vectors.outer_iter()) {
            let known = self.vocab_size();
            if id > known {
                let reason = format!("has token {id}, and the text encoder knows no token from {known} to there");
                return Err(refused(reason));
            }
            self.learned.push((id, vector.to_vec()));
        }
        self.inversions.push(format!("{} {token}", inversion.hash));
        Ok(())
    }

    /// Number of tokens that have an embedding.
    fn vocab_size(&self) -> i64 {
        self.learned.iter().fold(self.config.vocab_size, |size, (id, _)| size.max(id + 1))
    }

    /// Tokenizes prompts. `truncated` gets the index of each that is too long, and the part that was left out.
    ///
    /// # Errors
    /// [`Error::Prompt`] if the encoder does not know a token.
    pub(super) fn tokenize(&self, prompts: &[&str], truncated: &mut dyn FnMut(usize, &str)) -> Result<Vec<Encoding>> {
        let vocab_size = self.vocab_size();
        let mut encodings = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.iter().enumerate() {
            let encoding = self.tokenizer.encode(prompt)?;
            if let Some(removed) = &encoding.removed {
                truncated(index, removed);
            }
            if let Some(id) = encoding.ids.iter().find(|&&id| id >= vocab_size) {
                let reason = format!("has token {id}, and the text encoder knows {vocab_size} tokens");
                return Err(Error::Prompt { prompt: shorten(prompt), reason });
            }
            encodings.push(encoding);
        }
        Ok(encodings)
    }

    /// Encodes tokenized prompts.
    ///
    /// # Errors
    /// If the encoder is not loaded, or memory runs out.
    pub(super) fn encode(&self, encodings: &[Encoding]) -> Result<TextCondition> {
        let encoder = self.encoder.as_ref();
        let encoder = encoder.ok_or_else(|| Error::Internal("the text encoder is not loaded".into()))?;
        let run: Vec<&[i64]> = encodings
            .iter()
            .map(|encoding| &encoding.ids[..encoder.tokens_to_run(&encoding.ids, encoding.len)])
            .collect();
        let output = encoder.forward(&run)?;
        let lens: Vec<i64> = encodings.iter().map(|encoding| encoding.len as i64).collect();
        let states = without_padding(output.last_hidden_state, &run, &lens)?;
        Ok(TextCondition { states, lens, positions: None, embeds: output.text_embeds })
    }
}

/// Removes the states of padding, which runs only in the rare case that the encoder pools one of its tokens.
fn without_padding(states: Tensor, run: &[&[i64]], lens: &[i64]) -> Result<Tensor> {
    if run.iter().zip(lens).all(|(ids, &len)| ids.len() as i64 == len) {
        return Ok(states);
    }
    let mut start = 0;
    let mut parts = Vec::with_capacity(lens.len());
    for (ids, &len) in run.iter().zip(lens) {
        parts.push(states.f_narrow(0, start, len)?);
        start += ids.len() as i64;
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}
