//! The autoregressive prior: predicts the leading dimensions of a CLIP image embedding one after the other, each as a
//! bucket.
//!
//! Source: section 2.2 of the unCLIP paper (arXiv 2204.06125), of which no code or weights were published. What the
//! paper leaves open is defined by `scripts/emoji/autoregressive.py`, which computes the same. The sequence is
//! `[text states | text embedding | dot product | bucket 1 | … | bucket K - 1]` and causal: the text embedding's token
//! predicts the dot product of text and image embedding, the dot product's the first bucket, and so on.
//!
//! As in the cached step of the diffusion prior, padding is left out, prompts of different lengths are packed, and the
//! rows of a prompt share its keys and values. A step runs one token a row, all of the same place in their sequences.

mod config;

pub use config::AutoregressiveConfig;

use super::block::{Projected, TransformerBlock};
use super::cache::{Prefix, TextCondition, copy_rows, internal};
use crate::error::Result;
use crate::nn::layers::attention::{AttentionRanges, sequences};
use crate::nn::layers::{LayerNorm, Linear};
use crate::weights::checkpoint::Weights;
use tch::{Device, Tensor};

/// The autoregressive prior.
#[derive(Debug)]
pub struct AutoregressivePrior {
    config: AutoregressiveConfig,
    encoder_hidden_states_proj: Linear,
    embedding_proj: Linear,
    /// `(num_dot_product_buckets + 1, inner_dim)`; the last is for a dot product that is not known.
    dot_product_embedding: Tensor,
    /// `(num_buckets, inner_dim)`.
    token_embedding: Tensor,
    positional_embedding: Tensor,
    transformer_blocks: Vec<TransformerBlock>,
    norm_out: LayerNorm,
    proj_to_dot_product: Linear,
    proj_to_tokens: Linear,
    /// The values of buckets in standard deviations, `(num_buckets)`.
    bucket_values: Tensor,
    /// From the leading dimensions, in standard deviations, to an embedding: the axes times these, and the mean.
    pca: Linear,
}

/// Rows of a batch, at the same place of their sequences: the keys and values of their prompts and of their own tokens.
#[derive(Debug)]
pub struct AutoregressiveRows<'a> {
    prefix: &'a Prefix,
    /// Of each row's prompt.
    before: Vec<(i64, i64)>,
    /// The keys and values of each row's tokens in each block, `(rows, num_tokens, 2 · inner_dim)`.
    key_values: Vec<Tensor>,
    /// The number of tokens so far.
    len: i64,
}

