//! Arithmetic in CLIP's space: mixes of prompts and embeddings, arcs, and text diffs.

use super::embed_options::{EmbedOptions, Negative, Seeds};
use super::item::Item;
use super::{Embeddings, Prior};
use crate::arithmetic::{NoArc, turn, weighted_sum};
use crate::nn::prior::PriorKind;
use crate::pipeline::{Mix, Progress};
use crate::{Error, Result};
use ndarray::{Array1, Array2, ArrayView1, Axis};

impl Prior {
    /// A mix of prompts and embeddings in one row: the sum of the weights times the embeddings, whatever the weights' own
    /// sum, as `interpolate` of diffusers' Kandinsky prior pipelines.
    ///
    /// The noise of the item at place i is that of the seed plus i, also beside items that need none. The negative prompt
    /// is `negative_prior_prompt` there, and the decoder's `negative_prompt`. Options of several rows, and of noise or
    /// images to start from, are refused.
    ///
    /// ```
    /// use prior_embed::{EmbedOptions, Prior};
    ///
    /// let mut prior = Prior::builtin()?;
    /// let cat = prior.embed(&["a cat"], &EmbedOptions::new())?.image_embeds;
    /// let mix = prior.interpolate(&[cat.row(0).into(), "a tiger".into()], &[0.3, 0.7], &EmbedOptions::new())?;
    /// assert_eq!(mix.image_embeds.dim(), (1, prior.embedding_dim()));
    /// # Ok::<(), prior_embed::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Prior::embed`]; [`Error::Option`] if there are no items, or not as many weights, an embedding is of another
    /// dimension, or an option is not one of a mix.
    pub fn interpolate(&mut self, items: &[Item], weights: &[f64], options: &EmbedOptions) -> Result<Embeddings> {
        self.interpolate_with(items, weights, options, &mut ())
    }

    /// The same, and reports progress.
    ///
    /// # Errors
    /// As [`Prior::interpolate`], and [`Error::Cancelled`] if `progress` says so.
    pub fn interpolate_with(
        &mut self,
        items: &[Item],
        weights: &[f64],
        options: &EmbedOptions,
        progress: &mut dyn Progress,
    ) -> Result<Embeddings> {
        self.check_mix(items, weights, options)?;
        let settings = self.pipeline.settings(options.steps, options.guidance_scale, options.temperature)?;
        let prompts = items.iter().enumerate().filter_map(|(place, item)| match item {
            Item::Prompt(text) => Some((place, *text)),
            Item::Embedding(_) => None,
        });
        let prompts: Vec<(usize, &str)> = prompts.collect();
        let (seed, is_call) = match options.seeds {
            Seeds::Call(seed) => (seed, true),
            Seeds::From(seed) => (seed, false),
            // Refused above.
            Seeds::Each(_) | Seeds::ByPrompt => (0, false),
        };
        let mix = Mix {
            prompts: &prompts,
            items: items.len(),
            negative_prompt: match &options.negative_prompts {
                Negative::Same(text) => Some(text),
                Negative::None | Negative::Each(_) => None,
            },
            decoder_negative_prompt: options.decoder_negative_prompt.as_deref(),
            seed,
            is_call,
            batch_size: options.batch_size,
        };
        let wants_negative = options.negative_image_embeds;
        let zero_embed = match wants_negative && mix.negative_text().is_none() {
            true => Some(self.zero_embed()?),
            false => None,
        };
        let made = self.pipeline.embed_mix(&mix, &settings, wants_negative && zero_embed.is_none(), progress);
        self.pipeline.keep_text_encoder(self.keeps_text_encoder);
        let (of_prompts, negative) = made?;
        let mut of_prompts = of_prompts.rows().into_iter();
        let embeds = items.iter().filter_map(|item| match item {
            Item::Embedding(embedding) => Some(*embedding),
            Item::Prompt(_) => of_prompts.next(),
        });
        let embeds: Vec<ArrayView1<f32>> = embeds.collect();
        let row = |embed: Array1<f32>| embed.insert_axis(Axis(0));
        Ok(Embeddings {
            image_embeds: row(weighted_sum(&embeds, weights)),
            negative_image_embeds: zero_embed.or(negative).map(row),
            text_embeds: None,
            scores: None,
        })
    }

