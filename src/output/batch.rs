//! Rows on their way to the outputs.

use super::arrays::{ArrayName, Arrays};
use anyhow::{Result, bail};
use ndarray::{ArrayView2, s};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ops::Range;
use std::sync::Arc;

/// A row without its embedding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRow {
    /// Its index in the whole, which sharding does not change.
    pub row: u64,
    /// The id that the prompts give it.
    pub id: Option<String>,
    /// The prompt.
    #[serde(serialize_with = "serialize_text", deserialize_with = "deserialize_text")]
    pub prompt: Arc<str>,
    /// The seed of its noise.
    pub seed: u64,
}

fn serialize_text<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

fn deserialize_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    String::deserialize(deserializer).map(Arc::from)
}

/// Rows that were computed together.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// One for each row of the arrays.
    pub rows: &'a [OutputRow],
    /// `(rows, dim)`, if computed.
    pub image: Option<ArrayView2<'a, f32>>,
    /// `(rows, dim)`, if computed.
    pub negative: Option<ArrayView2<'a, f32>>,
    /// `(rows, dim)`, if wanted.
    pub text: Option<ArrayView2<'a, f32>>,
    /// `(rows, draws)`, if wanted.
    pub scores: Option<ArrayView2<'a, f32>>,
}

impl<'a> Batch<'a> {
    /// An array, if it is there.
    pub fn values(&self, array: ArrayName) -> Option<ArrayView2<'a, f32>> {
        match array {
            ArrayName::Image => self.image,
            ArrayName::Negative => self.negative,
            ArrayName::Text => self.text,
            ArrayName::Scores => self.scores,
        }
    }

    /// The slot of an array.
    pub fn values_mut(&mut self, array: ArrayName) -> &mut Option<ArrayView2<'a, f32>> {
        match array {
            ArrayName::Image => &mut self.image,
            ArrayName::Negative => &mut self.negative,
            ArrayName::Text => &mut self.text,
            ArrayName::Scores => &mut self.scores,
        }
    }

    /// Some of its rows.
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        let rows = &self.rows[range.clone()];
        let values =
            |values: Option<ArrayView2<'a, f32>>| values.map(|values| values.slice_move(s![range.clone(), ..]));
        Self {
            rows,
            image: values(self.image),
            negative: values(self.negative),
            text: values(self.text),
            scores: values(self.scores),
        }
    }

    /// The embedding dimension; of scores alone, their number.
    ///
    /// # Errors
    /// If an array of `arrays` is missing or has another number of rows, or the embeddings differ in dimension.
    pub(crate) fn dim(&self, arrays: Arrays) -> Result<usize> {
        let mut dim = None;
        for array in arrays.names() {
            let Some(values) = self.values(*array) else { bail!("a batch without {}", array.name()) };
            let has_own_width = *array == ArrayName::Scores && arrays != Arrays::SCORES;
            let fits = has_own_width || dim.is_none_or(|dim| dim == values.ncols());
            if values.nrows() != self.rows.len() || !fits || values.ncols() == 0 {
                bail!("{} of shape {:?} for {} rows", array.name(), values.shape(), self.rows.len());
            }
            if !has_own_width {
                dim = Some(values.ncols());
            }
        }
        dim.ok_or_else(|| anyhow::anyhow!("no array to write"))
    }
}

/// Whether more rows are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    /// They are.
    Continue,
    /// The reader of a stream has closed it: the run is over, successfully.
    ReaderGone,
}

/// The run was asked to stop before its output was complete.
#[derive(Debug, thiserror::Error)]
#[error("stopped before the output was complete")]
pub struct Interrupted;
