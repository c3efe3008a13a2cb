//! Shards: several runs that share the rows of one, and what each notes so that they can be joined and checked.

use super::fingerprint::Fingerprint;
use super::{Arrays, OutputDtype, OutputRow};
use crate::bad_input;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The key of a shard's record in a file's own metadata.
pub const METADATA_KEY: &str = "prior_embed_shard";

/// Which share of a run's rows a run computes, as in `--shard 1/4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Counted from 1.
    pub index: u64,
    /// How many runs share the rows.
    pub count: u64,
}

impl Shard {
    /// The only share, as the record of an output that is no shard has it.
    pub const WHOLE: Self = Self { index: 1, count: 1 };
}

impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}/{}", self.index, self.count)
    }
}

/// What the output of a shard says of itself: in the metadata of Parquet and safetensors, else in a file beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShardRecord {
    /// Counted from 1.
    pub index: u64,
    /// How many shards there are.
    pub count: u64,
    /// Rows of all shards together.
    pub total_rows: u64,
    /// The rows of the whole that this shard holds, in the order of its own.
    pub rows: RowRuns,
    /// The arrays in the file.
    pub arrays: Arrays,
    /// How numbers are written.
    pub dtype: OutputDtype,
    /// Numbers in a row.
    pub dim: usize,
    /// What decided the rows.
    pub fingerprint: Fingerprint,
    /// Of what is in the file.
    pub checksums: Checksums,
}

/// CRC-32 of what an output holds, the same in every form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums {
    /// Of the bytes of each array's numbers, in the order of [`Arrays::names`].
    pub arrays: Vec<u32>,
    /// Of what is known of the rows, an [`OutputRow`] a line as JSON, where the form has a place for that.
    pub rows: Option<u32>,
}

/// [`Checksums`] of rows that are read one by one.
#[derive(Debug)]
pub struct Summing {
    dtype: OutputDtype,
    arrays: Vec<crc32fast::Hasher>,
    rows: crc32fast::Hasher,
    bytes: Vec<u8>,
}

impl Summing {
    /// Begins, for what a record tells of.
    pub fn new(record: &ShardRecord) -> Self {
        let arrays = vec![crc32fast::Hasher::new(); record.arrays.names().len()];
        Self { dtype: record.dtype, arrays, rows: crc32fast::Hasher::new(), bytes: Vec::new() }
    }

    /// Adds a row: what is known of it, if anything, and each array's numbers.
    ///
    /// # Errors
    /// If what is known cannot be written as JSON.
    pub fn add(&mut self, known: Option<&OutputRow>, numbers: &[Vec<f32>]) -> Result<()> {
        for (hasher, numbers) in self.arrays.iter_mut().zip(numbers) {
            self.bytes.clear();
            self.dtype.encode(numbers, &mut self.bytes);
            hasher.update(&self.bytes);
        }
        if let Some(known) = known {
            self.bytes.clear();
            serde_json::to_writer(&mut self.bytes, known)?;
            self.bytes.push(b'\n');
            self.rows.update(&self.bytes);
        }
        Ok(())
    }

    /// Whether the rows so far are those of `checksums`.
    pub fn is(&self, checksums: &Checksums) -> bool {
        let arrays = self.arrays.iter().map(|hasher| hasher.clone().finalize());
        let rows = self.rows.clone().finalize();
        arrays.eq(checksums.arrays.iter().copied()) && checksums.rows.is_none_or(|expected| expected == rows)
    }
}

/// Numbers of rows in rising order, as runs of neighbours at regular distances: `(start, len, step, times)` stands for
/// `len` rows from each of `start`, `start + step`, … (`times` of them).
///
/// A block of rows and every n-th row are both one entry, so that a note on millions of rows is short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowRuns(Vec<(u64, u64, u64, u64)>);

impl RowRuns {
    /// All of so many rows.
    pub fn all(rows: u64) -> Self {
        Self(if rows > 0 { vec![(0, rows, 0, 1)] } else { Vec::new() })
    }

    /// Appends a row, which must come after all rows so far.
    ///
    /// # Errors
    /// If it does not.
    pub fn push(&mut self, row: u64) -> Result<()> {
        if let Some(end) = self.end().filter(|end| row < *end) {
            anyhow::bail!("row {row} comes after row {}", end.saturating_sub(1));
        }
        match self.0.last_mut() {
            Some((start, len, _, 1)) if row == *start + *len => *len += 1,
            // A repeated run that grows past its pattern: its last repetition becomes an entry of its own.
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

    /// The rows, with the pattern found to the end.
    pub fn finish(mut self) -> Self {
        self.fold_last();
        self
    }

    /// Joins the last run to the entry before it, if it goes on with its pattern.
    fn fold_last(&mut self) {
        let [.., before, last] = self.0.as_mut_slice() else { return };
        let (start, len, step, times) = *before;
        let fits = last.1 == len && last.3 == 1 && (times == 1 || last.0 == start + step * times);
        if fits {
            *before = (start, len, if times == 1 { last.0 - start } else { step }, times + 1);
            self.0.pop();
        }
    }

    /// How many rows there are.
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

    /// Checks what was read from a file: rows rise, and none is beyond the numbers that there are.
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
                .ok_or_else(|| bad_input!("its list of rows makes no sense at ({start}, {len}, {step}, {times})"))?;
        }
        Ok(())
    }

    /// The rows; of what [`RowRuns::check`] found right, or was pushed.
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
    fn rows_must_rise() {
        let mut rows = runs(&[3]);
        assert!(rows.push(3).is_err() && rows.push(2).is_err() && rows.push(4).is_ok());
    }

    #[test]
    fn rows_that_make_no_sense_are_refused() {
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
        fn rows_come_back(gaps in proptest::collection::vec(1_u64..4, 0..200)) {
            let rows: Vec<u64> = gaps.iter().scan(0, |row, gap| { *row += gap; Some(*row) }).collect();
            let runs = runs(&rows);
            runs.check().unwrap();
            prop_assert_eq!(runs.into_rows().collect::<Vec<_>>(), rows);
        }
    }
}
