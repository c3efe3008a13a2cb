//! What mixes of embeddings start from: the prior's own of some prompts, a negative one, and embeddings of texts.
//!
//! Source: diffusers 0.42 `pipelines/kandinsky2_2/pipeline_kandinsky2_2_prior.py`, `interpolate`, which runs the prior once
//! for each prompt and once more for the negative embedding.

use super::load::Pipeline;
use super::memory::Demand;
use super::progress::Progress;
use super::request::{Prompt, Row, Settings};
use crate::diffusion::noise::{CallRow, NoiseSource};
use crate::{Error, Result};
use ndarray::{Array1, Array2};

/// The prompts of a mix, and its negative ones.
#[derive(Debug, Clone, Copy)]
pub struct Mix<'a> {
    /// The prompts, each with its place among all that is mixed.
    pub prompts: &'a [(usize, &'a str)],
    /// How much is mixed, things that are no prompts included.
    pub items: usize,
    /// `negative_prior_prompt` of diffusers: what guidance steers away from, and perhaps what the negative embedding is of.
    pub negative_prompt: Option<&'a str>,
    /// `negative_prompt` of diffusers: what the negative embedding is of, unless it is empty.
    pub decoder_negative_prompt: Option<&'a str>,
    /// The seed of the first item's noise. That of another has its place added, and the negative embedding's `items`.
    pub seed: u64,
    /// Whether one generator draws for all instead, call by call.
    pub is_call: bool,
    /// Rows computed together, in place of as many as fit into free memory.
    pub batch_size: Option<usize>,
}

impl<'a> Mix<'a> {
    /// The text that the negative embedding is of; `None` if it is of a black image.
    pub fn negative_text(&self) -> Option<&'a str> {
        self.decoder_negative_prompt.or(self.negative_prompt)
    }

    /// The noise of the `call`-th call, for the item at `place`.
    ///
    /// A call with a negative prompt has a second row, which is the negative embedding's unless the decoder has a prompt.
    fn noise(&self, call: usize, place: usize) -> NoiseSource<'static> {
        let is_negative = place == self.items && self.decoder_negative_prompt.is_none();
        let rows = if self.negative_prompt.is_some() { 2 } else { 1 };
        let call = CallRow { row: usize::from(is_negative), rows, calls_before: call };
        match self.is_call {
            true => NoiseSource { seed: self.seed, given: None, call: Some(call) },
            false => self.seed.wrapping_add(place as u64).into(),
        }
    }

    /// The prior's rows for all prompts, and then for the negative embedding.
    fn rows(&self, wants_negative: bool) -> Vec<Row<'a>> {
        let negative_prompt = Prompt::Text(self.negative_prompt.unwrap_or_default());
        let negative = self.negative_text().filter(|_| wants_negative).map(|text| (self.items, text));
        let texts = self.prompts.iter().copied().chain(negative).enumerate();
        let row = |(call, (place, text))| Row {
            prompt: Prompt::Text(text),
            negative_prompt,
            noise: self.noise(call, place),
            image: None,
        };
        texts.map(row).collect()
    }
}

impl Pipeline {
    /// The image embedding of each prompt of a mix, `(prompts, dim)`, and the negative embedding, if it is wanted.
    ///
    /// # Errors
    /// As [`Pipeline::embed`] and [`Pipeline::zero_embed`], and [`Error::OutOfMemory`].
    pub fn embed_mix(
        &mut self,
        mix: &Mix,
        settings: &Settings,
        wants_negative: bool,
        progress: &mut dyn Progress,
    ) -> Result<(Array2<f32>, Option<Array1<f32>>)> {
        let zero = match wants_negative && mix.negative_text().is_none() {
            true => self.zero_embed()?,
            false => None,
        };
        let rows = mix.rows(wants_negative);
        let demand = Demand { rows: rows.len(), is_uniform: true, zero_embed: false, free_memory: None };
        let batch_size = self.plan_batch(demand, mix.batch_size.map(|size| size.max(1)))?;
        self.keep_text_encoder(rows.len() > batch_size);
        let mut embeds = Array2::zeros((0, self.embedding_dim()));
        for batch in rows.chunks(batch_size) {
            let of_batch = self.embed(batch, settings, progress)?.image;
            embeds.append(ndarray::Axis(0), of_batch.view()).map_err(|error| Error::Internal(error.to_string()))?;
        }
        let negative = (rows.len() > mix.prompts.len()).then(|| embeds.row(mix.prompts.len()).to_owned());
        embeds.slice_collapse(ndarray::s![..mix.prompts.len(), ..]);
        Ok((embeds, zero.or(negative)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(mix: Mix) -> Vec<NoiseSource> {
        mix.rows(true).into_iter().map(|row| row.noise).collect()
    }

    #[test]
    fn every_item_has_its_own_noise_whatever_the_others_are() {
        let mix = Mix {
            prompts: &[(0, "a"), (2, "b")],
            items: 3,
            negative_prompt: None,
            decoder_negative_prompt: Some("ugly"),
            seed: 7,
            is_call: false,
            batch_size: None,
        };
        assert_eq!(noise(mix), [7, 9, 10].map(NoiseSource::from));
        assert_eq!(mix.rows(false).len(), 2);
        let of_call = |row, rows, calls_before| NoiseSource {
            seed: 7,
            given: None,
            call: Some(CallRow { row, rows, calls_before }),
        };
        let call = Mix { is_call: true, ..mix };
        assert_eq!(noise(call), [of_call(0, 1, 0), of_call(0, 1, 1), of_call(0, 1, 2)]);
        let both = Mix { negative_prompt: Some("rain"), ..call };
        assert_eq!(noise(both), [of_call(0, 2, 0), of_call(0, 2, 1), of_call(0, 2, 2)]);
        let negative = Mix { decoder_negative_prompt: None, ..both };
        assert_eq!(noise(negative), [of_call(0, 2, 0), of_call(0, 2, 1), of_call(1, 2, 2)]);
    }
}
