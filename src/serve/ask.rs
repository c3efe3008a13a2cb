//! What a request asks for, whichever route it came by, and the rows that this makes.

use super::failure::{Failure, Kind};
use super::model::{Model, Wanted};
use super::options::{Options, Seeds};
use super::row::Row;
use crate::pipeline::Settings;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::task::block_in_place;

/// Bytes of prompts that are tokenized without telling the runtime.
const MANY_BYTES: usize = 16 << 10;

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) prompts: Vec<String>,
    /// The name of the field with the prompts.
    pub(super) field: &'static str,
    pub(super) negative_prompts: Negatives,
    /// The server's own if not given.
    pub(super) seeds: Option<Seeds>,
    /// Rows of each prompt.
    pub(super) samples: usize,
    pub(super) wanted: Wanted,
    /// Whether each row is followed by its negative embedding.
    pub(super) negative_image_embeds: bool,
    /// Whether prompts that are too long are truncated.
    pub(super) truncate: bool,
}

/// The negative prompts.
#[derive(Debug)]
pub(super) enum Negatives {
    /// The server's own, if it has one.
    Default,
    /// One for all prompts.
    Same(String),
    /// One for each prompt.
    Each(Vec<String>),
}

/// Rows to compute.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) rows: Vec<Row>,
    pub(super) settings: Settings,
    /// Tokens of all prompts.
    pub(super) tokens: usize,
    /// The places of prompts that were truncated.
    pub(super) truncated: Vec<usize>,
}

impl Ask {
    /// One for an embedding of each prompt, with the server's defaults.
    pub(super) fn new(prompts: Vec<String>, field: &'static str, truncate: bool) -> Self {
        let (negative_prompts, wanted) = (Negatives::Default, Wanted::default());
        let (seeds, samples, negative_image_embeds) = (None, 1, false);
        Self { prompts, field, negative_prompts, seeds, samples, wanted, negative_image_embeds, truncate }
    }

