//! The cached step: the prior's prediction from two new tokens per step, and cached keys and values for the others.
//!
//! With an attention mask the model is causal, and only the query's token is read. So, exactly:
//!
//! - no token that matters attends to padding, so it is left out; every token keeps its position;
//! - the keys and values of the text states and the text embedding depend on the prompt alone
//!   ([`PriorTransformer::prefill`], once per prompt, shared by its samples and by all rows of the unconditional
//!   branch);
//! - the timestep comes before `x_t`, so its keys and values depend on prompt and timestep alone
//!   ([`PriorTransformer::prefill_timesteps`], many timesteps in one pass);
//! - that leaves `x_t` and the query for each step ([`PriorTransformer::step`]), and of these the query alone after the
//!   last block's keys and values.
//!
//! Prompts of different lengths are packed without padding.

use super::block::Projected;
use super::config::ADDITIONAL_TOKENS;
use super::transformer::PriorTransformer;
use crate::error::{Error, Result};
use crate::nn::layers::attention::{AttentionRanges, sequences};
use tch::{Device, Tensor};

/// Keys and values of one kind of token in each block, `(tokens, 2 · inner_dim)`.
type KeyValues = Vec<Tensor>;

/// Several encoded prompts: the states of their tokens without padding, and their embeddings.
#[derive(Debug)]
pub struct TextCondition {
    /// The states of all prompts' tokens, packed, `(tokens of all prompts, embedding_dim)`.
    pub states: Tensor,
    /// The number of tokens of each prompt, at most `num_embeddings`.
    pub lens: Vec<i64>,
    /// The position of each token, int64, `(tokens of all prompts)`; `None` if those of each prompt are counted from 0.
    pub positions: Option<Tensor>,
    /// `(prompts, embedding_proj_dim)`.
    pub embeds: Tensor,
}

impl TextCondition {
    /// The tokens of each prompt's projected states and, last, its projected embedding, packed, with their positions,
    /// `(positions, inner_dim)`. That of the embedding is `last`.
    pub(super) fn tokens(&self, states: &Tensor, embeds: &Tensor, positions: &Tensor, last: i64) -> Result<Tensor> {
        let embeds = embeds.f_add(&positions.f_narrow(0, last, 1)?)?;
        let mut tokens = Vec::with_capacity(2 * self.lens.len());
        for (prompt, (start, end)) in sequences(&self.lens).enumerate() {
            let len = end - start;
            let positions = match &self.positions {
                Some(of_tokens) => positions.f_index_select(0, &of_tokens.f_narrow(0, start, len)?)?,
                None => positions.f_narrow(0, 0, len)?,
            };
            tokens.push(states.f_narrow(0, start, len)?.f_add(&positions)?);
            tokens.push(embeds.f_narrow(0, prompt as i64, 1)?);
        }
        Ok(Tensor::f_cat(&tokens, 0)?)
    }
}

/// The cache of the text states and the text embeddings of several prompts.
#[derive(Debug)]
pub struct Prefix {
    pub(super) key_values: KeyValues,
    /// Start and end of each prompt's tokens.
    pub(super) prompts: Vec<(i64, i64)>,
}

/// The cache of the tokens of some timesteps for each prompt of a [`Prefix`].
#[derive(Debug)]
pub struct TimestepCache {
    pub(super) key_values: KeyValues,
    /// Start and end of each prompt's tokens, one per timestep.
    pub(super) prompts: Vec<(i64, i64)>,
}

/// The rows of one step that share a cache.
#[derive(Debug, Clone, Copy)]
pub struct Branch<'a> {
    /// The rows' prompts.
    pub prefix: &'a Prefix,
    /// The timesteps of the same prompts.
    pub timesteps: &'a TimestepCache,
    /// The index of the step's timestep among these.
    pub step: usize,
    /// The prompt of each row, as an index into the prefix.
    pub prompts: &'a [usize],
}

