//! How to embed, and the rows that this makes of prompts.

use crate::diffusion::noise::seed_of;
use crate::pipeline::{Conditions, NEGATIVE_SEED_OFFSET, NoisePlan, Prompt, Purpose, Row};
use crate::{Error, Result};
use ndarray::Array2;

/// How to embed: a builder whose defaults are those of diffusers' Kandinsky 2.2 prior pipeline.
///
/// ```
/// use prior_embed::EmbedOptions;
///
/// let options = EmbedOptions::new().seed(7).steps(50).guidance_scale(2.5).negative_prompt("blurry");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedOptions {
    pub(super) seeds: Seeds,
    pub(super) steps: Option<usize>,
    pub(super) guidance_scale: Option<f64>,
    pub(super) temperature: Option<f64>,
    pub(super) samples: usize,
    pub(super) best_of: usize,
    pub(super) negative_prompts: Negative,
    pub(super) decoder_negative_prompt: Option<String>,
    pub(super) negative_image_embeds: bool,
    pub(super) text_embeds: bool,
    pub(super) latents: Option<Array2<f32>>,
    /// Image embeddings to start from, and the strength.
    pub(super) image: Option<(Array2<f32>, f64)>,
    pub(super) batch_size: Option<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seeds {
    From(u64),
    Each(Vec<u64>),
    ByPrompt,
    Call(u64),
}

/// What to compute.
pub(super) struct Rows<'a> {
    pub(super) images: Vec<Row<'a>>,
    /// Of the negative embeddings; `None` if these are the embedding of a black image.
    pub(super) negatives: Option<Vec<Row<'a>>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Negative {
    None,
    Same(String),
    Each(Vec<String>),
}

impl Negative {
    pub(super) fn is_given(&self) -> bool {
        *self != Self::None
    }
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self {
            seeds: Seeds::From(0),
            steps: None,
            guidance_scale: None,
            temperature: None,
            samples: 1,
            best_of: 1,
            negative_prompts: Negative::None,
            decoder_negative_prompt: None,
            negative_image_embeds: false,
            text_embeds: false,
            latents: None,
            image: None,
            batch_size: None,
        }
    }
}

impl EmbedOptions {
    /// Seed 0, 25 steps, guidance scale 4, one sample a prompt, no negative prompt.
    pub fn new() -> Self {
        Self::default()
    }

