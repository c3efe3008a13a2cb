//! Scaled dot-product attention: over whole sequences, as diffusers computes it, and over cached keys and values.

use crate::error::{Error, Result};
use crate::kernels::{self, Segment};
use tch::{Device, Tensor};

/// Multi-head attention over whole sequences.
///
/// `query`, `key` and `value` are `(batch, tokens, heads · head_dim)`; the result has the shape of `query`. Scores are
/// scaled by `1 / √head_dim`, and `mask` is added to them, broadcast to `(batch, heads, tokens, tokens)`; a boolean
/// mask is true where a token attends to another.
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

/// Which rows of keys and values each token attends to: a range in each of several segments.
///
/// Sequences of different lengths are packed without padding. The CPU's kernel reads such ranges as they are. On other
/// devices, sequences are padded for `scaled_dot_product_attention`, by indices and a mask that are made here, once for
/// all blocks: a device waits for nothing when it attends.
#[derive(Debug)]
pub struct AttentionRanges(Layout);

#[derive(Debug)]
enum Layout {
    Packed(Vec<Ranges>),
    Padded(Padded),
}

/// The ranges of a segment, as the tensors of a [`Segment`].
#[derive(Debug)]
struct Ranges {
    /// First rows, int64, `(tokens)`.
    starts: Tensor,
    /// Ends of the ranges, exclusive, int64, `(tokens)`.
    ends: Tensor,
}

impl AttentionRanges {
    /// Ranges from pairs of start and end, exclusive, for each token in each segment, on `device`.
    ///
    /// # Errors
    /// If a segment has not as many ranges as the first, or memory runs out.
    pub fn new(segments: &[Vec<(i64, i64)>], device: Device) -> Result<Self> {
        match device {
            Device::Cpu => {
                Ok(Self(Layout::Packed(segments.iter().map(|pairs| Ranges::new(pairs)).collect::<Result<_>>()?)))
            }
            _ => Ok(Self(Layout::Padded(Padded::new(segments, device)?))),
        }
    }

    /// For packed sequences of the given lengths: each token attends to itself and those before it.
    ///
    /// # Errors
    /// As [`AttentionRanges::new`].
    pub fn causal(lens: &[i64], device: Device) -> Result<Self> {
        let of_sequence = |(start, end)| (start..end).map(move |token| (start, token + 1));
        Self::new(&[sequences(lens).flat_map(of_sequence).collect()], device)
    }

    /// For packed sequences of the given lengths: each token attends to its whole sequence.
    ///
    /// # Errors
    /// As [`AttentionRanges::new`].
    pub fn full(lens: &[i64], device: Device) -> Result<Self> {
        let of_sequence = |(start, end)| (start..end).map(move |_| (start, end));
        Self::new(&[sequences(lens).flat_map(of_sequence).collect()], device)
    }

    /// Multi-head attention of each token over its ranges. `query` is `(tokens, heads · head_dim)` and so is the result;
    /// `rows` has the keys and values of each segment, side by side, `(rows, 2 · heads · head_dim)`.
    ///
    /// # Errors
    /// If the shapes do not fit, a range is out of bounds, or memory runs out.
    pub fn attend(&self, query: &Tensor, heads: i64, rows: &[&Tensor]) -> Result<Tensor> {
        match &self.0 {
            Layout::Packed(segments) => {
                let segments = segments.iter().zip(rows);
                let segments: Vec<Segment> =
                    segments.map(|(Ranges { starts, ends }, rows)| Segment { rows, starts, ends }).collect();
                Ok(kernels::attend(query, heads, &segments)?)
            }
            Layout::Padded(padded) => padded.attend(query, heads, rows),
        }
    }
}

impl Ranges {
    fn new(pairs: &[(i64, i64)]) -> Result<Self> {
        let (starts, ends): (Vec<i64>, Vec<i64>) = pairs.iter().copied().unzip();
        Ok(Self { starts: Tensor::f_from_slice(&starts)?, ends: Tensor::f_from_slice(&ends)? })
    }
}

