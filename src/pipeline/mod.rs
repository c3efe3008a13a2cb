//! The whole story on a page: prompts to image embeddings.
//!
//! ```text
//! prompts ──► tokenizer ──► text encoder ─┬─► prior.prefill ──► sampler ──► x · std + mean ─┬─► embeddings
//!                                         ├─► one_step: prior.predict ──────────────────────┤
//!                                         ├─► autoregressive: prior.step, token by token ───┘
//!                                         └─► shap_e: prior.forward, step by step ─────────────► latents
//! ```
//!
//! [`Pipeline::embed`] is that story. Beside it, [`layout`] finds the components in a folder as diffusers saves it,
//! [`component`] those that come from elsewhere, `load` opens and loads them, `encode` makes text conditions of prompts,
//! [`memory`](Demand) plans batches, `pictures` encodes pictures, `from_image` starts from their embeddings,
//! [`mixing`](Mix) runs what is to be mixed, [`draws`](Draws) chooses the best, `identity` tells models apart, and
//! [`builtin`] is the model that ships with the library.
//!
//! Source: diffusers 0.42 `pipelines/kandinsky2_2/pipeline_kandinsky2_2_prior.py`.

mod autoregressive;
pub mod builtin;
pub mod component;
mod conditions;
#[cfg(feature = "cli")]
pub mod describe;
mod drawing;
mod draws;
mod embeds;
#[cfg(feature = "cli")]
mod emoji_index;
mod encode;
mod fit;
mod from_image;
#[cfg(feature = "cli")]
mod identity;
pub mod layout;
mod load;
mod memory;
mod mixing;
mod negative;
mod noise_plan;
mod one_step;
mod parameters;
#[cfg(feature = "images")]
mod picture_files;
mod pictures;
mod progress;
mod request;
mod shap_e;
mod text;
mod zero_embed;

pub use conditions::Conditions;
pub use drawing::BuiltinDecoder;
pub use draws::Draws;
pub use embeds::Embeds;
#[cfg(feature = "cli")]
pub use emoji_index::EmojiIndex;
pub use layout::CONFIG;
pub use load::Pipeline;
pub use memory::Demand;
pub use mixing::Mix;
pub use noise_plan::{NEGATIVE_SEED_OFFSET, NoisePlan, Purpose};
pub use progress::{Progress, Truncation};
pub use request::{Prompt, Row, Settings, Timings};

use crate::diffusion::guidance::Guidance;
use crate::diffusion::noise::{BatchNoise, NoiseSource};
use crate::diffusion::sampler::{CacheLayout, Condition, Sampler, chunk_len};
use crate::error::Component;
use crate::nn::prior::{Network, PriorKind, TextCondition};
use crate::{Error, Result};
use autoregressive::draw;
use embeds::{first_non_finite, to_array};
use from_image::{images, start_from};
use ndarray::{Array2, Axis};
use negative::NegativeCache;
use one_step::predict;
use progress::check_cancelled;
use shap_e::denoise;
use std::collections::HashMap;
use std::time::Instant;
use tch::Tensor;