    /// Embeddings, `(rows, embedding_dim)`, turned away from one text and towards another: the text diffs of the unCLIP paper
    /// (arXiv 2204.06125, section 3.3), `slerp(z, norm(z_to - z_from), theta)` with the CLIP text embeddings `z_to` and
    /// `z_from`. At a theta of 0 they are as they were, and at 1 the direction alone; the paper goes up to between 0.25 and
    /// 0.5. Each stays as long as it is.
    ///
    /// ```
    /// use prior_embed::{EmbedOptions, Prior};
    ///
    /// let mut prior = Prior::builtin()?;
    /// let cat = prior.embed(&["a cat"], &EmbedOptions::new())?.image_embeds;
    /// let like_a_dog = prior.edit(&cat, "a cat", "a dog", 0.4)?;
    /// assert_eq!(like_a_dog.dim(), cat.dim());
    /// # Ok::<(), prior_embed::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Option`] if theta is not between 0 and 1, the embeddings are of another dimension, the texts have one text
    /// embedding, or there is no way from an embedding to the direction; [`Error::Prompt`] if the model cannot encode a
    /// text, or an error of the files if weights are damaged.
    pub fn edit(&mut self, embeds: &Array2<f32>, from: &str, to: &str, theta: f64) -> Result<Array2<f32>> {
        let refused = |option: &'static str, reason: String| Error::Option { option, reason };
        let [dim, of_text] = [self.embedding_dim(), self.pipeline.text_embedding_dim()];
        if dim != of_text {
            let reason = format!(
                "this model's text embeddings have {of_text} numbers and its image embeddings {dim}, so that no text is a \
                 direction"
            );
            return Err(refused("to", reason));
        }
        if embeds.ncols() != dim {
            let reason = format!("they have {} numbers a row, and this model's embeddings have {dim}", embeds.ncols());
            return Err(refused("embeds", reason));
        }
        if !(0.0..=1.0).contains(&theta) {
            return Err(refused("theta", format!("it is {theta}, and must be between 0 and 1")));
        }
        let texts = self.pipeline.text_embeds(&[from, to], &mut ())?;
        let direction = &texts.row(1) - &texts.row(0);
        let mut turned = embeds.to_owned();
        for (place, mut row) in turned.rows_mut().into_iter().enumerate() {
            let embedding = turn(row.view(), direction.view(), theta).map_err(|error| match error {
                NoArc::Zero(1) => refused("to", "it has the text embedding of from, so there is no direction".into()),
                error => refused("embeds", format!("row {place} cannot be turned: {error}")),
            })?;
            row.assign(&embedding);
        }
        Ok(turned)
    }

    fn check_mix(&self, items: &[Item], weights: &[f64], options: &EmbedOptions) -> Result<()> {
        let refused = |option: &'static str, reason: String| Err(Error::Option { option, reason });
        if self.pipeline.kind() == PriorKind::Sequence {
            let (folder, title) = (self.pipeline.folder(), self.pipeline.kind().title());
            return refused("items", format!("{folder} has {title}, which makes no embeddings"));
        }
        if items.is_empty() {
            return refused("items", "there are none to mix".into());
        }
        if weights.len() != items.len() {
            return refused("weights", format!("there are {} for {} items", weights.len(), items.len()));
        }
        if let Some(weight) = weights.iter().find(|weight| !weight.is_finite()) {
            return refused("weights", format!("one is {weight}, and they must be finite numbers"));
        }
        for (place, item) in items.iter().enumerate() {
            if let Item::Embedding(embedding) = item
                && embedding.len() != self.embedding_dim()
            {
                let (found, dim) = (embedding.len(), self.embedding_dim());
                let reason =
                    format!("the one at place {place} has {found} numbers, and this model's embeddings have {dim}");
                return refused("items", reason);
            }
        }
        let foreign = [
            ("samples", options.samples != 1),
            ("best_of", options.best_of != 1),
            ("seeds", matches!(options.seeds, Seeds::Each(_))),
            ("seed_by_prompt", options.seeds == Seeds::ByPrompt),
            ("negative_prompts", matches!(options.negative_prompts, Negative::Each(_))),
            ("latents", options.latents.is_some()),
            ("image", options.image.is_some()),
            ("text_embeds", options.text_embeds),
        ];
        match foreign.into_iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) => refused(option, "a mix, which is one row, takes none; leave it out".into()),
            None => Ok(()),
        }
    }
}
