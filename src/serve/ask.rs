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
        Self { prompts, field, negative_prompts, seeds: None, samples: 1, wanted, truncate }
    }

    /// The rows.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub(super) fn rows(&self, model: &Model, options: &Options) -> Result<Asked, Failure> {
        let Self { prompts, field, samples, .. } = self;
        let limits = &options.limits;
        if prompts.is_empty() {
            return Err(Failure::of(*field, format!("{field} must not be empty")));
        }
        if *samples == 0 {
            return Err(Failure::of("samples", "samples must not be 0"));
        }
        let count = prompts.len().saturating_mul(*samples);
        if count > limits.rows {
            let message =
                format!("{count} rows are more than the {} that a request may have; send several", limits.rows);
            return Err(Failure::new(Kind::TooMany, message).about(*field));
        }
        let negatives = self.negatives(options)?;
        if negatives.is_given() {
            model.check_negative().map_err(|failure| failure.about("negative_prompts"))?;
        }
        if let Some(Seeds::Each(seeds)) = &self.seeds
            && seeds.len() != prompts.len()
        {
            let message = format!("seeds has {} items for {} prompts", seeds.len(), prompts.len());
            return Err(Failure::of("seeds", message));
        }
        let settings = model.settings(self.wanted, &options.defaults, limits.steps)?;
        self.check_bytes(field, prompts.iter().map(String::as_str), limits.prompt_bytes)?;
        self.check_bytes("negative_prompts", negatives.distinct(), limits.prompt_bytes)?;

        let of_prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let of_negatives: Vec<&str> = negatives.distinct().collect();
        let bytes: usize = of_prompts.iter().chain(&of_negatives).map(|prompt| prompt.len()).sum();
        let count_tokens = || Ok::<_, Failure>((model.count_tokens(&of_prompts)?, model.count_tokens(&of_negatives)?));
        let (tokens, negative_tokens) = if bytes > MANY_BYTES { block_in_place(count_tokens) } else { count_tokens() }?;
        let truncated = |tokens: &[(usize, bool)]| -> Vec<usize> {
            let long = tokens.iter().enumerate().filter(|(_, (_, is_truncated))| *is_truncated);
            long.map(|(place, _)| place).collect()
        };
        for (field, places) in [(*field, truncated(&tokens)), ("negative_prompts", truncated(&negative_tokens))] {
            if let (Some(place), false) = (places.first(), self.truncate) {
                let max = model.info.max_input_length;
                let message = format!(
                    "{field}[{place}] has more than the {max} tokens that the model takes, start and end included; \
                     shorten it"
                );
                return Err(Failure::new(Kind::PromptTooLong, message).about(field));
            }
        }
        let seeds = self.seeds.as_ref().unwrap_or(&options.defaults.seeds);
        let mut rows = Vec::with_capacity(count);
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
                let (prompt, negative_prompt) = (Arc::clone(&text), Arc::clone(negative_prompt));
                rows.push(Row { prompt, negative_prompt, seed, tokens: tokens[place].0 });
            }
        }
        let sum = tokens.iter().map(|(tokens, _)| tokens).sum();
        Ok(Asked { rows, settings, tokens: sum, truncated: truncated(&tokens) })
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

    fn check_bytes<'a>(&self, field: &str, prompts: impl Iterator<Item = &'a str>, max: usize) -> Result<(), Failure> {
        match prompts.enumerate().find(|(_, prompt)| prompt.len() > max) {
            Some((place, prompt)) => {
                let message = format!("{field}[{place}] has {} bytes, more than the {max} allowed", prompt.len());
                Err(Failure::new(Kind::TooMany, message).about(field))
            }
            None => Ok(()),
        }
    }
}

enum GivenNegatives<'a> {
    Same(Option<&'a str>),
    Each(&'a [String]),
}

impl<'a> GivenNegatives<'a> {
    fn is_given(&self) -> bool {
        !matches!(self, Self::Same(None))
    }

    /// Each that is given.
    fn distinct(&self) -> impl Iterator<Item = &'a str> + use<'a> {
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
