//! Exact search for the rows of largest cosine.
//!
//! Blocks of a bank are multiplied with all queries in float32, whose result only says which rows may be among the
//! best: each of these is computed again in float64. What is found, its order and its scores are those of a search in
//! float64 over everything, and depend neither on blocks nor on the kernels of a library.

use anyhow::Result;
use half::{bf16, f16};
use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, BinaryHeap};
use tch::{Kind, Tensor};

/// A type of numbers that embeddings are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    /// float16.
    F16,
    /// bfloat16.
    Bf16,
    /// float32.
    F32,
    /// float64.
    F64,
}

impl Float {
    /// Bytes per number.
    pub fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::F16 => Kind::Half,
            Self::Bf16 => Kind::BFloat16,
            Self::F32 => Kind::Float,
            Self::F64 => Kind::Double,
        }
    }

    /// The numbers in little-endian bytes.
    fn widen(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Self::F16 => bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f64()).collect(),
            Self::Bf16 => bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f64()).collect(),
            Self::F32 => bytes.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
            Self::F64 => bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
        }
    }
}

/// Consecutive rows of a bank.
#[derive(Debug)]
pub struct Block<'a> {
    /// The number of the first in the bank.
    pub first: u64,
    /// The embedding dimension.
    pub dim: usize,
    /// The type of the numbers.
    pub float: Float,
    /// The numbers, `(rows, dim)`, little-endian in C order.
    pub bytes: Cow<'a, [u8]>,
}

impl Block<'_> {
    fn row_bytes(&self) -> usize {
        self.dim * self.float.size()
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes().max(1)
    }

    /// The numbers of the `place`-th row.
    pub fn numbers(&self, place: usize) -> Vec<f64> {
        let start = place * self.row_bytes();
        self.float.widen(&self.bytes[start..start + self.row_bytes()])
    }

    /// The direction of the `place`-th row; `None` if it has NaN or infinity.
    pub fn direction(&self, place: usize) -> Option<Direction> {
        Direction::of(self.numbers(place))
    }

    /// All rows in float32, `(rows, dim)`.
    fn tensor(&self) -> Result<Tensor> {
        let shape = [self.rows() as i64, self.dim as i64];
        Ok(Tensor::f_from_data_size(&self.bytes, &shape, self.float.kind())?.f_to_kind(Kind::Float)?)
    }
}

/// A vector of length 1, or zeros.
#[derive(Debug, Clone, PartialEq)]
pub struct Direction(Vec<f64>);

impl Direction {
    /// The direction of a vector, zeros for zeros; `None` if it has NaN or infinity.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        if values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        // The squares of numbers that are not near 1 may overflow.
        let largest = values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        if largest > 0.0 {
            values.iter_mut().for_each(|value| *value /= largest);
            let length = dot(&values, &values).sqrt();
            values.iter_mut().for_each(|value| *value /= length);
        }
        Some(Self(values))
    }

    /// The cosine of the angle between two directions, 0 if one is zeros.
    pub fn cosine(&self, other: &Self) -> f64 {
        dot(&self.0, &other.0).clamp(-1.0, 1.0) + 0.0
    }
}

/// The dot product, summed in the same order on every machine.
fn dot(one: &[f64], other: &[f64]) -> f64 {
    const LANES: usize = 8;
    let (ones, rest) = one.as_chunks::<LANES>();
    let (others, other_rest) = other.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (one, other) in ones.iter().zip(others) {
        for lane in 0..LANES {
            sums[lane] += one[lane] * other[lane];
        }
    }
    let rest: f64 = rest.iter().zip(other_rest).map(|(one, other)| one * other).sum();
    sums.iter().sum::<f64>() + rest
}

/// A row that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Its number in the bank.
    pub row: u64,
    /// Its cosine with the query.
    pub score: f64,
}

impl Eq for Hit {}

impl Ord for Hit {
    /// The better one is the greater: of larger cosine or, of equal ones, of smaller number.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.row.cmp(&self.row))
    }
}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A search over a bank that comes in blocks.
#[derive(Debug)]
pub struct Search {
    queries: Vec<Direction>,
    /// The same in float32, `(queries, dim)`.
    tensor: Tensor,
    /// Rows to find for each query.
    top: usize,
    /// How far a cosine in float32 may be off.
    margin: f32,
    /// The best so far of each query, the worst of them on top.
    best: Vec<BinaryHeap<Reverse<Hit>>>,
    /// Rows with NaN or infinity.
    unusable: BTreeSet<u64>,
}

