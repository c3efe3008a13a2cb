//! The cached step on a device: keys and values of a batch's rows in tensors that stay where they are.
//!
//! What the CPU reads in place from packed sequences, a device reads from one tensor a block, a padded sequence a row:
//! `[prompt | padding | timestep | x_t | query | padding]`. The prompt's part is written once a batch. A step writes the
//! three tokens that are new in it and attends through a mask that is made once, so that it neither copies the prompts'
//! keys and values nor asks the device for anything: work is queued as fast as the host can queue it.

use super::block::Projected;
use super::cache::{Branch, internal};
use super::transformer::PriorTransformer;
use crate::error::{Error, Result};
use tch::{Kind, Tensor};

/// The number of keys is a multiple of this: the kernels of `scaled_dot_product_attention` copy a mask of another width.
const ALIGNED: i64 = 16;

/// Tokens of a step behind the prompt: the timestep, `x_t` and the query.
const STEP_TOKENS: i64 = 3;

/// Keys and values of the rows of a batch, at one step after the other.
#[derive(Debug)]
pub struct StaticCache {
    /// In each block, `(rows, keys, 2 · inner_dim)`.
    key_values: Vec<Tensor>,
    /// Added to the scores of each row's `x_t` and query, `(rows, 1, 2, keys)`.
    mask: Tensor,
    /// The place of the timestep's token.
    timestep: i64,
    /// In each block those of the timesteps that are cached, of all prompts and branches,
    /// `(tokens, 2 · inner_dim)`.
    of_timesteps: Vec<Tensor>,
    /// Each row's next timestep among these, int64, `(rows)`.
    next: Tensor,
}

impl StaticCache {
    /// The rows of all branches, with their prompts' keys and values, before the first of the timesteps that these
    /// branches are at.
    ///
    /// # Errors
    /// If a branch has not as many blocks as another, or memory runs out.
    pub fn new(branches: &[Branch]) -> Result<Self> {
        let blocks = branches.iter().map(|branch| branch.prefix.key_values.len()).min().unwrap_or(0);
        let of_block = |block: usize| {
            let rows = branches.iter().map(|branch| of_prompts(branch, block)).collect::<Result<Vec<_>>>()?;
            padded_together(&rows)
        };
        let key_values: Vec<Tensor> = (0..blocks).map(of_block).collect::<Result<_>>()?;
        let first = key_values.first().ok_or_else(|| internal("blocks"))?;
        let (_, keys, _) = first.size3()?;
        let timestep = longest_prompt(branches);
        let of_row = |prompt: (i64, i64)| mask_of(prompt.1 - prompt.0, timestep, keys);
        let mask: Vec<f32> = prompts_of_rows(branches).flat_map(of_row).collect();
        let mask = Tensor::f_from_slice(&mask)?.f_reshape([-1, 1, 2, keys])?;
        let mask = mask.f_to_kind(first.kind())?.f_to_device(first.device())?;
        let empty = Tensor::f_empty([0], (Kind::Int64, first.device()))?;
        let mut cache = Self { key_values, mask, timestep, of_timesteps: Vec::new(), next: empty };
        cache.move_to(branches)?;
        Ok(cache)
    }

    /// Moves on to other timesteps, from the one on that each branch is at. The branches have the prompts of before.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn move_to(&mut self, branches: &[Branch]) -> Result<()> {
        // Freed before the new ones are allocated.
        self.of_timesteps.clear();
        let of_block = |block: usize| -> Result<Tensor> {
            let parts = branches.iter().map(|branch| &branch.timesteps.key_values[block]);
            Ok(Tensor::f_cat(&parts.collect::<Vec<_>>(), 0)?)
        };
        self.of_timesteps = (0..self.key_values.len()).map(of_block).collect::<Result<_>>()?;
        let (mut next, mut before) = (Vec::new(), 0);
        for branch in branches {
            let of_prompt = |prompt: usize| before + branch.timesteps.prompts[prompt].0 + branch.step as i64;
            next.extend(branch.prompts.iter().map(|&prompt| of_prompt(prompt)));
            before += branch.timesteps.prompts.last().map_or(0, |(_, end)| *end);
        }
        self.next = Tensor::f_from_slice(&next)?.f_to_device(self.mask.device())?;
        Ok(())
    }

    /// Writes the keys and values of a step's tokens in a block: those of the timestep, and of `x_t` and the query,
    /// `(2 · rows, 2 · inner_dim)`. Returns those of all tokens.
    fn write(&self, block: usize, own: &Tensor) -> Result<&Tensor> {
        let rows = &self.key_values[block];
        let (_, _, width) = rows.size3()?;
        rows.f_select(1, self.timestep)?.f_copy_(&self.of_timesteps[block].f_index_select(0, &self.next)?)?;
        rows.f_narrow(1, self.timestep + 1, 2)?.f_copy_(&own.f_reshape([-1, 2, width])?)?;
        Ok(rows)
    }
}

