//! Text conditions that were made elsewhere, in place of prompts: prompt weighting, mixed or optimized embeddings.

use super::request::Prompt;
use crate::{Error, Result};
use ndarray::{Array2, Array3, ArrayView1, Axis, concatenate};

/// What a text encoder gives for some prompts, or what is to stand in its place: the arguments that diffusers'
/// `PriorTransformer` calls `proj_embedding`, `encoder_hidden_states` and `attention_mask`.
///
/// The mask hides tokens wherever they are: like diffusers' (`(1 - mask) · -10000` on the scores) it leaves every other
/// token at its position, and a row whose tokens are all hidden is conditioned on its text embedding alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditions {
    text_embeds: Array2<f32>,
    hidden_states: Array3<f32>,
    mask: Array2<bool>,
    /// Rows that are not negative.
    rows: usize,
}

/// What stands in the place of one prompt.
pub(super) struct ConditionRow<'a> {
    /// Of the tokens that are not hidden, `(tokens, hidden_size)`.
    pub(super) hidden_states: Array2<f32>,
    /// Of these tokens.
    pub(super) positions: Vec<usize>,
    /// `(text_embedding_dim)`.
    pub(super) text_embed: ArrayView1<'a, f32>,
}

impl Conditions {
    /// Conditions of n rows.
    ///
    /// - `text_embeds`: the projected embedding of each prompt, `(n, text_embedding_dim)`;
    /// - `text_encoder_hidden_states`: the states of its tokens after the final layer norm, padding included,
    ///   `(n, tokens, hidden_size)`;
    /// - `text_mask`: whether each token counts, `(n, tokens)`.
    ///
    /// # Errors
    /// [`Error::Option`] if the arrays do not fit each other, or a number is not finite.
    pub fn new(
        text_embeds: Array2<f32>,
        text_encoder_hidden_states: Array3<f32>,
        text_mask: Array2<bool>,
    ) -> Result<Self> {
        let (rows, tokens, _) = text_encoder_hidden_states.dim();
        let counts = [("text_encoder_hidden_states", rows), ("text_mask", text_mask.nrows())];
        if let Some((name, count)) = counts.into_iter().find(|(_, count)| *count != text_embeds.nrows()) {
            return refused(format!("text_embeds has {} rows and {name} {count}", text_embeds.nrows()));
        }
        if text_mask.ncols() != tokens {
            let of_mask = text_mask.ncols();
            return refused(format!("text_encoder_hidden_states has {tokens} tokens a row and text_mask {of_mask}"));
        }
        let is_finite = |value: &f32| value.is_finite();
        if let Some(row) = text_embeds.outer_iter().position(|row| !row.iter().all(is_finite)) {
            return refused(format!("text_embeds has NaN or infinity in row {row}"));
        }
        if let Some(row) = text_encoder_hidden_states.outer_iter().position(|row| !row.iter().all(is_finite)) {
            return refused(format!("text_encoder_hidden_states has NaN or infinity in row {row}"));
        }
        Ok(Self { text_embeds, hidden_states: text_encoder_hidden_states, mask: text_mask, rows })
    }

    /// Adds conditions in place of the negative prompts: one for each row, or one for all.
    ///
    /// # Errors
    /// [`Error::Option`] if there are neither as many as rows nor one, or they have other sizes.
    pub fn with_negative(self, negative: Self) -> Result<Self> {
        let (rows, count) = (self.rows, negative.rows);
        if count != rows && count != 1 {
            return refused(format!("the negative arrays have {count} rows, and must have {rows} as the others, or 1"));
        }
        let sizes = |of: &Self| (of.text_embeds.ncols(), of.hidden_states.dim().1, of.hidden_states.dim().2);
        if sizes(&self) != sizes(&negative) {
            let ((dim, tokens, width), other) = (sizes(&self), sizes(&negative));
            return refused(format!(
                "the negative arrays have other sizes: a text embedding of {} numbers and {} states of {}, not {dim}, \
                 {tokens} and {width}",
                other.0, other.1, other.2
            ));
        }
        let internal = |error: ndarray::ShapeError| Error::Internal(error.to_string());
        let join = |one: &Array2<f32>, other: &Array2<f32>| concatenate(Axis(0), &[one.view(), other.view()]);
        Ok(Self {
            text_embeds: join(&self.text_embeds, &negative.text_embeds).map_err(internal)?,
            hidden_states: concatenate(Axis(0), &[self.hidden_states.view(), negative.hidden_states.view()])
                .map_err(internal)?,
            mask: concatenate(Axis(0), &[self.mask.view(), negative.mask.view()]).map_err(internal)?,
            rows,
        })
    }

    /// The same without the negative ones.
    #[cfg(test)]
    pub(crate) fn without_negative(self) -> Self {
        let kept: Vec<usize> = (0..self.rows).collect();
        Self {
            text_embeds: self.text_embeds.select(Axis(0), &kept),
            hidden_states: self.hidden_states.select(Axis(0), &kept),
            mask: self.mask.select(Axis(0), &kept),
            rows: self.rows,
        }
    }

    /// The arrays, without the negative ones.
    #[cfg(test)]
    pub(crate) fn into_arrays(self) -> (Array2<f32>, Array3<f32>, Array2<bool>) {
        let Self { text_embeds, hidden_states, mask, .. } = self.without_negative();
        (text_embeds, hidden_states, mask)
    }

    /// Number of rows, without the negative ones.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether there are conditions in place of the negative prompts.
    pub fn has_negative(&self) -> bool {
        self.text_embeds.nrows() > self.rows
    }

    /// The negative prompt of a row, if there are conditions for these.
    pub(crate) fn negative_prompt<'a>(&self, row: usize) -> Option<Prompt<&'a str>> {
        let count = self.text_embeds.nrows() - self.rows;
        (count > 0).then(|| Prompt::Condition(self.rows + if count == 1 { 0 } else { row }))
    }

    /// A row; those of the negative prompts come last. `None` if there is no such row.
    pub(super) fn row(&self, row: usize) -> Option<ConditionRow<'_>> {
        if row >= self.text_embeds.nrows() {
            return None;
        }
        let counts = self.mask.row(row).into_iter().enumerate();
        let positions: Vec<usize> = counts.filter_map(|(position, counts)| counts.then_some(position)).collect();
        let hidden_states = self.hidden_states.index_axis(Axis(0), row).select(Axis(0), &positions);
        Some(ConditionRow { hidden_states, positions, text_embed: self.text_embeds.row(row) })
    }

    /// Checks the sizes that a model takes: of its text embedding, its tokens, and a token's hidden state.
    ///
    /// # Errors
    /// [`Error::Option`] if they are others.
    pub(super) fn check_sizes(&self, text_embedding_dim: i64, max_tokens: i64, hidden_size: i64) -> Result<()> {
        let (_, tokens, width) = self.hidden_states.dim();
        let sizes = [
            ("text_embeds", "numbers a row", self.text_embeds.ncols(), text_embedding_dim),
            ("text_encoder_hidden_states", "tokens a row", tokens, max_tokens),
            ("text_encoder_hidden_states", "numbers a token", width, hidden_size),
        ];
        match sizes.into_iter().find(|(_, _, found, wanted)| *found as i64 != *wanted) {
            Some((name, what, found, wanted)) => {
                refused(format!("{name} has {found} {what}, and this model takes {wanted}"))
            }
            None => Ok(()),
        }
    }
}

fn refused<T>(reason: String) -> Result<T> {
    Err(Error::Option { option: "conditions", reason })
}
