//! Shards: several runs that share the rows of one.

use crate::bad_input;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which share of the rows a run computes, as in `--shard 1/4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Counted from 1.
    pub index: u64,
    /// The number of shards.
    pub count: u64,
}

impl Shard {
    /// The only shard, as the record of an unsharded output has it.
    pub const WHOLE: Self = Self { index: 1, count: 1 };
}

impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}/{}", self.index, self.count)
    }
}

/// Row indices in ascending order, as regularly spaced runs: `(start, len, step, times)` is `len` rows from each of
/// `start`, `start + step`, … (`times` of them).
///
/// A block of rows and every n-th row are both one entry, so that a list of millions of rows is short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowRuns(Vec<(u64, u64, u64, u64)>);

impl RowRuns {
    /// The rows `0..rows`.
    pub fn all(rows: u64) -> Self {
        Self(if rows > 0 { vec![(0, rows, 0, 1)] } else { Vec::new() })
    }

    /// Appends a row, which must come after all others.
    ///
    /// # Errors
    /// If it does not.
    pub fn push(&mut self, row: u64) -> Result<()> {
        if let Some(end) = self.end().filter(|end| row < *end) {
            anyhow::bail!("row {row} comes after row {}", end.saturating_sub(1));
        }
        match self.0.last_mut() {
            Some((start, len, _, 1)) if row == *start + *len => *len += 1,
            // A run that outgrows its pattern: its last repetition becomes an entry of its own.
            Some((start, len, step, times)) if row == *start + *step * (*times - 1) + *len => {
                *times -= 1;
                let last = (*start + *step * *times, *len + 1, 0, 1);
                if *times == 1 {
                    *step = 0;
                }
                self.0.push(last);
            }
            _ => {
                self.fold_last();
                self.0.push((row, 1, 0, 1));
            }
        }
        Ok(())
    }

    /// Folds the last run into its pattern.
    pub fn finish(mut self) -> Self {
        self.fold_last();
        self
    }

    /// Merges the last run into the entry before it, if it continues that pattern.
    fn fold_last(&mut self) {
        let [.., before, last] = self.0.as_mut_slice() else { return };
        let (start, len, step, times) = *before;
        let fits = last.1 == len && last.3 == 1 && (times == 1 || last.0 == start + step * times);
        if fits {
            *before = (start, len, if times == 1 { last.0 - start } else { step }, times + 1);
            self.0.pop();
        }
    }

    /// The number of rows.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, len, _, times)| len * times).sum()
    }

    /// The last row.
    pub fn last(&self) -> Option<u64> {
        self.end().map(|end| end - 1)
    }

    /// One past the last row.
    fn end(&self) -> Option<u64> {
        self.0.last().map(|(start, len, step, times)| start + step * (times - 1) + len)
    }

    /// Checks a list that was read from a file: rows ascend and do not overflow.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if they do not.
    pub fn check(&self) -> Result<()> {
        let mut from = 0;
        for &(start, len, step, times) in &self.0 {
            let end =
                times.checked_sub(1).and_then(|more| step.checked_mul(more)?.checked_add(start)?.checked_add(len));
            let apart = times == 1 || step >= len;
            from = end
                .filter(|_| start >= from && len > 0 && apart)
                .ok_or_else(|| bad_input!("its list of rows is invalid at ({start}, {len}, {step}, {times})"))?;
        }
        Ok(())
    }

    /// The rows of a list that was checked or built by [`RowRuns::push`].
    pub fn into_rows(self) -> impl Iterator<Item = u64> {
        self.0.into_iter().flat_map(|(start, len, step, times)| {
            (0..times).flat_map(move |time| {
                let start = start + step * time;
                start..start + len
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs(rows: &[u64]) -> RowRuns {
        let mut runs = RowRuns::default();
        rows.iter().for_each(|row| runs.push(*row).unwrap());
        runs.finish()
    }

    #[test]
    fn blocks_and_strides_are_one_entry() {
        assert_eq!(runs(&[5, 6, 7, 8]), RowRuns(vec![(5, 4, 0, 1)]));
        assert_eq!(runs(&[1, 4, 7, 10]), RowRuns(vec![(1, 1, 3, 4)]));
        assert_eq!(runs(&[2, 3, 8, 9, 14, 15]), RowRuns(vec![(2, 2, 6, 3)]));
        assert_eq!(runs(&[]), RowRuns(vec![]));
    }

    #[test]
    fn rows_must_ascend() {
        let mut rows = runs(&[3]);
        assert!(rows.push(3).is_err() && rows.push(2).is_err() && rows.push(4).is_ok());
    }

    #[test]
    fn invalid_lists_are_refused() {
        let wrong = [
            vec![(0, 0, 0, 1)],
            vec![(0, 1, 0, 0)],
            vec![(0, 2, 1, 2)],
            vec![(5, 1, 0, 1), (5, 1, 0, 1)],
            vec![(u64::MAX, 1, 0, 1)],
            vec![(0, 1, u64::MAX, u64::MAX)],
        ];
        for runs in wrong {
            assert!(RowRuns(runs.clone()).check().is_err(), "{runs:?}");
        }
    }

    proptest! {
        #[test]
        fn rows_round_trip(gaps in proptest::collection::vec(1_u64..4, 0..200)) {
            let rows: Vec<u64> = gaps.iter().scan(0, |row, gap| { *row += gap; Some(*row) }).collect();
            let runs = runs(&rows);
            runs.check().unwrap();
            prop_assert_eq!(runs.into_rows().collect::<Vec<_>>(), rows);
        }
    }
}
