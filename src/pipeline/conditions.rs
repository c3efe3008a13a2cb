//! Text conditions that were made elsewhere, in place of prompts: prompt weighting, mixed or optimized embeddings.

use super::load::Pipeline;
use super::request::Prompt;
use crate::nn::layers::attention::sequences;
use crate::nn::prior::TextCondition;
use crate::{Error, Result};
use ndarray::{Array2, Array3, Axis, concatenate};
use std::sync::Arc;
use tch::Tensor;

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

    /// The positions of the tokens of a row that are not hidden.
    fn positions(&self, row: usize) -> impl Iterator<Item = usize> {
        self.mask.row(row).into_iter().enumerate().filter_map(|(position, counts)| counts.then_some(position))
    }
}

fn refused<T>(reason: String) -> Result<T> {
    Err(Error::Option { option: "conditions", reason })
}

impl Pipeline {
    /// Sets the conditions that [`Prompt::Condition`] refers to.
    ///
    /// # Errors
    /// [`Error::Option`] if the model takes other sizes.
    pub fn set_conditions(&mut self, conditions: Arc<Conditions>) -> Result<()> {
        let (_, tokens, width) = conditions.hidden_states.dim();
        let sizes = [
            ("text_embeds", "numbers a row", conditions.text_embeds.ncols(), self.text.config.projection_dim),
            ("text_encoder_hidden_states", "tokens a row", tokens, self.prior_config.num_embeddings()),
            ("text_encoder_hidden_states", "numbers a token", width, self.text.config.hidden_size),
        ];
        if let Some((name, what, found, wanted)) =
            sizes.into_iter().find(|(_, _, found, wanted)| *found as i64 != *wanted)
        {
            return refused(format!("{name} has {found} {what}, and this model takes {wanted}"));
        }
        // A cache may be of the conditions before.
        (self.conditions, self.negative) = (Some(conditions), None);
        Ok(())
    }

    /// The condition of prompts that are not all texts. `encoded` is that of the texts among them.
    pub(super) fn mix(&self, prompts: &[Prompt<&str>], encoded: Option<TextCondition>) -> Result<TextCondition> {
        let placement = self.encoder_placement();
        let on_device = |values: &[f32], shape: [i64; 2]| -> Result<Tensor> {
            let tensor = Tensor::f_from_slice(values)?.f_reshape(shape)?;
            Ok(tensor.f_to_device(placement.device)?.f_to_kind(placement.precision.kind())?)
        };
        let of_texts: Vec<(i64, i64)> = encoded.iter().flat_map(|encoded| sequences(&encoded.lens)).collect();
        let mut of_texts = of_texts.into_iter().zip(0..);
        let (mut states, mut lens, mut embeds, mut positions) = (Vec::new(), Vec::new(), Vec::new(), Vec::<i64>::new());
        for prompt in prompts {
            let len = match (prompt, &encoded, &self.conditions) {
                (Prompt::Text(_), Some(encoded), _) => {
                    let next = of_texts.next();
                    let ((start, end), index) = next.ok_or_else(|| Error::Internal("a text was not encoded".into()))?;
                    states.push(encoded.states.f_narrow(0, start, end - start)?);
                    embeds.push(encoded.embeds.f_narrow(0, index, 1)?);
                    positions.extend(0..end - start);
                    end - start
                }
                (Prompt::Condition(row), _, Some(conditions)) if *row < conditions.text_embeds.nrows() => {
                    let of_row: Vec<usize> = conditions.positions(*row).collect();
                    let (len, (_, _, width)) = (of_row.len() as i64, conditions.hidden_states.dim());
                    let kept = conditions.hidden_states.index_axis(Axis(0), *row).select(Axis(0), &of_row);
                    let embed = conditions.text_embeds.row(*row).to_vec();
                    states.push(on_device(kept.as_slice().unwrap_or_default(), [len, width as i64])?);
                    embeds.push(on_device(&embed, [1, embed.len() as i64])?);
                    positions.extend(of_row.iter().map(|position| *position as i64));
                    len
                }
                _ => return Err(Error::Internal(format!("there is no {prompt}"))),
            };
            lens.push(len);
        }
        // Without a token that is hidden before others they are counted through.
        let has_holes = sequences(&lens).zip(&lens).any(|((start, end), len)| {
            positions[start as usize..end as usize].last().is_some_and(|last| last + 1 != *len)
        });
        let positions = match has_holes {
            true => Some(Tensor::f_from_slice(&positions)?.f_to_device(placement.device)?),
            false => None,
        };
        let (states, embeds) = (Tensor::f_cat(&states, 0)?, Tensor::f_cat(&embeds, 0)?);
        Ok(TextCondition { states, lens, positions, embeds })
    }
}
