//! Number types, and rows of float32 as the bytes that files hold.

use super::arrays::ArrayName;
use super::batch::OutputRow;
use anyhow::{Result, anyhow};
use half::f16;
use ndarray::{ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

/// The type that numbers are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputDtype {
    /// float32.
    F32,
    /// float16.
    F16,
}

impl OutputDtype {
    /// All types.
    pub const ALL: [Self; 2] = [Self::F32, Self::F16];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    /// Bytes per number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// Appends the bytes of numbers that [`OutputDtype::decode`] returned.
    pub(crate) fn encode(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::F16 => bytes.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes())),
        }
    }

    /// Appends the numbers in `bytes`, as [`Encoding::encode`] wrote them, to `values`.
    pub(crate) fn decode(self, bytes: &[u8], values: &mut Vec<f32>) {
        match self {
            Self::F32 => {
                let (numbers, _) = bytes.as_chunks::<4>();
                values.extend(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            Self::F16 => {
                let (numbers, _) = bytes.as_chunks::<2>();
                values.extend(numbers.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()));
            }
        }
    }
}

/// How numbers are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoding {
    pub(crate) dtype: OutputDtype,
    /// Whether rows are scaled to unit length.
    pub(crate) normalize: bool,
}

impl Encoding {
    /// How an array's numbers are written: scores are no vectors, and never scaled.
    pub(crate) fn of(self, array: ArrayName) -> Self {
        Self { normalize: self.normalize && array != ArrayName::Scores, ..self }
    }

    /// The bytes of `values`, `(rows, dim)`, little-endian in C order.
    ///
    /// A row depends on nothing but itself. Its length is computed in float64; a row of zeros stays one.
    ///
    /// # Errors
    /// If a number exceeds float16, naming its row.
    pub(crate) fn encode(self, values: ArrayView2<f32>, rows: &[OutputRow]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(values.len() * self.dtype.size());
        for (row, values) in rows.iter().zip(values.rows()) {
            let scale = if self.normalize { length(values) } else { 1.0 };
            for &value in values {
                let value = if scale == 1.0 { value } else { (f64::from(value) / scale) as f32 };
                match self.dtype {
                    OutputDtype::F32 => bytes.extend_from_slice(&value.to_le_bytes()),
                    OutputDtype::F16 => bytes.extend_from_slice(&half(value, row)?.to_le_bytes()),
                }
            }
        }
        Ok(bytes)
    }
}

/// The length of a row; 1 for a row of zeros.
fn length(values: ArrayView1<f32>) -> f64 {
    let square: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
    if square > 0.0 { square.sqrt() } else { 1.0 }
}

fn half(value: f32, row: &OutputRow) -> Result<f16> {
    let half = f16::from_f32(value);
    if half.is_infinite() {
        let row = row.row;
        return Err(anyhow!("row {row} holds {value}, beyond float16's ±65504; write float32 (--out-dtype f32)"));
    }
    Ok(half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn rows() -> Vec<OutputRow> {
        (7..9).map(|row| OutputRow { row, id: None, prompt: "".into(), seed: 0 }).collect()
    }

    fn round_trip(dtype: OutputDtype, normalize: bool, values: ArrayView2<f32>) -> Result<Vec<f32>> {
        let mut decoded = Vec::new();
        dtype.decode(&Encoding { dtype, normalize }.encode(values, &rows())?, &mut decoded);
        Ok(decoded)
    }

    #[test]
    fn rows_are_scaled_to_unit_length_and_zeros_stay() {
        let values = array![[3.0, 4.0], [0.0, -0.0]];
        assert_eq!(round_trip(OutputDtype::F32, true, values.view()).unwrap(), [0.6, 0.8, 0.0, 0.0]);
        // Squares that float32 cannot hold.
        let values = array![[3e30, 4e30], [3e-30, 4e-30]];
        let read = round_trip(OutputDtype::F32, true, values.view()).unwrap();
        assert!(
            read.iter().zip([0.6, 0.8, 0.6, 0.8]).all(|(value, expected)| (value - expected).abs() < 1e-6),
            "{read:?}"
        );
        assert_eq!(round_trip(OutputDtype::F32, false, values.view()).unwrap(), [3e30, 4e30, 3e-30, 4e-30]);
    }

    #[test]
    fn a_number_beyond_float16_is_an_error_that_names_the_row() {
        let largest = array![[65504.0, -65504.0], [1e-8, 0.1]];
        let read = round_trip(OutputDtype::F16, false, largest.view()).unwrap();
        assert_eq!(read, [65504.0, -65504.0, 0.0, f16::from_f32(0.1).to_f32()]);
        for beyond in [65520.0, -7e4, f32::INFINITY] {
            let error = round_trip(OutputDtype::F16, false, array![[0.0, 1.0], [2.0, beyond]].view()).unwrap_err();
            assert!(error.to_string().starts_with(&format!("row 8 holds {beyond}")), "{error}");
        }
        assert!(round_trip(OutputDtype::F16, true, array![[3e5, 4e5], [1.0, 0.0]].view()).is_ok());
    }
}