/// Groups of tokens that attend to the same rows, padded to one size.
#[derive(Debug)]
struct Padded {
    /// The tokens of each group, int64, `(groups · longest)`; padding repeats a token.
    tokens: Tensor,
    /// The place of each token among these, int64, `(tokens)`.
    places: Tensor,
    /// Of each segment the rows of each group, int64, `(groups · longest)`; padding repeats a row.
    rows: Vec<Tensor>,
    /// Whether a token of a group attends to a row, `(groups, 1, tokens, rows of all segments)`; `None` if each does to
    /// all.
    mask: Option<Tensor>,
    groups: i64,
}

impl Padded {
    fn new(segments: &[Vec<(i64, i64)>], device: Device) -> Result<Self> {
        let groups = groups(segments)?;
        let tokens = groups.iter().map(Vec::len).max().unwrap_or(0);
        // The rows of a segment that any token of a group attends to lie in this range.
        let hull = |segment: &[(i64, i64)], group: &[usize]| {
            let ranges = || group.iter().map(|&token| segment[token]).filter(|(start, end)| start < end);
            let (start, end) = (ranges().map(|range| range.0).min(), ranges().map(|range| range.1).max());
            (start.unwrap_or(0), end.unwrap_or(0))
        };
        let hulls: Vec<Vec<(i64, i64)>> =
            segments.iter().map(|segment| groups.iter().map(|group| hull(segment, group)).collect()).collect();
        let longest = |hulls: &Vec<(i64, i64)>| hulls.iter().map(|(start, end)| end - start).max().unwrap_or(0);
        let longest: Vec<i64> = hulls.iter().map(longest).collect();

        let mut mask = Vec::new();
        for (number, group) in groups.iter().enumerate() {
            for place in 0..tokens {
                for ((segment, hulls), &len) in segments.iter().zip(&hulls).zip(&longest) {
                    let first = hulls[number].0;
                    // What padding attends to is never read; to something it has to.
                    let (start, end) = group.get(place).map_or((first, first + len), |&token| segment[token]);
                    mask.extend((first..first + len).map(|row| (start..end).contains(&row)));
                }
            }
        }
        let mask = match mask.iter().all(|sees| *sees) {
            true => None,
            false => {
                let shape = [groups.len() as i64, 1, tokens as i64, longest.iter().sum()];
                Some(Tensor::f_from_slice(&mask)?.f_reshape(shape)?.f_to_device(device)?)
            }
        };

        let on_device = |values: &[i64]| -> Result<Tensor> { Ok(Tensor::f_from_slice(values)?.f_to_device(device)?) };
        let padded = groups.iter().flat_map(|group| (0..tokens).map(|place| *group.get(place).unwrap_or(&group[0])));
        let padded: Vec<i64> = padded.map(|token| token as i64).collect();
        let mut places = vec![0; groups.iter().map(Vec::len).sum()];
        for (number, group) in groups.iter().enumerate() {
            for (place, &token) in group.iter().enumerate() {
                places[token] = (number * tokens + place) as i64;
            }
        }
        let rows = |(hulls, &len): (&Vec<(i64, i64)>, &i64)| {
            // Of a group without rows here, the first row stands in.
            let of_group = |&(start, end): &(i64, i64)| (start..start + len).map(move |row| row.min((end - 1).max(0)));
            on_device(&hulls.iter().flat_map(of_group).collect::<Vec<i64>>())
        };
        Ok(Self {
            tokens: on_device(&padded)?,
            places: on_device(&places)?,
            rows: hulls.iter().zip(&longest).map(rows).collect::<Result<_>>()?,
            mask,
            groups: groups.len() as i64,
        })
    }