impl Pipeline {
    /// The image embeddings of a batch of rows, and the text embeddings that they were made from.
    ///
    /// Of no rows, empty arrays; no network is loaded for them. Without texts to encode, the text encoder is not loaded.
    ///
    /// # Errors
    /// [`Error::Option`] if the model cannot do so many steps, an error if the weights of a network are damaged or
    /// memory runs out, [`Error::Cancelled`], and [`Error::NotFinite`], which names the weights that are to blame, if
    /// an embedding is not finite.
    pub fn embed(&mut self, rows: &[Row], settings: &Settings, progress: &mut dyn Progress) -> Result<Embeds> {
        let mut scheduler = self.scheduler.as_ref().map(|config| config.scheduler(settings.steps)).transpose()?;
        if rows.is_empty() {
            let [image, text] = [self.embedding_dim(), self.text_embedding_dim()].map(|dim| Array2::zeros((0, dim)));
            return Ok(Embeds { image, text });
        }
        let guidance = Guidance::new(settings.guidance_scale);
        let timesteps = scheduler.as_ref().map_or_else(Vec::new, |scheduler| settings.timesteps(&**scheduler).to_vec());
        let (prompts, prompt_of_row) = distinct(rows.iter().map(|row| row.prompt));
        let (negative_prompts, negative_of_row) = distinct(rows.iter().map(|row| row.negative_prompt));
        let is_cached = self.negative.as_ref().is_some_and(|cache| cache.is_of(&negative_prompts, &timesteps));
        let needs_negative = self.kind() == PriorKind::Diffusion && guidance.is_on() && !is_cached;
        // In the prompts' passes, or in passes of their own: see `keep_text_encoder`.
        let (beside, apart): (&[Prompt<&str>], &[Prompt<&str>]) = match self.kind() {
            PriorKind::Diffusion if needs_negative && self.keeps_text_encoder => (&[], &negative_prompts),
            PriorKind::Diffusion if needs_negative => (&negative_prompts, &[]),
            // Never kept from batch to batch.
            PriorKind::Autoregressive if guidance.is_on() => (&negative_prompts, &[]),
            _ => (&[], &[]),
        };

        // 1. Text: tokenize and encode.
        check_cancelled(progress)?;
        if [&prompts, beside, apart].into_iter().flatten().any(|prompt| prompt.text().is_some()) {
            self.load_text_encoder(progress)?;
            check_cancelled(progress)?;
        }
        let mut truncated = |index: usize, prompt: &str, removed: &str, max_tokens: usize| {
            let rows = prompt_of_row.iter().enumerate().filter(|(_, prompt)| **prompt == index);
            let rows = rows.map(|(row, _)| row).collect();
            progress.truncated(&Truncation { prompt, removed, max_tokens, rows });
        };
        let text = self.encode(&[&prompts, beside].concat(), 0, &mut truncated)?;
        let text_apart = match apart {
            [] => None,
            apart => Some(self.encode(apart, prompts.len(), &mut truncated)?),
        };
        if !self.keeps_text_encoder {
            self.text.encoder = None;
        }
        if settings.keeps_images() {
            return self.finish(&images(rows, &text.embeds)?, &text, &prompt_of_row, rows, Instant::now());
        }

        check_cancelled(progress)?;
        self.load_prior(progress)?;
        check_cancelled(progress)?;
        let start = Instant::now();
        let prior = match self.prior.as_ref().ok_or_else(|| Error::Internal("the prior is not loaded".into()))? {
            Network::Transformer(prior) => prior,
            Network::Autoregressive(prior) => {
                let negative_of_row: Vec<usize> = negative_of_row.iter().map(|place| prompts.len() + place).collect();
                let embeds = draw(prior, settings, &text, &prompt_of_row, &negative_of_row, rows, progress)?;
                return self.finish(&embeds, &text, &prompt_of_row, rows, start);
            }
        };
        let Some(scheduler) = scheduler.as_deref_mut() else {
            let embeds = predict(prior, &text, &prompt_of_row, rows, progress)?;
            return self.finish(&embeds, &text, &prompt_of_row, rows, start);
        };
        if self.kind() == PriorKind::Sequence {
            let latents = denoise(prior, scheduler, guidance, &text.embeds, &prompt_of_row, rows, progress)?;
            return self.finish(&latents, &text, &prompt_of_row, rows, start);
        }

        // 2. Prefill: what does not change from step to step is computed once a prompt.
        let first_timesteps = |prompts: usize| &timesteps[..chunk_len(prompts).min(timesteps.len())];
        let for_each = |prompts: usize| std::iter::repeat_n(first_timesteps(prompts), prompts);
        let together: Vec<&[f64]> = for_each(prompts.len()).chain(for_each(beside.len())).collect();
        let (prefix, timestep_cache) = prior.prefill(&text, &together)?;
        if needs_negative {
            let (prefix, timestep_cache) = match &text_apart {
                Some(text) => prior.prefill(text, &for_each(apart.len()).collect::<Vec<_>>())?,
                None => (prefix.tail(prompts.len())?, timestep_cache.tail(prompts.len())?),
            };
            let prompts = negative_prompts.iter().map(|prompt| prompt.into_owned()).collect();
            self.negative = Some(NegativeCache { prompts, timesteps: timesteps.clone(), prefix, timestep_cache });
        }

        // 3. Denoise, each row from its own noise.
        let conditional = Condition { prefix: &prefix, prompts: &prompt_of_row, timesteps: &timestep_cache };
        let unconditional = self.negative.as_ref().map(|negative| negative.condition(&negative_of_row));
        let noise: Vec<NoiseSource> = rows.iter().map(|row| row.noise).collect();
        let noisy_steps = scheduler.noisy_steps().saturating_sub(settings.first_step());
        let mut noise = BatchNoise::draw(&noise, prior.config().embedding_dim, noisy_steps, prior.device())?;
        if settings.strength.is_some() {
            start_from(&images(rows, &noise.latents)?, settings.first_step(), scheduler, &mut noise)?;
        }
        let mut done = 0;
        let mut after_step = || {
            done += 1;
            progress.step(done, timesteps.len());
            check_cancelled(progress)
        };
        let embeds = Sampler { prior, guidance, layout: CacheLayout::of(prior.device()) }.sample(
            scheduler,
            conditional,
            unconditional,
            &noise,
            &mut after_step,
        )?;
        if !self.keeps_text_encoder {
            self.negative = None;
        }
        self.finish(&embeds, &text, &prompt_of_row, rows, start)
    }

