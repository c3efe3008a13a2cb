//! The one-step prior: the image embedding from noise in a single pass, without a timestep.
//!
//! The sequence is `[text states | text embedding | x | learned query]` and causal, and only the query's token is read.
//! So, as in the cached step, padding is left out, prompts of different lengths are packed, and the samples of a prompt
//! share its tokens.
//!
//! Source: ECLIPSE (arXiv 2312.04655), `src/priors/prior_transformer.py` of eclipse-t2i/eclipse-inference.

use super::block::Projected;
use super::cache::{TextCondition, internal};
use super::transformer::PriorTransformer;
use crate::error::Result;
use crate::nn::layers::attention::{AttentionRanges, sequences};
use tch::Tensor;

impl PriorTransformer {
    /// Predicts the image embeddings of rows, `(rows, clip_embed_dim)`, from noise `(rows, embedding_dim)`. `prompts` has
    /// the prompt of each row, as an index into `text`.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn predict(&self, text: &TextCondition, prompts: &[usize], noise: &Tensor) -> Result<Tensor> {
        let (last, blocks) = self.transformer_blocks.split_last().ok_or_else(|| internal("blocks"))?;
        let text_tokens = self.text_tokens(text)?;
        let text_len = text_tokens.size()[0];
        let mut hidden_states = self.norm_in(Tensor::f_cat(&[text_tokens, self.step_tokens(noise)?], 0)?)?;

        let of_text: Vec<(i64, i64)> = sequences(&text.lens.iter().map(|len| len + 1).collect::<Vec<_>>()).collect();
        // A text token attends to those before it and to itself, x to its prompt and itself, the query to x as well.
        let of_text_tokens = of_text.iter().flat_map(|&(start, end)| (start..end).map(move |token| (start, token)));
        let of_row_tokens = prompts.iter().flat_map(|&prompt| [of_text[prompt]; 2]);
        let before = of_text_tokens.chain(of_row_tokens).collect();
        let of_x = || (text_len..).step_by(2).take(prompts.len());
        let own = (0..text_len).map(|token| (token, token + 1));
        let own = own.chain(of_x().flat_map(|x| [(x, x + 1), (x, x + 2)])).collect();
        let seen = AttentionRanges::new(&[before, own], self.device())?;
        for block in blocks {
            let Projected { query, key_value } = block.project(&hidden_states)?;
            let attended = block.attend(&query, &seen, &[&key_value, &key_value])?;
            hidden_states = block.finish(&attended, &hidden_states)?;
        }

        // Only the queries are read from the last block.
        let queries = |tokens: &Tensor| tokens.f_slice(0, text_len + 1, None, 2);
        let before = prompts.iter().map(|&prompt| of_text[prompt]).collect();
        let seen = AttentionRanges::new(&[before, of_x().map(|x| (x, x + 2)).collect()], self.device())?;
        let Projected { query, key_value } = last.project(&hidden_states)?;
        let attended = last.attend(&queries(&query)?, &seen, &[&key_value, &key_value])?;
        let hidden_states = last.finish(&attended, &queries(&hidden_states)?.f_contiguous()?)?;
        self.proj_to_clip_embeddings.forward(&self.norm_out.forward(&hidden_states)?)
    }
}
