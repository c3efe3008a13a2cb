//! Scaled dot-product attention: over whole sequences, as diffusers computes it, and over cached keys and values.

use crate::error::Result;
use crate::kernels::{self, Segment};
use tch::{Device, Kind, Tensor};

/// Multi-head attention over whole sequences.
///
/// `query`, `key` and `value` are `(batch, tokens, heads · head_dim)`; the result has the shape of `query`. Scores are
/// scaled by `1 / √head_dim`, and `mask` is added to them, broadcast to `(batch, heads, tokens, tokens)`; a boolean mask is true
/// where a token attends to another.
///
/// # Errors
/// If the shapes do not fit or memory runs out.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, heads: i64, mask: Option<&Tensor>) -> Result<Tensor> {
    let query = split_heads(query, heads)?;
    let key = split_heads(key, heads)?;
    let value = split_heads(value, heads)?;
    let mask = match mask {
        Some(mask) if mask.is_floating_point() => Some(mask.f_to_kind(query.kind())?),
        mask => mask.map(Tensor::shallow_clone),
    };
    let scale: Option<f64> = None;
    let output = Tensor::f_scaled_dot_product_attention(&query, &key, &value, mask.as_ref(), 0.0, false, scale, false)?;
    Ok(output.f_transpose(1, 2)?.f_flatten(2, 3)?)
}

/// `(batch, tokens, heads · head_dim)` to `(batch, heads, tokens, head_dim)`.
fn split_heads(x: &Tensor, heads: i64) -> Result<Tensor> {
    let (batch, tokens, width) = x.size3()?;
    Ok(x.f_reshape([batch, tokens, heads, width / heads])?.f_transpose(1, 2)?)
}

/// Multi-head attention of each token over ranges of rows of keys and values.
///
/// `query` is `(tokens, heads · head_dim)` and so is the result. Sequences of different lengths are packed without padding.
///
/// # Errors
/// If the shapes do not fit, a range is out of bounds, or memory runs out.
pub fn attend(query: &Tensor, heads: i64, segments: &[Segment]) -> Result<Tensor> {
    match query.device() {
        Device::Cpu => Ok(kernels::attend(query, heads, segments)?),
        _ => attend_gathered(query, heads, segments),
    }
}

/// [`attend`] for any device: gathers each token's rows, padded to the longest, and masks the padding.
fn attend_gathered(query: &Tensor, heads: i64, segments: &[Segment]) -> Result<Tensor> {
    let (tokens, width) = query.size2()?;
    let (mut rows, mut indices, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    let mut offset = 0;
    for segment in segments {
        let counts = segment.ends.f_sub(segment.starts)?;
        let longest = counts.f_max()?.f_int64_value(&[])?;
        let offsets = Tensor::f_arange(longest, (Kind::Int64, query.device()))?.f_unsqueeze(0)?;
        let is_seen = offsets.f_less_tensor(&counts.f_unsqueeze(1)?)?;
        let index = offsets.f_add(&segment.starts.f_unsqueeze(1)?)?.f_add_scalar(offset)?;
        indices.push(index.f_mul(&is_seen.f_to_kind(Kind::Int64)?)?);
        seen.push(is_seen);
        rows.push(segment.rows.shallow_clone());
        offset += segment.rows.size()[0];
    }
    let (index, seen) = (Tensor::f_cat(&indices, 1)?, Tensor::f_cat(&seen, 1)?);
    let longest = index.size()[1];
    let gathered = Tensor::f_cat(&rows, 0)?.f_index_select(0, &index.f_reshape([-1])?)?;
    let gathered = gathered.f_reshape([tokens, longest, 2 * width])?;
    let (key, value) = (gathered.f_narrow(2, 0, width)?, gathered.f_narrow(2, width, width)?);
    let mask = seen.f_reshape([tokens, 1, 1, longest])?;
    Ok(attention(&query.f_unsqueeze(1)?, &key, &value, heads, Some(&mask))?.f_squeeze_dim(1)?)
}

/// Ranges of rows, one per token, as the tensors of a [`Segment`].
#[derive(Debug)]
pub struct Ranges {
    /// First rows, int64, `(tokens)`.
    pub starts: Tensor,
    /// Ends of the ranges, exclusive, int64, `(tokens)`.
    pub ends: Tensor,
}

impl Ranges {
    /// Ranges from pairs of start and end, on `device`.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(pairs: impl IntoIterator<Item = (i64, i64)>, device: Device) -> Result<Self> {
        let (starts, ends): (Vec<i64>, Vec<i64>) = pairs.into_iter().unzip();
        let tensor = |values: &[i64]| -> Result<Tensor> { Ok(Tensor::f_from_slice(values)?.f_to_device(device)?) };
        Ok(Self { starts: tensor(&starts)?, ends: tensor(&ends)? })
    }

    /// For packed sequences of the given lengths: each token attends to itself and those before it.
    ///
    /// # Errors
    /// As [`Ranges::new`].
    pub fn causal(lens: &[i64], device: Device) -> Result<Self> {
        Self::new(sequences(lens).flat_map(|(start, end)| (start..end).map(move |token| (start, token + 1))), device)
    }

    /// For packed sequences of the given lengths: each token attends to its whole sequence.
    ///
    /// # Errors
    /// As [`Ranges::new`].
    pub fn full(lens: &[i64], device: Device) -> Result<Self> {
        Self::new(sequences(lens).flat_map(|(start, end)| (start..end).map(move |_| (start, end))), device)
    }

    /// The segment of these ranges in `rows`.
    pub fn of<'a>(&'a self, rows: &'a Tensor) -> Segment<'a> {
        Segment { rows, starts: &self.starts, ends: &self.ends }
    }
}