    /// The embeddings as arrays, once they are checked, beside the text embeddings of `prompt_of_row`, an index into
    /// `text` a row. The prior has worked since `start`.
    fn finish(
        &mut self,
        image: &Tensor,
        text: &TextCondition,
        prompt_of_row: &[usize],
        rows: &[Row],
        start: Instant,
    ) -> Result<Embeds> {
        let embeds = Embeds { image: to_array(image)?, text: to_array(&text.embeds)?.select(Axis(0), prompt_of_row) };
        self.timings.prior += start.elapsed();
        match first_non_finite(&embeds.image) {
            Some(row) => {
                let what = format!("the embedding of {}", rows[row].prompt);
                Err(self.explain_non_finite(&what, &[Component::TextEncoder, Component::Prior]))
            }
            None => Ok(embeds),
        }
    }
}

/// The distinct prompts in the order of their first occurrence, and the index of each prompt among them.
fn distinct<'a>(prompts: impl Iterator<Item = Prompt<&'a str>>) -> (Vec<Prompt<&'a str>>, Vec<usize>) {
    let mut indices = HashMap::new();
    let mut distinct = Vec::new();
    let of_each = prompts.map(|prompt| {
        *indices.entry(prompt).or_insert_with(|| {
            distinct.push(prompt);
            distinct.len() - 1
        })
    });
    let of_each = of_each.collect();
    (distinct, of_each)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::checkpoint::Placement;
    use crate::weights::precision::Precision;
    use std::path::Path;
    use tch::Device;

    #[test]
    fn no_rows_have_no_embeddings() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines/kandinsky22");
        let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
        let mut pipeline = Pipeline::open(&model, placement).unwrap();
        for guidance_scale in [1.0, 4.0] {
            for keeps_text_encoder in [false, true] {
                pipeline.keep_text_encoder(keeps_text_encoder);
                let settings = Settings::new(3, guidance_scale);
                let embeds = pipeline.embed(&[], &settings, &mut ()).unwrap();
                assert_eq!(embeds.image.dim(), (0, pipeline.embedding_dim()));
            }
        }
        assert!(pipeline.text.encoder.is_none() && pipeline.prior.is_none(), "a network was loaded");
        let too_many = Settings::new(1001, 4.0);
        assert!(matches!(pipeline.embed(&[], &too_many, &mut ()), Err(Error::Option { option: "steps", .. })));
    }
}