impl AutoregressivePrior {
    /// Reads the module from the root of its checkpoint.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, config: &AutoregressiveConfig) -> Result<Self> {
        let inner_dim = config.inner_dim();
        let linear = |name: &str, inputs, outputs| Linear::load(&weights.exact().sub(name), inputs, outputs);
        let blocks = weights.sub("transformer_blocks");
        let block =
            |layer: i64| TransformerBlock::load(&blocks.sub(&layer.to_string()), config.num_attention_heads, inner_dim);
        // Training alone quantizes dot products.
        weights.ignore(&["dot_product_values"]);
        Ok(Self {
            encoder_hidden_states_proj: linear("encoder_hidden_states_proj", config.encoder_hid_dim(), inner_dim)?,
            embedding_proj: linear("embedding_proj", config.embedding_proj_dim(), inner_dim)?,
            dot_product_embedding: weights
                .tensor("dot_product_embedding", &[config.num_dot_product_buckets + 1, inner_dim])?,
            token_embedding: weights.tensor("token_embedding", &[config.num_buckets, inner_dim])?,
            positional_embedding: weights.tensor("positional_embedding", &[1, config.positions(), inner_dim])?,
            transformer_blocks: (0..config.num_layers).map(block).collect::<Result<_>>()?,
            norm_out: LayerNorm::load(&weights.sub("norm_out"), inner_dim, LayerNorm::DEFAULT_EPS)?,
            proj_to_dot_product: linear("proj_to_dot_product", inner_dim, config.num_dot_product_buckets)?,
            proj_to_tokens: linear("proj_to_tokens", inner_dim, config.num_buckets)?,
            bucket_values: weights.tensor("bucket_values", &[config.num_buckets])?,
            pca: linear("pca", config.num_tokens, config.embedding_dim)?,
            config: config.clone(),
        })
    }

    /// The configuration of the module.
    pub fn config(&self) -> &AutoregressiveConfig {
        &self.config
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.positional_embedding.device()
    }

    /// The token in the place of a dot product that is not known.
    pub fn unknown_dot_product(&self) -> i64 {
        self.config.num_dot_product_buckets
    }

    /// Runs the tokens that depend on the prompt alone. Returns their cache and the logits of each prompt's dot
    /// product, `(prompts, num_dot_product_buckets)`.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn prefill(&self, text: &TextCondition) -> Result<(Prefix, Tensor)> {
        let (last, blocks) = self.transformer_blocks.split_last().ok_or_else(|| internal("blocks"))?;
        let states = self.encoder_hidden_states_proj.forward(&text.states)?;
        let embeds = self.embedding_proj.forward(&text.embeds)?;
        let positions = self.positional_embedding.f_select(0, 0)?;
        let mut hidden_states = text.tokens(&states, &embeds, &positions, self.config.num_embeddings)?;

        let lens: Vec<i64> = text.lens.iter().map(|len| len + 1).collect();
        let prompts: Vec<(i64, i64)> = sequences(&lens).collect();
        let causal = AttentionRanges::causal(&lens, self.device())?;
        let mut key_values = Vec::with_capacity(blocks.len() + 1);
        let keep = |rows: &Tensor| copy_rows(rows, (0, rows.size()[0]));
        for block in blocks {
            let Projected { query, key_value } = block.project(&hidden_states)?;
            let attended = block.attend(&query, &causal, &[&key_value])?;
            hidden_states = block.finish(&attended, &hidden_states)?;
            key_values.push(keep(&key_value)?);
        }

        // Only each prompt's last token is read from the last block.
        let of_last: Vec<i64> = prompts.iter().map(|(_, end)| end - 1).collect();
        let of_last = Tensor::f_from_slice(&of_last)?.f_to_device(self.device())?;
        let whole = AttentionRanges::new(std::slice::from_ref(&prompts), self.device())?;
        let Projected { query, key_value } = last.project(&hidden_states)?;
        let attended = last.attend(&query.f_index_select(0, &of_last)?, &whole, &[&key_value])?;
        let hidden_states = last.finish(&attended, &hidden_states.f_index_select(0, &of_last)?)?;
        key_values.push(keep(&key_value)?);
        let logits = self.proj_to_dot_product.forward(&self.norm_out.forward(&hidden_states)?)?;
        Ok((Prefix { key_values, prompts }, logits))
    }

    /// Rows without tokens yet. `prompts` has the prompt of each, as an index into the prefix.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn start<'a>(&self, prefix: &'a Prefix, prompts: &[usize]) -> Result<AutoregressiveRows<'a>> {
        let before = prompts.iter().map(|&prompt| prefix.prompts[prompt]).collect();
        let shape = [prompts.len() as i64, self.config.num_tokens, 2 * self.config.inner_dim()];
        let empty = |of_prompts: &Tensor| Ok(Tensor::f_zeros(shape, (of_prompts.kind(), of_prompts.device()))?);
        let key_values = prefix.key_values.iter().map(empty).collect::<Result<_>>()?;
        Ok(AutoregressiveRows { prefix, before, key_values, len: 0 })
    }

    /// Adds a token to each row, and returns the logits of the next one, `(rows, num_buckets)`. The first tokens are
    /// dot products, perhaps [`AutoregressivePrior::unknown_dot_product`], and all others buckets.
    ///
    /// # Errors
    /// If there are as many tokens as an embedding has, or as rows, or memory runs out.
    pub fn step(&self, rows: &mut AutoregressiveRows, tokens: &[i64]) -> Result<Tensor> {
        let (len, num_tokens) = (rows.len, self.config.num_tokens);
        if len == num_tokens {
            return Err(internal("a place for another token"));
        }
        let embedding = if len == 0 { &self.dot_product_embedding } else { &self.token_embedding };
        let tokens = Tensor::f_from_slice(tokens)?.f_to_device(self.device())?;
        let count = tokens.size()[0];
        let place = self.config.num_embeddings + 1 + len;
        let position = self.positional_embedding.f_select(0, 0)?.f_narrow(0, place, 1)?;
        let mut hidden_states = embedding.f_index_select(0, &tokens)?.f_add(&position)?;
        let own = (0..count).map(|row| (row * num_tokens, row * num_tokens + len + 1));
        let seen = AttentionRanges::new(&[rows.before.clone(), own.collect()], self.device())?;
        let of_prompts = &rows.prefix.key_values;
        for ((block, of_rows), of_prompts) in self.transformer_blocks.iter().zip(&rows.key_values).zip(of_prompts) {
            let Projected { query, key_value } = block.project(&hidden_states)?;
            of_rows.f_select(1, len)?.f_copy_(&key_value)?;
            let attended = block.attend(&query, &seen, &[of_prompts, &of_rows.f_flatten(0, 1)?])?;
            hidden_states = block.finish(&attended, &hidden_states)?;
        }
        rows.len += 1;
        self.proj_to_tokens.forward(&self.norm_out.forward(&hidden_states)?)
    }

    /// The image embeddings of buckets, `(rows, embedding_dim)`, float32. `buckets` is `(rows · num_tokens)`, row by
    /// row.
    ///
    /// # Errors
    /// If they are no multiple of `num_tokens`, or memory runs out.
    pub fn decode(&self, buckets: &[i64]) -> Result<Tensor> {
        let buckets = Tensor::f_from_slice(buckets)?.f_to_device(self.device())?;
        let values = self.bucket_values.f_index_select(0, &buckets)?;
        self.pca.forward(&values.f_reshape([-1, self.config.num_tokens])?)
    }
}