/// What the last `tokens_per_row` of each row's two tokens, `x_t` and the query, attend to: the prompts and timesteps of
/// each branch, and the tokens of their own row.
fn seen_in_step(branches: &[Branch], tokens_per_row: usize, device: Device) -> Result<AttentionRanges> {
    let rows: usize = branches.iter().map(|branch| branch.prompts.len()).sum();
    let mut first_row = 0;
    let mut segments = Vec::with_capacity(2 * branches.len() + 1);
    for branch in branches {
        let prompt = |row: usize| row.checked_sub(first_row).and_then(|row| branch.prompts.get(row).copied());
        let ranges = |range: &dyn Fn(usize) -> (i64, i64)| {
            // A row of another branch attends to nothing of this one.
            let of_row = |row| prompt(row).map_or((0, 0), range);
            (0..rows).map(of_row).flat_map(|range| std::iter::repeat_n(range, tokens_per_row)).collect()
        };
        let at = |prompt: usize| branch.timesteps.prompts[prompt].0 + branch.step as i64;
        segments.push(ranges(&|prompt| branch.prefix.prompts[prompt]));
        segments.push(ranges(&|prompt| (at(prompt), at(prompt) + 1)));
        first_row += branch.prompts.len();
    }
    // x_t attends to itself, the query to both.
    let own = (0..rows as i64).flat_map(|row| [(2 * row, 2 * row + 1), (2 * row, 2 * row + 2)].into_iter());
    segments.push(own.filter(|(start, end)| end - start > 2 - tokens_per_row as i64).collect());
    AttentionRanges::new(&segments, device)
}

/// The keys and values of [`seen_in_step`] in a block, given those of the step's own tokens there.
fn rows_of_step<'a>(branches: &[Branch<'a>], block: usize, own: &'a Tensor) -> Vec<&'a Tensor> {
    let of_branch = |branch: &Branch<'a>| [&branch.prefix.key_values[block], &branch.timesteps.key_values[block]];
    branches.iter().flat_map(of_branch).chain([own]).collect()
}

impl Prefix {
    /// Number of prompts.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// A copy of the prompts from `first` on.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn tail(&self, first: usize) -> Result<Self> {
        let (key_values, prompts) = tail(&self.key_values, &self.prompts, first)?;
        Ok(Self { key_values, prompts })
    }
}

impl TimestepCache {
    /// The number of timesteps for which it holds the tokens of every prompt.
    pub fn steps(&self) -> usize {
        self.prompts.iter().map(|(start, end)| (end - start) as usize).min().unwrap_or(0)
    }

    /// A copy of the prompts from `first` on.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn tail(&self, first: usize) -> Result<Self> {
        let (key_values, prompts) = tail(&self.key_values, &self.prompts, first)?;
        Ok(Self { key_values, prompts })
    }
}

/// A copy of the rows of the prompts from `first` on.
fn tail(key_values: &KeyValues, prompts: &[(i64, i64)], first: usize) -> Result<(KeyValues, Vec<(i64, i64)>)> {
    let offset = prompts.get(first).map_or(0, |(start, _)| *start);
    let copy = |rows: &Tensor| -> Result<Tensor> { copy_rows(rows, (offset, rows.size()[0])) };
    let shifted = prompts.iter().skip(first).map(|(start, end)| (start - offset, end - offset));
    Ok((key_values.iter().map(copy).collect::<Result<_>>()?, shifted.collect()))
}

/// A contiguous copy of some rows, without the queries between them in memory.
pub(super) fn copy_rows(rows: &Tensor, (start, end): (i64, i64)) -> Result<Tensor> {
    let view = rows.f_narrow(0, start, end - start)?;
    let mut copy = Tensor::f_empty(view.size(), (view.kind(), view.device()))?;
    copy.f_copy_(&view)?;
    Ok(copy)
}