impl PriorTransformer {
    /// As [`PriorTransformer::step`], with the rows of `cache`, which is at the following timestep after it.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn step_static(&self, cache: &mut StaticCache, hidden_states: &Tensor) -> Result<Tensor> {
        let (last, blocks) = self.transformer_blocks.split_last().ok_or_else(|| internal("blocks"))?;
        if self.transformer_blocks.len() != cache.key_values.len() {
            return Err(Error::Internal("a cache of another prior".into()));
        }
        let pairs = |tokens: &Tensor| -> Result<Tensor> { Ok(tokens.f_reshape([-1, 2, self.config.inner_dim()])?) };
        let mut hidden_states = self.norm_in(self.step_tokens(hidden_states)?)?;
        for (number, block) in blocks.iter().enumerate() {
            let Projected { query, key_value } = block.project(&hidden_states)?;
            let rows = cache.write(number, &key_value)?;
            let attended = block.attend_whole(&pairs(&query)?, rows, Some(&cache.mask))?;
            hidden_states = block.finish(&attended.f_flatten(0, 1)?, &hidden_states)?;
        }
        // Only the queries are read from the last block.
        let queries = |tokens: &Tensor| -> Result<Tensor> { Ok(pairs(tokens)?.f_narrow(1, 1, 1)?) };
        let Projected { query, key_value } = last.project(&hidden_states)?;
        let rows = cache.write(blocks.len(), &key_value)?;
        let attended = last.attend_whole(&queries(&query)?, rows, Some(&cache.mask.f_narrow(2, 1, 1)?))?;
        let hidden_states = queries(&hidden_states)?.f_flatten(0, 1)?.f_contiguous()?;
        let hidden_states = last.finish(&attended.f_flatten(0, 1)?, &hidden_states)?;
        let _ = cache.next.f_add_scalar_(1)?;
        self.proj_to_clip_embeddings.forward(&self.norm_out.forward(&hidden_states)?)
    }
}

/// Start and end of the tokens of each row's prompt.
fn prompts_of_rows<'a>(branches: &'a [Branch]) -> impl Iterator<Item = (i64, i64)> + 'a {
    branches.iter().flat_map(|branch| branch.prompts.iter().map(|&prompt| branch.prefix.prompts[prompt]))
}

fn longest_prompt(branches: &[Branch]) -> i64 {
    prompts_of_rows(branches).map(|(start, end)| end - start).max().unwrap_or(0)
}

/// The keys and values of the prompts of a branch's rows in a block, `(rows, longest prompt, 2 · inner_dim)`; behind
/// shorter ones stand those of other tokens.
fn of_prompts(branch: &Branch, block: usize) -> Result<Tensor> {
    let longest = longest_prompt(std::slice::from_ref(branch));
    let tokens = prompts_of_rows(std::slice::from_ref(branch))
        .flat_map(|(start, end)| (start..start + longest).map(move |token| token.min(end - 1)));
    let key_value = &branch.prefix.key_values[block];
    let tokens = Tensor::f_from_slice(&tokens.collect::<Vec<i64>>())?.f_to_device(key_value.device())?;
    Ok(key_value.f_index_select(0, &tokens)?.f_reshape([branch.prompts.len() as i64, longest, -1])?)
}

/// The rows of several branches in one tensor, with room for a step's tokens. What is not written is zero: hidden by the
/// mask, it has to be a number all the same.
fn padded_together(branches: &[Tensor]) -> Result<Tensor> {
    let mut longest = 0;
    let mut count = 0;
    for rows in branches {
        longest = longest.max(rows.size3()?.1);
        count += rows.size3()?.0;
    }
    let first = branches.first().ok_or_else(|| internal("rows"))?;
    let keys = (longest + STEP_TOKENS + ALIGNED - 1) / ALIGNED * ALIGNED;
    let all = Tensor::f_zeros([count, keys, first.size3()?.2], (first.kind(), first.device()))?;
    let mut at = 0;
    for rows in branches {
        let (count, len, _) = rows.size3()?;
        all.f_narrow(0, at, count)?.f_narrow(1, 0, len)?.f_copy_(rows)?;
        at += count;
    }
    Ok(all)
}

/// What is added to the scores of a row's `x_t` and query, `2 · keys` numbers: they attend to a prompt of `len` tokens,
/// the timestep and themselves; the query attends to `x_t` as well.
fn mask_of(len: i64, timestep: i64, keys: i64) -> impl Iterator<Item = f32> {
    (0..2).flat_map(move |token| {
        (0..keys).map(move |key| match key < len || (timestep..=timestep + 1 + token).contains(&key) {
            true => 0.0,
            false => f32::NEG_INFINITY,
        })
    })
}
