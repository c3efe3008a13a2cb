//! From prompts to the prior's text condition.

use super::progress::shorten;
use crate::nn::prior::TextCondition;
use crate::nn::text_encoder::{TextEncoder, TextEncoderConfig};
use crate::tokenizer::{Encoding, Tokenizer};
use crate::{Error, Result};
use tch::Tensor;

/// The tokenizer, and the text encoder while it is loaded.
#[derive(Debug)]
pub(super) struct TextStage {
    pub(super) tokenizer: Tokenizer,
    pub(super) config: TextEncoderConfig,
    pub(super) encoder: Option<TextEncoder>,
}

impl TextStage {
    /// Tokenizes prompts. `truncated` gets the index of each that is too long, and the part that was left out.
    ///
    /// # Errors
    /// [`Error::Prompt`] if the encoder does not know a token.
    pub(super) fn tokenize(&self, prompts: &[&str], truncated: &mut dyn FnMut(usize, &str)) -> Result<Vec<Encoding>> {
        let vocab_size = self.config.vocab_size;
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
        Ok(TextCondition { states, lens, embeds: output.text_embeds })
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