impl PriorTransformer {
    /// Checks that the sequence ends in a query and has the learned positions that the cache relies on.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key, without the file.
    pub fn check_cacheable(&self) -> Result<()> {
        if self.prd_embedding.is_none() {
            return Err(Error::key("added_emb_type", "is null, so the prior has no query token and cannot be cached"));
        }
        let tokens = self.config.additional_embeddings;
        if tokens != ADDITIONAL_TOKENS {
            let predicate = format!("is {tokens}, and only a prior with {ADDITIONAL_TOKENS} can be cached");
            return Err(Error::key("additional_embeddings", predicate));
        }
        Ok(())
    }

    /// Runs the tokens that depend on the prompt alone, and those of each prompt's first timesteps, in one pass.
    ///
    /// `timesteps` holds a list for each prompt.
    ///
    /// # Errors
    /// If the shapes do not fit, the prior cannot be cached, or memory runs out.
    pub fn prefill(&self, text: &TextCondition, timesteps: &[&[f64]]) -> Result<(Prefix, TimestepCache)> {
        self.check_cacheable()?;
        if timesteps.len() != text.lens.len() {
            return Err(Error::Internal("a prompt lacks its list of timesteps".into()));
        }
        let text_tokens = self.text_tokens(text)?;
        let text_len = text_tokens.size()[0];
        let hidden_states =
            self.norm_in(Tensor::f_cat(&[text_tokens, self.timestep_tokens(&timesteps.concat())?], 0)?)?;

        let prompts: Vec<(i64, i64)> = sequences(&text.lens.iter().map(|len| len + 1).collect::<Vec<_>>()).collect();
        let of_timesteps = sequences(&timesteps.iter().map(|list| list.len() as i64).collect::<Vec<_>>()).collect();
        // A text token attends to the tokens before it, a timestep's to its prompt, and both to themselves.
        let causal = prompts.iter().flat_map(|&(start, end)| (start..end).map(move |token| (start, token)));
        let whole = prompts.iter().zip(timesteps).flat_map(|(&prompt, list)| std::iter::repeat_n(prompt, list.len()));
        let before = causal.chain(whole).collect();
        let (mut of_text, mut of_steps) = (Vec::new(), Vec::new());
        self.run_for_cache(hidden_states, before, None, &mut |rows| {
            of_text.push(copy_rows(rows, (0, text_len))?);
            of_steps.push(copy_rows(rows, (text_len, rows.size()[0]))?);
            Ok(())
        })?;
        let prefix = Prefix { key_values: of_text, prompts };
        Ok((prefix, TimestepCache { key_values: of_steps, prompts: of_timesteps }))
    }