    /// Row r of the output draws its noise from a generator seeded with `seed + r`.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seeds = Seeds::From(seed);
        self
    }

    /// A seed for each prompt; its sample k has `seed + k`.
    pub fn seeds(mut self, seeds: impl Into<Vec<u64>>) -> Self {
        self.seeds = Seeds::Each(seeds.into());
        self
    }

    /// Each prompt's seed is made of the prompt: the first 8 bytes, little-endian, of its SHA-256. Its sample k has the
    /// seed plus k, and the negative embeddings have 2^63 more. So a prompt's embeddings do not depend on its place.
    pub fn seed_by_prompt(mut self) -> Self {
        self.seeds = Seeds::ByPrompt;
        self
    }

    /// All rows draw their noise from one generator, as in a pipeline's call with
    /// `generator=torch.Generator().manual_seed(seed)`: each draw is for all rows at once. All are then computed
    /// together, and a row depends on how many there are.
    pub fn one_generator(mut self, seed: u64) -> Self {
        self.seeds = Seeds::Call(seed);
        self
    }

    /// The noise to start from in place of the generators' first draws, `(rows, embedding_dim)`. With a negative prompt
    /// there may be as many rows again, for the negative embeddings. An autoregressive prior takes none.
    pub fn latents(mut self, latents: Array2<f32>) -> Self {
        self.latents = Some(latents.as_standard_layout().into_owned());
        self
    }

    /// Image embeddings to start from, `(1, embedding_dim)` for all prompts or `(prompts, embedding_dim)`, as in diffusers'
    /// `KandinskyV22PriorEmb2EmbPipeline`: noise is added to them, and the last `strength`, 0 to 1, of the steps are run.
    /// Where that is less than one step, the row is the image embedding as it is. Negative embeddings of a negative prompt
    /// start from them too. Needs the UnCLIP scheduler.
    pub fn image(mut self, embeds: Array2<f32>, strength: f64) -> Self {
        self.image = Some((embeds.as_standard_layout().into_owned(), strength));
        self
    }

    /// Number of denoising steps. A one-step or autoregressive prior takes none.
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = Some(steps);
        self
    }

    /// Classifier-free guidance; off at 1 and below. A one-step prior takes none.
    pub fn guidance_scale(mut self, scale: f64) -> Self {
        self.guidance_scale = Some(scale);
        self
    }

    /// The temperature of an autoregressive prior, 0 or above; by default 1. Above 1 its embeddings are more varied, and
    /// at 0 each token is the likeliest. Other priors take none.
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = Some(temperature);
        self
    }

    /// Rows of the output for each prompt.
    pub fn samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// Draws of each row, of which the one is kept that has the largest dot product with the text embedding (arXiv
    /// 2204.06125, section 2.2); [`crate::Embeddings::scores`] are these. Draw k of row r is what `samples` times `draws`
    /// samples would have in row `r · draws + k`: so its seed is `seed + r · draws + k`.
    pub fn best_of(mut self, draws: usize) -> Self {
        self.best_of = draws.max(1);
        self
    }

    /// The negative prompt of all prompts.
    pub fn negative_prompt(mut self, prompt: impl Into<String>) -> Self {
        self.negative_prompts = Negative::Same(prompt.into());
        self
    }

    /// A negative prompt for each prompt.
    pub fn negative_prompts(mut self, prompts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.negative_prompts = Negative::Each(prompts.into_iter().map(Into::into).collect());
        self
    }

    /// What [`crate::Embeddings::negative_image_embeds`] are of, in place of the negative prompt: embeddings of this
    /// text with the same options, from seeds that follow those of the rows. It is `negative_prompt` of `interpolate` in
    /// diffusers' Kandinsky prior pipelines, where the prior's own is `negative_prior_prompt`. The empty text changes
    /// nothing.
    pub fn decoder_negative_prompt(mut self, prompt: impl Into<String>) -> Self {
        self.decoder_negative_prompt = Some(prompt.into()).filter(|prompt: &String| !prompt.is_empty());
        self
    }

    /// Whether to give [`crate::Embeddings::text_embeds`] too.
    pub fn text_embeds(mut self, wanted: bool) -> Self {
        self.text_embeds = wanted;
        self
    }

    /// Whether to compute [`crate::Embeddings::negative_image_embeds`] too, which decoders of Kandinsky 2.x take.
    /// Without a negative prompt they are the embedding of a black image, for which the model needs an image encoder.
    pub fn negative_image_embeds(mut self, wanted: bool) -> Self {
        self.negative_image_embeds = wanted;
        self
    }

    /// Rows computed together, in place of as many as are useful and fit into free memory.
    pub fn batch_size(mut self, rows: usize) -> Self {
        self.batch_size = Some(rows);
        self
    }

    /// The rows to compute for these prompts.
    pub(super) fn rows<'a>(&'a self, prompts: &[Prompt<&'a str>], conditions: Option<&Conditions>) -> Result<Rows<'a>> {
        let refused = |option: &'static str, reason: String| Err(Error::Option { option, reason });
        let check = |option: &'static str, count: usize| match count == prompts.len() {
            true => Ok(()),
            false => refused(option, format!("there are {count} for {} prompts", prompts.len())),
        };
        if let Seeds::Each(seeds) = &self.seeds {
            check("seeds", seeds.len())?;
        }
        if let Negative::Each(negative) = &self.negative_prompts {
            check("negative_prompts", negative.len())?;
        }
        if let (Seeds::ByPrompt, Some(_)) = (&self.seeds, conditions) {
            refused("seed_by_prompt", "conditions have no prompts to make seeds of".into())?;
        }
        if let Some((images, _)) = self.image.as_ref().filter(|(images, _)| images.nrows() != 1) {
            check("image", images.nrows())?;
        }
        if self.negative_prompts.is_given() && conditions.is_some_and(Conditions::has_negative) {
            refused("negative_prompt", "the conditions come with negative ones already".into())?;
        }
        let negative_prompt = |index: usize| match &self.negative_prompts {
            Negative::None => conditions.and_then(|conditions| conditions.negative_prompt(index)),
            Negative::Same(prompt) => Some(Prompt::Text(prompt.as_str())),
            Negative::Each(prompts) => Some(Prompt::Text(prompts[index].as_str())),
        };
        let has_negative = self.negative_prompts.is_given() || conditions.is_some_and(Conditions::has_negative);
        let has_negatives = has_negative || self.decoder_negative_prompt.is_some();
        let count = prompts.len() * self.samples * self.best_of;
        let is_call = matches!(self.seeds, Seeds::Call(_));
        let noise = NoisePlan {
            rows: count,
            negative_offset: if self.seeds == Seeds::ByPrompt { NEGATIVE_SEED_OFFSET } else { count as u64 },
            // A call with a negative prompt has rows for the negative embeddings too.
            call_rows: is_call.then_some(if has_negative { 2 * count } else { count }),
            latents: self.latents.as_ref(),
        };
        noise.check(has_negatives).or_else(|reason| refused("latents", format!("the array {reason}")))?;
        // `sample` counts the draws of all samples of a prompt.
        let noise = |index: usize, sample: usize, purpose: Purpose| {
            let row = index * self.samples * self.best_of + sample;
            let seed = match &self.seeds {
                Seeds::From(seed) => seed.wrapping_add(row as u64),
                Seeds::Each(seeds) => seeds[index].wrapping_add(sample as u64),
                Seeds::ByPrompt => seed_of(prompts[index].text().unwrap_or_default()).wrapping_add(sample as u64),
                Seeds::Call(seed) => *seed,
            };
            noise.source(row, seed, purpose)
        };
        let of_each = |step: usize, row: &dyn Fn(usize, usize) -> Row<'a>| -> Vec<Row<'a>> {
            let samples = |index| (0..self.samples * self.best_of).step_by(step).map(move |sample| (index, sample));
            (0..prompts.len()).flat_map(samples).map(|(index, sample)| row(index, sample)).collect()
        };
        let image = |index: usize| {
            let (images, _) = self.image.as_ref()?;
            images.row(if images.nrows() == 1 { 0 } else { index }).to_slice()
        };
        let negative_or_empty = |index: usize| negative_prompt(index).unwrap_or(Prompt::Text(""));
        let images = of_each(1, &|index, sample| Row {
            prompt: prompts[index],
            negative_prompt: negative_or_empty(index),
            noise: noise(index, sample, Purpose::Image),
            image: image(index),
        });
        // As in diffusers: embeddings of the negative prompt, guided away from itself, from seeds of their own.
        let negatives = has_negatives.then(|| {
            of_each(self.best_of, &|index, sample| {
                let negative_prompt = negative_or_empty(index);
                let decoder = self.decoder_negative_prompt.as_deref().map(Prompt::Text);
                let purpose = if decoder.is_some() { Purpose::DecoderNegative } else { Purpose::Negative };
                let prompt = decoder.unwrap_or(negative_prompt);
                Row { prompt, negative_prompt, noise: noise(index, sample, purpose), image: image(index) }
            })
        });
        Ok(Rows { images, negatives })
    }
}