    /// The rows.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub(super) fn rows(&self, model: &Model, options: &Options) -> Result<Asked, Failure> {
        let Self { prompts, samples, .. } = self;
        let negatives = self.negatives(options)?;
        self.check(&negatives, options)?;
        if negatives.is_given() {
            model.check_negative().map_err(|failure| failure.about("negative_prompts"))?;
        }
        let settings = model.settings(self.wanted, &options.defaults, options.limits.steps)?;
        let (tokens, truncated) = self.count_tokens(&negatives, model)?;
        let seeds = self.seeds.as_ref().unwrap_or(&options.defaults.seeds);
        let mut rows = Vec::with_capacity(prompts.len() * samples);
        let mut shared = HashMap::new();
        for (place, prompt) in prompts.iter().enumerate() {
            let text: Arc<str> = prompt.as_str().into();
            let negative = negatives.of(place);
            let negative_prompt = shared.entry(negative).or_insert_with(|| Arc::<str>::from(negative));
            for sample in 0..*samples {
                let Some(seed) = seeds.seed(prompt, place, sample, *samples) else {
                    let message = format!("the seed of row {} would not be below 2^64", place * samples + sample);
                    return Err(Failure::of("seeds", message));
                };
                let row = Row {
                    prompt: Arc::clone(&text),
                    negative_prompt: Arc::clone(negative_prompt),
                    seed,
                    tokens: tokens[place],
                };
                let negative = self.negative_image_embeds.then(|| Row {
                    prompt: Arc::clone(negative_prompt),
                    seed: seeds.negative_seed(seed, prompts.len() * samples),
                    tokens: model.info.max_input_length,
                    ..row.clone()
                });
                rows.push(row);
                rows.extend(negative);
            }
        }
        Ok(Asked { rows, settings, tokens: tokens.iter().sum(), truncated })
    }

    /// Whether there are negative prompts, of the request or of the server.
    pub(super) fn has_negatives(&self, options: &Options) -> bool {
        !matches!(self.negative_prompts, Negatives::Default) || options.defaults.negative_prompt.is_some()
    }

    /// Checks numbers and sizes, before anything is made of them.
    fn check(&self, negatives: &GivenNegatives, options: &Options) -> Result<(), Failure> {
        let Self { prompts, field, samples, .. } = self;
        let limits = &options.limits;
        if prompts.is_empty() {
            return Err(Failure::of(*field, format!("{field} must not be empty")));
        }
        if *samples == 0 {
            return Err(Failure::of("samples", "samples must not be 0"));
        }
        let each = samples.saturating_mul(if self.negative_image_embeds { 2 } else { 1 });
        let count = prompts.len().saturating_mul(each);
        if count > limits.rows {
            let max = limits.rows;
            let message = format!("{count} rows are more than the {max} that a request may have; send several");
            return Err(Failure::new(Kind::TooMany, message).about(*field));
        }
        if let Some(Seeds::Each(seeds)) = &self.seeds
            && seeds.len() != prompts.len()
        {
            let message = format!("seeds has {} items for {} prompts", seeds.len(), prompts.len());
            return Err(Failure::of("seeds", message));
        }
        check_bytes(field, prompts.iter().map(String::as_str), limits.prompt_bytes)?;
        check_bytes("negative_prompts", negatives.all(), limits.prompt_bytes)
    }

    /// The number of tokens of each prompt, and the places of those that are truncated.
    ///
    /// # Errors
    /// [`Kind::PromptTooLong`] if none may be.
    fn count_tokens(&self, negatives: &GivenNegatives, model: &Model) -> Result<(Vec<usize>, Vec<usize>), Failure> {
        let prompts: Vec<&str> = self.prompts.iter().map(String::as_str).collect();
        let negatives: Vec<&str> = negatives.all().collect();
        let bytes: usize = prompts.iter().chain(&negatives).map(|prompt| prompt.len()).sum();
        let count = || Ok::<_, Failure>([model.count_tokens(&prompts)?, model.count_tokens(&negatives)?]);
        let [counts, negative_counts] = if bytes > MANY_BYTES { block_in_place(count) } else { count() }?;
        let truncated = |counts: &[(usize, bool)]| -> Vec<usize> {
            let long = counts.iter().enumerate().filter(|(_, (_, is_truncated))| *is_truncated);
            long.map(|(place, _)| place).collect()
        };
        let places = truncated(&counts);
        for (field, places) in [(self.field, &places), ("negative_prompts", &truncated(&negative_counts))] {
            if let (Some(place), false) = (places.first(), self.truncate) {
                let max = model.info.max_input_length;
                let message = format!(
                    "{field}[{place}] has more than the {max} tokens that the model takes, start and end included; \
                     shorten it"
                );
                return Err(Failure::new(Kind::PromptTooLong, message).about(field));
            }
        }
        Ok((counts.into_iter().map(|(tokens, _)| tokens).collect(), places))
    }

    fn negatives<'a>(&'a self, options: &'a Options) -> Result<GivenNegatives<'a>, Failure> {
        Ok(match &self.negative_prompts {
            Negatives::Default => GivenNegatives::Same(options.defaults.negative_prompt.as_deref()),
            Negatives::Same(prompt) => GivenNegatives::Same(Some(prompt)),
            Negatives::Each(all) if all.len() == self.prompts.len() => GivenNegatives::Each(all),
            Negatives::Each(all) => {
                let message = format!("negative_prompts has {} items for {} prompts", all.len(), self.prompts.len());
                return Err(Failure::of("negative_prompts", message));
            }
        })
    }
}

/// # Errors
/// [`Kind::TooMany`] if a prompt is longer than `max` bytes.
fn check_bytes<'a>(field: &str, prompts: impl Iterator<Item = &'a str>, max: usize) -> Result<(), Failure> {
    match prompts.enumerate().find(|(_, prompt)| prompt.len() > max) {
        Some((place, prompt)) => {
            let message = format!("{field}[{place}] has {} bytes, more than the {max} allowed", prompt.len());
            Err(Failure::new(Kind::TooMany, message).about(field))
        }
        None => Ok(()),
    }
}

/// The negative prompts, once it is known which.
enum GivenNegatives<'a> {
    Same(Option<&'a str>),
    Each(&'a [String]),
}

impl<'a> GivenNegatives<'a> {
    fn is_given(&self) -> bool {
        !matches!(self, Self::Same(None))
    }

    /// Each that is given, once.
    fn all(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let (one, all) = match self {
            Self::Same(prompt) => (*prompt, &[][..]),
            Self::Each(all) => (None, *all),
        };
        one.into_iter().chain(all.iter().map(String::as_str))
    }

    /// That of the prompt at a place; empty if there is none.
    fn of(&self, place: usize) -> &'a str {
        match self {
            Self::Same(prompt) => prompt.unwrap_or_default(),
            Self::Each(all) => &all[place],
        }
    }
}