    /// Runs the tokens of further timesteps for each prompt: each attends to its prompt and itself.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn prefill_timesteps(&self, prefix: &Prefix, timesteps: &[f64]) -> Result<TimestepCache> {
        let tokens = self.norm_in(self.timestep_tokens(timesteps)?)?;
        let hidden_states = tokens.f_repeat([prefix.len() as i64, 1])?;
        let before = prefix.prompts.iter().flat_map(|&prompt| std::iter::repeat_n(prompt, timesteps.len()));
        let mut key_values = Vec::new();
        self.run_for_cache(hidden_states, before.collect(), Some(prefix), &mut |rows| {
            key_values.push(copy_rows(rows, (0, rows.size()[0]))?);
            Ok(())
        })?;
        let prompts = sequences(&vec![timesteps.len() as i64; prefix.len()]).collect();
        Ok(TimestepCache { key_values, prompts })
    }

    /// Predicts image embeddings, `(rows, clip_embed_dim)`, from noisy ones, `(rows, embedding_dim)`: the rows of the
    /// first branch, then those of the next.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn step(&self, branches: &[Branch], hidden_states: &Tensor) -> Result<Tensor> {
        let (last, blocks) = self.transformer_blocks.split_last().ok_or_else(|| internal("blocks"))?;
        let seen = seen_in_step(branches, 2, self.device())?;
        let mut hidden_states = self.norm_in(self.step_tokens(hidden_states)?)?;
        for (number, block) in blocks.iter().enumerate() {
            let Projected { query, key_value } = block.project(&hidden_states)?;
            let attended = block.attend(&query, &seen, &rows_of_step(branches, number, &key_value))?;
            hidden_states = block.finish(&attended, &hidden_states)?;
        }
        // Only the queries are read from the last block.
        let seen = seen_in_step(branches, 1, self.device())?;
        let queries = |tokens: &Tensor| tokens.f_slice(0, 1, None, 2);
        let Projected { query, key_value } = last.project(&hidden_states)?;
        let attended = last.attend(&queries(&query)?, &seen, &rows_of_step(branches, blocks.len(), &key_value))?;
        let hidden_states = last.finish(&attended, &queries(&hidden_states)?.f_contiguous()?)?;
        self.proj_to_clip_embeddings.forward(&self.norm_out.forward(&hidden_states)?)
    }

    /// Runs tokens through all blocks for their keys and values, which it passes to `keep` block by block.
    ///
    /// A token attends to itself and to the range in `before`: rows of `prefix` or, without one, of the tokens
    /// themselves.
    fn run_for_cache(
        &self,
        mut hidden_states: Tensor,
        before: Vec<(i64, i64)>,
        prefix: Option<&Prefix>,
        keep: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let itself = (0..hidden_states.size()[0]).map(|token| (token, token + 1)).collect();
        let seen = AttentionRanges::new(&[before, itself], self.device())?;
        for (number, block) in self.transformer_blocks.iter().enumerate() {
            let Projected { query, key_value } = block.project(&hidden_states)?;
            if number + 1 < self.transformer_blocks.len() {
                let rows_before = prefix.map_or(&key_value, |prefix| &prefix.key_values[number]);
                let attended = block.attend(&query, &seen, &[rows_before, &key_value])?;
                hidden_states = block.finish(&attended, &hidden_states)?;
            }
            keep(&key_value)?;
        }
        Ok(())
    }

    /// The tokens of each prompt's states and embedding, with their positions.
    pub(super) fn text_tokens(&self, text: &TextCondition) -> Result<Tensor> {
        let states = self.project_text_states(Some(&text.states))?.ok_or_else(|| internal("text states"))?;
        let embeds = self.project_text_embedding(&text.embeds)?;
        let positions = self.positional_embedding.f_select(0, 0)?;
        text.tokens(&states, &embeds, &positions, self.config.num_embeddings)
    }

    /// The tokens of timesteps, with their position.
    fn timestep_tokens(&self, timesteps: &[f64]) -> Result<Tensor> {
        let timesteps = Tensor::f_from_slice(timesteps)?.f_to_device(self.device())?;
        Ok(self.embed_timestep(&timesteps)?.f_add(&self.position(1)?)?)
    }

    /// `x_t` and the query of each row, the last tokens of a sequence, interleaved: `(2 · rows, inner_dim)`.
    pub(super) fn step_tokens(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let first = self.config.additional_embeddings - 2;
        let query = self.prd_embedding.as_ref().ok_or_else(|| internal("a query token"))?.f_reshape([1, -1])?;
        let noisy = self.proj_in.forward(hidden_states)?.f_add(&self.position(first)?)?;
        let query = query.f_add(&self.position(first + 1)?)?.f_expand_as(&noisy)?;
        Ok(Tensor::f_stack(&[noisy, query], 1)?.f_flatten(0, 1)?)
    }

    /// The learned position of an additional token, `(1, inner_dim)`.
    fn position(&self, additional: i64) -> Result<Tensor> {
        Ok(self.positional_embedding.f_select(0, 0)?.f_narrow(0, self.config.num_embeddings + additional, 1)?)
    }
}

pub(super) fn internal(missing: &str) -> Error {
    Error::Internal(format!("the prior lacks {missing}"))
}