/// Start and end of each of several packed sequences.
pub fn sequences(lens: &[i64]) -> impl Iterator<Item = (i64, i64)> {
    lens.iter().scan(0, |end, &len| {
        let start = *end;
        *end += len;
        Some((start, *end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers as good as random. Not `Tensor::randn`: other tests draw noise from libtorch's one default generator.
    fn numbers(rows: i64, width: i64) -> Tensor {
        let angles = Tensor::arange(rows * width, (Kind::Float, Device::Cpu)) * 12.9898 + (rows + width);
        (angles.sin() * 2.0).reshape([rows, width])
    }

    fn rows(count: i64, width: i64) -> Tensor {
        numbers(count, 2 * width)
    }

    #[test]
    fn the_kernel_the_gathering_and_whole_sequences_agree() {
        for (heads, head_dim) in [(1, 1), (3, 5), (2, 64), (4, 33)] {
            let width = heads * head_dim;
            let query = numbers(4, width);
            let (first, second) = (rows(9, width), rows(2, width));
            let ranges = Ranges::new([(0, 9), (2, 2), (3, 7), (8, 9)], Device::Cpu).unwrap();
            let others = Ranges::new([(0, 1), (0, 2), (1, 1), (1, 2)], Device::Cpu).unwrap();
            let segments = [ranges.of(&first), others.of(&second)];
            let fast = attend(&query, heads, &segments).unwrap();
            let gathered = attend_gathered(&query, heads, &segments).unwrap();
            assert!(fast.allclose(&gathered, 1e-5, 1e-6, false));
            // The second token attends to the second segment alone.
            let (key, value) = (second.narrow(1, 0, width).unsqueeze(0), second.narrow(1, width, width).unsqueeze(0));
            let whole = attention(&query.narrow(0, 1, 1).unsqueeze(0), &key, &value, heads, None).unwrap();
            assert!(fast.narrow(0, 1, 1).allclose(&whole.squeeze_dim(0), 1e-5, 1e-6, false));
        }
    }

    #[test]
    fn ranges_out_of_bounds_are_refused() {
        let query = numbers(1, 4);
        let rows = rows(3, 4);
        for pair in [(0, 4), (-1, 2), (2, 1)] {
            let ranges = Ranges::new([pair], Device::Cpu).unwrap();
            assert!(attend(&query, 2, &[ranges.of(&rows)]).is_err(), "{pair:?}");
        }
        let short = Ranges::new([], Device::Cpu).unwrap();
        assert!(attend(&query, 2, &[short.of(&rows)]).is_err());
        assert!(attend(&query, 3, &[]).is_err(), "heads that do not divide the width");
    }

    #[test]
    fn nan_spreads_to_the_tokens_that_attend_to_it() {
        let query = Tensor::ones([2, 4], (Kind::Float, Device::Cpu));
        let rows = rows(2, 4);
        let _ = rows.get(1).fill_(f64::NAN);
        let ranges = Ranges::new([(0, 1), (0, 2)], Device::Cpu).unwrap();
        let output = attend(&query, 1, &[ranges.of(&rows)]).unwrap();
        assert_eq!(output.get(0).isnan().any().int64_value(&[]), 0);
        assert_eq!(output.get(1).isnan().all().int64_value(&[]), 1);
    }
}
