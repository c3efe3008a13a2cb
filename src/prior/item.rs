//! What is mixed.

use ndarray::ArrayView1;

/// What [`crate::Prior::interpolate`] mixes. A picture is an embedding, of [`crate::Prior::encode_images`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Item<'a> {
    /// A prompt, of which the prior makes an embedding.
    Prompt(&'a str),
    /// An image embedding, `(embedding_dim)`.
    Embedding(ArrayView1<'a, f32>),
}

impl<'a> From<&'a str> for Item<'a> {
    fn from(prompt: &'a str) -> Self {
        Self::Prompt(prompt)
    }
}

impl<'a> From<ArrayView1<'a, f32>> for Item<'a> {
    fn from(embedding: ArrayView1<'a, f32>) -> Self {
        Self::Embedding(embedding)
    }
}
