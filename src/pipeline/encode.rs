//! From prompts to the prior's text condition: texts are encoded, and conditions are taken as they are.

use super::conditions::{ConditionRow, Conditions};
use super::embeds::to_array;
use super::load::Pipeline;
use super::progress::{Progress, Truncation};
use super::request::Prompt;
use crate::nn::layers::attention::sequences;
use crate::nn::prior::TextCondition;
use crate::weights::checkpoint::textual_inversion::TextualInversion;
use crate::{Error, Result};
use ndarray::Array2;
use std::sync::Arc;
use std::time::Instant;
use tch::Tensor;

impl Pipeline {
    /// Tokenizes and encodes prompts that are texts, and takes the others as they are. `truncated` gets the index of
    /// each that is too long, counted from `first`, the prompt, the part that was left out, and the maximum number of
    /// tokens.
    pub(super) fn encode(
        &mut self,
        prompts: &[Prompt<&str>],
        first: usize,
        truncated: &mut dyn FnMut(usize, &str, &str, usize),
    ) -> Result<TextCondition> {
        let start = Instant::now();
        let (texts, places): (Vec<&str>, Vec<usize>) =
            prompts.iter().zip(first..).filter_map(|(prompt, place)| Some((prompt.text()?, place))).unzip();
        let max_tokens = self.text.tokenizer.max_length();
        let mut truncated = |index: usize, removed: &str| truncated(places[index], texts[index], removed, max_tokens);
        let encodings = self.text.tokenize(&texts, &mut truncated)?;
        self.timings.tokenize += start.elapsed();
        let encoded = if texts.is_empty() { None } else { Some(self.text.encode(&encodings)?) };
        let text = match encoded {
            Some(encoded) if texts.len() == prompts.len() => encoded,
            encoded => self.mix(prompts, encoded)?,
        };
        self.timings.text += start.elapsed();
        Ok(text)
    }

    /// The condition of prompts that are not all texts. `encoded` is that of the texts among them.
    fn mix(&self, prompts: &[Prompt<&str>], encoded: Option<TextCondition>) -> Result<TextCondition> {
        let placement = self.encoder_placement();
        let on_device = |values: Vec<f32>, shape: [usize; 2]| -> Result<Tensor> {
            let tensor = Tensor::f_from_slice(&values)?.f_reshape(shape.map(|length| length as i64))?;
            Ok(tensor.f_to_device(placement.device)?.f_to_kind(placement.precision.kind())?)
        };
        let of_texts: Vec<(i64, i64)> = encoded.iter().flat_map(|encoded| sequences(&encoded.lens)).collect();
        let mut of_texts = of_texts.into_iter().zip(0..);
        let (mut states, mut lens, mut embeds, mut positions) = (Vec::new(), Vec::new(), Vec::new(), Vec::<i64>::new());
        for prompt in prompts {
            let given = match (prompt, &self.conditions) {
                (Prompt::Condition(row), Some(conditions)) => conditions.row(*row),
                _ => None,
            };
            let len = match (prompt, &encoded, given) {
                (Prompt::Text(_), Some(encoded), _) => {
                    let next = of_texts.next();
                    let ((start, end), index) = next.ok_or_else(|| Error::Internal("a text was not encoded".into()))?;
                    states.push(encoded.states.f_narrow(0, start, end - start)?);
                    embeds.push(encoded.embeds.f_narrow(0, index, 1)?);
                    positions.extend(0..end - start);
                    end - start
                }
                (_, _, Some(ConditionRow { hidden_states, positions: of_row, text_embed })) => {
                    let (shape, dim) = (hidden_states.dim().into(), text_embed.len());
                    states.push(on_device(hidden_states.into_raw_vec_and_offset().0, shape)?);
                    embeds.push(on_device(text_embed.to_vec(), [1, dim])?);
                    positions.extend(of_row.iter().map(|position| *position as i64));
                    of_row.len() as i64
                }
                _ => return Err(Error::Internal(format!("there is no {prompt}"))),
            };
            lens.push(len);
        }
        // Without a token that is hidden before others they are counted through.
        let has_holes = sequences(&lens).zip(&lens).any(|((start, end), len)| {
            positions[start as usize..end as usize].last().is_some_and(|last| last + 1 != *len)
        });
        let positions = match has_holes {
            true => Some(Tensor::f_from_slice(&positions)?.f_to_device(placement.device)?),
            false => None,
        };
        let (states, embeds) = (Tensor::f_cat(&states, 0)?, Tensor::f_cat(&embeds, 0)?);
        Ok(TextCondition { states, lens, positions, embeds })
    }

    /// Sets the conditions that [`Prompt::Condition`] refers to.
    ///
    /// # Errors
    /// [`Error::Option`] if the model takes other sizes.
    pub fn set_conditions(&mut self, conditions: Arc<Conditions>) -> Result<()> {
        let [text, hidden] = [self.text.config.projection_dim, self.text.config.hidden_size];
        conditions.check_sizes(text, self.prior_config.num_embeddings(), hidden)?;
        // A cache may be of the conditions before.
        (self.conditions, self.negative) = (Some(conditions), None);
        Ok(())
    }

    /// The CLIP text embeddings of texts, `(texts, text_embedding_dim)`.
    ///
    /// # Errors
    /// As [`Pipeline::embed`].
    pub fn text_embeds(&mut self, texts: &[&str], progress: &mut dyn Progress) -> Result<Array2<f32>> {
        self.load_text_encoder(progress)?;
        let prompts: Vec<Prompt<&str>> = texts.iter().copied().map(Prompt::Text).collect();
        let mut truncated = |_, prompt: &str, removed: &str, max_tokens| {
            progress.truncated(&Truncation { prompt, removed, max_tokens, rows: Vec::new() });
        };
        to_array(&self.encode(&prompts, 0, &mut truncated)?.embeds)
    }

    /// The maximum number of tokens of a prompt, start and end included.
    #[cfg(feature = "serve")]
    pub fn max_tokens(&self) -> usize {
        self.text.tokenizer.max_length()
    }

    /// The number of tokens of a prompt, start and end included, and whether it has more, which are truncated.
    ///
    /// # Errors
    /// [`Error::Prompt`] if the text encoder does not know a token.
    #[cfg(feature = "serve")]
    pub fn count_tokens(&self, prompt: &str) -> Result<(usize, bool)> {
        let mut is_truncated = false;
        let encodings = self.text.tokenize(&[prompt], &mut |_, _| is_truncated = true)?;
        Ok((encodings.first().map_or(0, |encoding| encoding.len), is_truncated))
    }

    /// Adds a learned token to the tokenizer and the text encoder, as `load_textual_inversion` of diffusers does.
    ///
    /// # Errors
    /// [`Error::File`] if there is such a token, or its embeddings do not fit the text encoder.
    pub fn add_textual_inversion(&mut self, inversion: &TextualInversion) -> Result<()> {
        self.text.add(inversion)?;
        // What there is was encoded without it.
        (self.text.encoder, self.negative) = (None, None);
        Ok(())
    }
}
