//! From prompts to what the prior is conditioned on.

use crate::bad_input;
use crate::nn::prior::TextCondition;
use crate::nn::text_encoder::{TextEncoder, TextEncoderConfig};
use crate::tokenizer::{Encoding, Tokenizer};
use anyhow::{Context, Result};
use tch::Tensor;

/// The tokenizer, and the text encoder while it is loaded.
#[derive(Debug)]
pub(super) struct TextStage {
    pub(super) tokenizer: Tokenizer,
    pub(super) config: TextEncoderConfig,
    pub(super) encoder: Option<TextEncoder>,
}

impl TextStage {
    /// Tokenizes prompts. `cut_off` hears the place of each that is too long, and what to say of it.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if a token is unknown to the encoder.
    pub(super) fn tokenize(&self, prompts: &[&str], cut_off: &mut dyn FnMut(usize, &str)) -> Result<Vec<Encoding>> {
        let tokenize_one = |(place, prompt)| self.tokenize_one(prompt, |text| cut_off(place, text));
        prompts.iter().copied().enumerate().map(tokenize_one).collect()
    }

    /// Encodes tokenized prompts.
    ///
    /// # Errors
    /// If the encoder is not loaded, or memory runs out.
    pub(super) fn encode(&self, encodings: &[Encoding]) -> Result<TextCondition> {
        let encoder = self.encoder.as_ref().context("the text encoder is not loaded")?;
        let run: Vec<&[i64]> = encodings
            .iter()
            .map(|encoding| &encoding.ids[..encoder.tokens_to_run(&encoding.ids, encoding.len)])
            .collect();
        let output = encoder.forward(&run)?;
        let lens: Vec<i64> = encodings.iter().map(|encoding| encoding.len as i64).collect();
        let states = without_padding(output.last_hidden_state, &run, &lens)?;
        Ok(TextCondition { states, lens, embeds: output.text_embeds })
    }

    /// Frees the text encoder.
    pub(super) fn release(&mut self) {
        self.encoder = None;
    }

    fn tokenize_one(&self, prompt: &str, cut_off: impl FnOnce(&str)) -> Result<Encoding> {
        let encoding = self.tokenizer.encode(prompt)?;
        if let Some(removed) = &encoding.removed {
            let (prompt, removed, most) = (shorten(prompt), shorten(removed), self.tokenizer.max_length());
            cut_off(&format!("prompt {prompt:?} is longer than {most} tokens; this part was cut off: {removed:?}"));
        }
        let vocab_size = self.config.vocab_size;
        if let Some(id) = encoding.ids.iter().find(|&&id| id >= vocab_size) {
            let prompt = shorten(prompt);
            return Err(bad_input!("prompt {prompt:?} has token {id}, and the text encoder knows {vocab_size} tokens"));
        }
        Ok(encoding)
    }
}

/// Takes out the states of padding that had to run because it is what the encoder pools, which is rare.
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

/// A text short enough for a message.
pub(super) fn shorten(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}… ({} more characters)", &text[..end], text[end..].chars().count()),
        None => text.to_string(),
    }
}