    fn attend(&self, query: &Tensor, heads: i64, rows: &[&Tensor]) -> Result<Tensor> {
        let width = query.size2()?.1;
        let padded = |x: &Tensor, index: &Tensor, width: i64| -> Result<Tensor> {
            Ok(x.f_index_select(0, index)?.f_reshape([self.groups, -1, width])?)
        };
        let rows = self.rows.iter().zip(rows).map(|(index, rows)| padded(rows, index, 2 * width));
        let key_value = Tensor::f_cat(&rows.collect::<Result<Vec<_>>>()?, 1)?;
        let (key, value) = (key_value.f_narrow(2, 0, width)?, key_value.f_narrow(2, width, width)?);
        let attended = attention(&padded(query, &self.tokens, width)?, &key, &value, heads, self.mask.as_ref())?;
        Ok(attended.f_reshape([-1, width])?.f_index_select(0, &self.places)?)
    }
}

/// The tokens in groups such that no row is seen from two of them, in the order of their first tokens.
fn groups(segments: &[Vec<(i64, i64)>]) -> Result<Vec<Vec<usize>>> {
    let tokens = segments.first().map_or(0, Vec::len);
    if segments.iter().any(|segment| segment.len() != tokens) {
        return Err(Error::Internal("a token lacks a range of a segment".into()));
    }
    // Of each token one before it in its group, or itself: the first of a group is its own.
    let mut parents: Vec<usize> = (0..tokens).collect();
    fn first(parents: &mut [usize], mut token: usize) -> usize {
        while parents[token] != token {
            parents[token] = parents[parents[token]];
            token = parents[token];
        }
        token
    }
    for segment in segments {
        let mut order: Vec<usize> = (0..tokens).filter(|&token| segment[token].0 < segment[token].1).collect();
        order.sort_by_key(|&token| segment[token]);
        let mut last: Option<(usize, i64)> = None;
        for token in order {
            let (start, end) = segment[token];
            last = match last {
                Some((other, until)) if start < until => {
                    let (one, other) = (first(&mut parents, token), first(&mut parents, other));
                    parents[one.max(other)] = one.min(other);
                    Some((token, until.max(end)))
                }
                _ => Some((token, end)),
            };
        }
    }
    let mut groups: Vec<Vec<usize>> = vec![Vec::new(); tokens];
    for token in 0..tokens {
        groups[first(&mut parents, token)].push(token);
    }
    groups.retain(|group| !group.is_empty());
    Ok(groups)
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
    use tch::Kind;

    /// Numbers as good as random. Not `Tensor::randn`: other tests draw noise from libtorch's one default generator.
    fn numbers(rows: i64, width: i64) -> Tensor {
        let angles = Tensor::arange(rows * width, (Kind::Float, Device::Cpu)) * 12.9898 + (rows + width);
        (angles.sin() * 2.0).reshape([rows, width])
    }

    fn rows(count: i64, width: i64) -> Tensor {
        numbers(count, 2 * width)
    }

    fn on_cpu(segments: &[Vec<(i64, i64)>]) -> [AttentionRanges; 2] {
        let padded = Padded::new(segments, Device::Cpu).unwrap();
        [AttentionRanges::new(segments, Device::Cpu).unwrap(), AttentionRanges(Layout::Padded(padded))]
    }

    #[test]
    fn the_kernel_the_padding_and_whole_sequences_agree() {
        for (heads, head_dim) in [(1, 1), (3, 5), (2, 64), (4, 33)] {
            let width = heads * head_dim;
            let query = numbers(4, width);
            let (first, second) = (rows(9, width), rows(2, width));
            let [packed, padded] =
                on_cpu(&[vec![(0, 9), (2, 2), (3, 7), (8, 9)], vec![(0, 1), (0, 2), (1, 1), (1, 2)]]);
            let fast = packed.attend(&query, heads, &[&first, &second]).unwrap();
            assert!(fast.allclose(&padded.attend(&query, heads, &[&first, &second]).unwrap(), 1e-5, 1e-6, false));
            // The second token attends to the second segment alone.
            let (key, value) = (second.narrow(1, 0, width).unsqueeze(0), second.narrow(1, width, width).unsqueeze(0));
            let whole = attention(&query.narrow(0, 1, 1).unsqueeze(0), &key, &value, heads, None).unwrap();
            assert!(fast.narrow(0, 1, 1).allclose(&whole.squeeze_dim(0), 1e-5, 1e-6, false));
        }
    }

    #[test]
    fn padding_is_not_seen() {
        let (heads, width) = (2, 16);
        let lens = [3, 7, 1];
        let causal = sequences(&lens).flat_map(|(start, end)| (start..end).map(move |token| (start, token + 1)));
        let causal: Vec<_> = causal.collect();
        // Two tokens more for each sequence, behind all: one that sees the sequence, and one that sees the first too.
        let behind = || sequences(&lens).flat_map(|range| [range; 2]);
        let before: Vec<_> = causal.iter().copied().chain(behind()).collect();
        let own = (0..3).flat_map(|pair| [(2 * pair, 2 * pair + 1), (2 * pair, 2 * pair + 2)]);
        let own: Vec<_> = causal.iter().map(|_| (0, 0)).chain(own).collect();
        let [packed, padded] = on_cpu(&[before, own]);
        let (query, first, second) = (numbers(17, width), rows(11, width), rows(6, width));
        let fast = packed.attend(&query, heads, &[&first, &second]).unwrap();
        let expected = padded.attend(&query, heads, &[&first, &second]).unwrap();
        assert!(fast.allclose(&expected, 1e-5, 1e-6, false));
        // Whole sequences of one length need no mask.
        let padded = Padded::new(&[vec![(0, 2), (0, 2), (2, 4), (2, 4)]], Device::Cpu).unwrap();
        assert!(padded.mask.is_none() && padded.groups == 2);
    }

    #[test]
    fn tokens_that_share_rows_are_a_group() {
        let of = |segments: &[Vec<(i64, i64)>]| groups(segments).unwrap();
        assert_eq!(of(&[vec![(0, 2), (5, 6), (1, 3), (3, 3)]]), [vec![0, 2], vec![1], vec![3]]);
        // One range spans two that come after it.
        assert_eq!(of(&[vec![(0, 9), (1, 2), (8, 9), (9, 10)]]), [vec![0, 1, 2], vec![3]]);
        // Apart in one segment, together in the other.
        assert_eq!(of(&[vec![(0, 1), (1, 2), (2, 3)], vec![(4, 6), (0, 0), (5, 7)]]), [vec![0, 2], vec![1]]);
        assert!(groups(&[vec![(0, 1)], vec![]]).is_err());
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn ranges_out_of_bounds_are_refused() {
        let query = numbers(1, 4);
        let rows = rows(3, 4);
        let ranges = |pairs: &[(i64, i64)]| AttentionRanges::new(&[pairs.to_vec()], Device::Cpu).unwrap();
        for pair in [(0, 4), (-1, 2), (2, 1)] {
            assert!(ranges(&[pair]).attend(&query, 2, &[&rows]).is_err(), "{pair:?}");
        }
        assert!(ranges(&[]).attend(&query, 2, &[&rows]).is_err());
        assert!(ranges(&[(0, 1)]).attend(&query, 3, &[&rows]).is_err(), "heads that do not divide the width");
    }

    #[test]
    fn nan_spreads_to_the_tokens_that_attend_to_it() {
        let query = Tensor::ones([2, 4], (Kind::Float, Device::Cpu));
        let rows = rows(2, 4);
        let _ = rows.get(1).fill_(f64::NAN);
        let ranges = AttentionRanges::new(&[vec![(0, 1), (0, 2)]], Device::Cpu).unwrap();
        let output = ranges.attend(&query, 1, &[&rows]).unwrap();
        assert_eq!(output.get(0).isnan().any().int64_value(&[]), 0);
        assert_eq!(output.get(1).isnan().all().int64_value(&[]), 1);
    }
}