impl Search {
    /// Begins a search for the `top` nearest rows of each query. All are of one dimension.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(queries: Vec<Direction>, top: usize) -> Result<Self> {
        let dim = queries.first().map_or(0, |query| query.0.len());
        let numbers: Vec<f32> = queries.iter().flat_map(|query| &query.0).map(|value| *value as f32).collect();
        let tensor = Tensor::f_from_slice(&numbers)?.f_view([queries.len() as i64, dim as i64])?;
        // A product of n terms is off by n units in the last place at most, a length by half as much, and the numbers
        // that they are made of by one each.
        let margin = (2.0 * dim as f64 + 16.0) * f64::from(f32::EPSILON);
        let best = vec![BinaryHeap::new(); queries.len()];
        Ok(Self { queries, tensor, top, margin: margin as f32, best, unusable: BTreeSet::new() })
    }

    /// Searches the next rows.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn add(&mut self, block: &Block) -> Result<()> {
        let rows = block.rows();
        let bank = block.tensor()?;
        let lengths = bank.f_linalg_norm(2.0, [1_i64].as_slice(), false, Kind::Float)?;
        let cosines = self.tensor.f_matmul(&bank.f_tr()?)?.f_div(&lengths)?;
        let (lengths, cosines) = (to_vec(&lengths)?, to_vec(&cosines)?);
        // A length whose square float32 cannot hold says nothing.
        let is_sure: Vec<bool> = lengths.iter().map(|length| (1e-15..1e18).contains(length)).collect();
        for (query, cosines) in cosines.chunks_exact(rows).enumerate() {
            for (place, cosine) in cosines.iter().enumerate() {
                if is_sure[place] && *cosine < self.least(query) {
                    continue;
                }
                let row = block.first + place as u64;
                let Some(direction) = block.direction(place) else {
                    self.unusable.insert(row);
                    continue;
                };
                let score = self.queries[query].cosine(&direction);
                let best = &mut self.best[query];
                best.push(Reverse(Hit { row, score }));
                if best.len() > self.top {
                    best.pop();
                }
            }
        }
        Ok(())
    }

    /// The least cosine in float32 that a row may be found with.
    fn least(&self, query: usize) -> f32 {
        let best = &self.best[query];
        match best.peek() {
            Some(Reverse(worst)) if best.len() == self.top => worst.score as f32 - self.margin,
            _ => f32::NEG_INFINITY,
        }
    }

    /// What was found for each query, the best first, and the rows with NaN or infinity.
    pub fn finish(self) -> (Vec<Vec<Hit>>, BTreeSet<u64>) {
        let sorted = |best: BinaryHeap<Reverse<Hit>>| best.into_sorted_vec().into_iter().map(|Reverse(hit)| hit);
        (self.best.into_iter().map(|best| sorted(best).collect()).collect(), self.unusable)
    }
}

fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    let mut values = vec![0.0; tensor.numel()];
    let len = values.len();
    tensor.f_contiguous()?.f_copy_data(&mut values, len)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rows of numbers as a block of a type holds them.
    fn block(first: u64, float: Float, rows: &[Vec<f64>]) -> Block<'static> {
        let bytes = rows.iter().flatten().flat_map(|&value| match float {
            Float::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
            Float::Bf16 => bf16::from_f64(value).to_le_bytes().to_vec(),
            Float::F32 => (value as f32).to_le_bytes().to_vec(),
            Float::F64 => value.to_le_bytes().to_vec(),
        });
        Block { first, dim: rows[0].len(), float, bytes: Cow::Owned(bytes.collect()) }
    }

    /// The naive search: every cosine in float64, then a stable sort.
    fn naive(query: &[f64], bank: &Block, top: usize) -> Vec<Hit> {
        let length = |row: &[f64]| row.iter().map(|value| value * value).sum::<f64>().sqrt();
        let mut hits: Vec<Hit> = (0..bank.rows())
            .map(|place| {
                let row = bank.numbers(place);
                let product: f64 = row.iter().zip(query).map(|(one, other)| one * other).sum();
                let lengths = length(&row) * length(query);
                Hit { row: place as u64, score: if lengths > 0.0 { product / lengths } else { 0.0 } }
            })
            .collect();
        hits.sort_by(|one, other| other.score.total_cmp(&one.score));
        hits.truncate(top);
        hits
    }

    fn found(queries: &[Vec<f64>], blocks: &[Block], top: usize) -> (Vec<Vec<Hit>>, BTreeSet<u64>) {
        let queries = queries.iter().map(|query| Direction::of(query.clone()).unwrap()).collect();
        let mut search = Search::new(queries, top).unwrap();
        blocks.iter().for_each(|block| search.add(block).unwrap());
        search.finish()
    }

    /// Few values, so that rows are equal, opposite or zeros.
    fn rows(dim: usize, max: usize) -> impl Strategy<Value = Vec<Vec<f64>>> {
        let value = prop_oneof![3 => (-2..=2_i8).prop_map(f64::from), 1 => -1.0..1.0_f64];
        prop::collection::vec(prop::collection::vec(value, dim), 1..max)
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_a_naive_search_finds(
            (bank, queries) in (1..20_usize).prop_flat_map(|dim| (rows(dim, 60), rows(dim, 4))),
            float in prop::sample::select(vec![Float::F16, Float::Bf16, Float::F32, Float::F64]),
            top in 1..70_usize,
            block_rows in 1..70_usize,
        ) {
            let blocks: Vec<Block> = bank
                .chunks(block_rows)
                .enumerate()
                .map(|(number, rows)| block((number * block_rows) as u64, float, rows))
                .collect();
            let whole = block(0, float, &bank);
            let (found, unusable) = found(&queries, &blocks, top);
            prop_assert!(unusable.is_empty());
            for (query, found) in queries.iter().zip(found) {
                let expected = naive(query, &whole, top);
                prop_assert_eq!(found.len(), expected.len());
                let all = naive(query, &whole, usize::MAX);
                for (found, expected) in found.iter().zip(&expected) {
                    prop_assert!((found.score - expected.score).abs() < 1e-12);
                    let own = all.iter().find(|hit| hit.row == found.row).unwrap();
                    prop_assert!((own.score - found.score).abs() < 1e-12, "row {} has another score", found.row);
                }
                prop_assert!(found.is_sorted_by(|one, other| one > other), "not in order");
            }
        }
    }

    #[test]
    fn equal_rows_are_found_in_their_order() {
        let bank: Vec<Vec<f64>> = (0..500).map(|row| vec![0.3, f64::from(row % 2), 0.7]).collect();
        let blocks: Vec<Block> =
            (0..5).map(|at| block(at * 100, Float::F32, &bank[at as usize * 100..][..100])).collect();
        let (found, _) = found(&[vec![0.3, 0.0, 0.7]], &blocks, 4);
        assert_eq!(found[0].iter().map(|hit| hit.row).collect::<Vec<_>>(), [0, 2, 4, 6]);
    }

    #[test]
    fn rows_that_float32_cannot_compare_are_compared() {
        let scaled = |exponent| [3.0, 4.0].map(|value: f64| value * 2_f64.powi(exponent)).to_vec();
        let bank = [scaled(-660), vec![4e200, 3e200], vec![0.0, 0.0], scaled(100), vec![1e-300, 0.0]];
        let (found, unusable) = found(&[vec![3.0, 4.0], vec![-1.0, 0.0]], &[block(7, Float::F64, &bank)], 4);
        assert_eq!(found[0].iter().map(|hit| hit.row).collect::<Vec<_>>(), [7, 10, 8, 11]);
        assert!((found[0][1].score - 1.0).abs() < 1e-15 && (found[0][2].score - 0.96).abs() < 1e-15);
        assert_eq!((found[1][0], unusable.len()), (Hit { row: 9, score: 0.0 }, 0));
    }

    #[test]
    fn rows_without_a_direction_are_left_out_and_told() {
        let bank = [vec![f64::NAN, 1.0], vec![1.0, 1.0], vec![f64::INFINITY, 0.0], vec![1.0, 0.0]];
        for float in [Float::F16, Float::Bf16, Float::F32, Float::F64] {
            let (found, unusable) = found(&[vec![1.0, 0.0]], &[block(0, float, &bank)], 9);
            assert_eq!(found[0].iter().map(|hit| hit.row).collect::<Vec<_>>(), [3, 1], "{float:?}");
            assert_eq!(unusable, BTreeSet::from([0, 2]));
        }
    }

    #[test]
    fn zeros_have_the_cosine_0_with_everything() {
        let (found, _) = found(&[vec![0.0, 0.0]], &[block(0, Float::F32, &[vec![1.0, 0.0], vec![0.0, 0.0]])], 5);
        assert_eq!(found[0], [Hit { row: 0, score: 0.0 }, Hit { row: 1, score: 0.0 }]);
    }
}
