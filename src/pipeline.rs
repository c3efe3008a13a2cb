//! The whole story on a page: prompts to embeddings.
//!
//! A prompt is tokenized and encoded, its embedding is denoised from its own noise and brought back to CLIP's scale.
//! Source: diffusers 0.42 `pipelines/kandinsky2_2/pipeline_kandinsky2_2_prior.py`, whose numbers these are.

mod load;

pub use load::LoadOptions;

use crate::bad_input;
use crate::diffusion::guidance::Guidance;
use crate::diffusion::noise::BatchNoise;
use crate::diffusion::sampler::{Conditioning, sample};
use crate::diffusion::scheduler::Scheduler;
use crate::diffusion::unclip::{UnclipConfig, UnclipScheduler};
use crate::hub::layout::Layout;
use crate::model::prior::PriorTransformer;
use crate::model::text_encoder::TextEncoder;
use crate::tokenizer::Tokenizer;
use anyhow::{Result, anyhow};
use ndarray::Array2;
use tch::{Kind, Tensor};

/// One row of the output. Nothing else than this and [`Settings`] decides its embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// What the embedding is to show.
    pub prompt: &'a str,
    /// What guidance leads away from; empty unless the user gave a negative prompt.
    pub negative_prompt: &'a str,
    /// Seeds the row's own noise.
    pub seed: u64,
}

/// What all rows of a run share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Number of denoising steps.
    pub steps: usize,
    /// Classifier-free guidance; off at 1 and below.
    pub guidance_scale: f64,
}

/// A loaded model.
#[derive(Debug)]
pub struct Pipeline {
    tokenizer: Tokenizer,
    text_encoder: TextEncoder,
    prior: PriorTransformer,
    scheduler: UnclipConfig,
    layout: Layout,
    options: LoadOptions,
}

impl Pipeline {
    /// The image embeddings of a batch of rows, `(rows, embedding_dim)`. `after_step` is called once a denoising step.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the number of steps does not fit the model; an error if an embedding is not
    /// finite, which names the weights that are not, or memory runs out.
    pub fn embed(&self, rows: &[Row], settings: &Settings, after_step: &mut dyn FnMut()) -> Result<Array2<f32>> {
        let scheduler = self.scheduler(settings.steps)?;
        let prompts: Vec<&str> = rows.iter().map(|row| row.prompt).collect();
        let negative_prompts: Vec<&str> = rows.iter().map(|row| row.negative_prompt).collect();
        let seeds: Vec<u64> = rows.iter().map(|row| row.seed).collect();

        let guidance = Guidance::new(settings.guidance_scale);
        let conditional = self.encode(&prompts)?;
        let unconditional = if guidance.is_on() { Some(self.encode(&negative_prompts)?) } else { None };
        let embedding_dim = self.prior.config().embedding_dim;
        let noise = BatchNoise::draw(&seeds, embedding_dim, scheduler.noisy_steps(), self.prior.device())?;
        let conditionings = (&conditional, unconditional.as_ref());
        let embeds = sample(&self.prior, &scheduler, guidance, conditionings, &noise, after_step)?;

        let embeds = to_rows(&embeds)?;
        match embeds.rows().into_iter().position(|row| row.iter().any(|value| !value.is_finite())) {
            Some(row) => Err(self.explain_non_finite(rows[row].prompt)),
            None => Ok(embeds),
        }
    }

    /// A scheduler for the given number of steps.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the model cannot do that many.
    fn scheduler(&self, steps: usize) -> Result<UnclipScheduler> {
        let mut scheduler = UnclipScheduler::new(&self.scheduler)?;
        scheduler.set_timesteps(steps)?;
        Ok(scheduler)
    }

    /// Encodes the texts of a batch, each different one once.
    fn encode(&self, texts: &[&str]) -> Result<Conditioning> {
        let mut distinct: Vec<&str> = Vec::new();
        let places = texts.iter().map(|text| match distinct.iter().position(|other| other == text) {
            Some(place) => place as i64,
            None => {
                distinct.push(text);
                distinct.len() as i64 - 1
            }
        });
        let places = Tensor::f_from_slice(&places.collect::<Vec<i64>>())?.f_to_device(self.prior.device())?;
        let (input_ids, text_mask) = self.tokenize(&distinct)?;
        let output = self.text_encoder.forward(&input_ids)?;
        let pick = |encoded: &Tensor| encoded.f_index_select(0, &places);
        Ok(Conditioning {
            text_embeds: pick(&output.text_embeds)?,
            text_states: pick(&output.last_hidden_state)?,
            text_mask: pick(&text_mask)?,
        })
    }

    /// Token ids and attention mask, both `(texts, max_length)`.
    fn tokenize(&self, texts: &[&str]) -> Result<(Tensor, Tensor)> {
        let max_length = self.tokenizer.max_length();
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for text in texts {
            let encoding = self.tokenizer.encode(text)?;
            if let Some(removed) = &encoding.removed {
                let (text, removed) = (shorten(text), shorten(removed));
                log::warn!("prompt {text:?} is longer than {max_length} tokens; this part was cut off: {removed:?}");
            }
            let vocab_size = self.text_encoder.vocab_size();
            if let Some(id) = encoding.ids.iter().find(|&&id| id >= vocab_size) {
                let text = shorten(text);
                return Err(bad_input!(
                    "prompt {text:?} has token {id}, and the text encoder knows {vocab_size} tokens"
                ));
            }
            mask.extend((0..max_length).map(|place| i64::from(place < encoding.len)));
            ids.extend(encoding.ids);
        }
        let tensor = |values: &[i64]| -> Result<Tensor> {
            let shape = [texts.len() as i64, max_length as i64];
            Ok(Tensor::f_from_slice(values)?.f_reshape(shape)?.f_to_device(self.prior.device())?)
        };
        Ok((tensor(&ids)?, tensor(&mask)?))
    }

    fn explain_non_finite(&self, prompt: &str) -> anyhow::Error {
        let names = load::non_finite_tensors(&self.layout).unwrap_or_default();
        let prompt = shorten(prompt);
        if names.is_empty() {
            return anyhow!("the embedding of {prompt:?} is not finite (NaN or infinity); try --dtype f32");
        }
        let (folder, names) = (self.layout.folder.display(), names.join(", "));
        anyhow!(
            "the embedding of {prompt:?} is not finite: {folder} has NaN or infinity in {names}; fetch the model again"
        )
    }
}

/// `(rows, dim)` float32 on any device to an array.
fn to_rows(embeds: &Tensor) -> Result<Array2<f32>> {
    let (rows, dim) = embeds.size2()?;
    let mut values = vec![0.0; (rows * dim) as usize];
    let len = values.len();
    embeds.f_to_kind(Kind::Float)?.f_to_device(tch::Device::Cpu)?.f_contiguous()?.f_copy_data(&mut values, len)?;
    Ok(Array2::from_shape_vec((rows as usize, dim as usize), values)?)
}

/// A text short enough for a message.
fn shorten(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}… ({} more characters)", &text[..end], text[end..].chars().count()),
        None => text.to_string(),
    }
}
