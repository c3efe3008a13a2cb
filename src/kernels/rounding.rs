//! Pads the rows of a product, so that oneDNN sees few different row counts and never a single row.

use super::epilogue::Epilogue;
use crate::{Error, Result};
use tch::Tensor;

/// Runs a oneDNN layer on the rows of `x`, `(…, inputs)`, padded with zero rows to a rounded row count: one of eight
/// between a power of two and the next, at least two.
///
/// oneDNN has another kernel for a single row, which sums in another order: a row's values would depend on whether it
/// is alone.
///
/// oneDNN generates and caches code for each row count. Batches of text differ in their token counts, so the process
/// would grow for thousands of batches.
pub(super) fn on_rounded_rows(
    x: &Tensor,
    epilogue: Epilogue,
    layer: impl Fn(&Tensor, Epilogue) -> Result<Tensor>,
) -> Result<Tensor> {
    let size = x.size();
    let [outer @ .., inputs] = size.as_slice() else { return layer(x, epilogue) };
    let rows: i64 = outer.iter().product();
    let more = rounded_rows(rows) - rows;
    if more == 0 {
        return layer(x, epilogue);
    }
    let padded = |tensor: &Tensor, width: i64| -> Result<Tensor> {
        Ok(tensor.f_reshape([rows, width])?.f_pad([0, 0, 0, more], "constant", 0.0)?)
    };
    let y = match epilogue {
        Epilogue::Add(other) => {
            let width = other.size().last().copied().unwrap_or(1);
            if other.numel() as i64 != rows * width {
                return Err(Error::Internal(format!("a residual of {:?} for {rows} rows", other.size())));
            }
            layer(&padded(x, *inputs)?, Epilogue::Add(&padded(other, width)?))?
        }
        epilogue => layer(&padded(x, *inputs)?, epilogue)?,
    };
    let outputs = y.size().last().copied().unwrap_or(1);
    Ok(y.f_narrow(0, 0, rows)?.f_reshape([outer, &[outputs]].concat())?)
}

/// Rounds up to at most four significant binary digits, and to 2 at least.
fn rounded_rows(rows: i64) -> i64 {
    if rows == 1 {
        return 2;
    }
    let digits = i64::BITS - rows.leading_zeros();
    let step = 1_i64 << digits.saturating_sub(4);
    (rows + step - 1) / step * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_numbers_of_rows_are_computed() {
        let rounded: Vec<i64> = [0, 1, 7, 15, 16, 17, 31, 33, 63, 64, 65, 1000, 1025].map(rounded_rows).to_vec();
        assert_eq!(rounded, [0, 2, 7, 15, 16, 18, 32, 36, 64, 64, 72, 1024, 1152]);
        let between: std::collections::BTreeSet<i64> = (513..=1024).map(rounded_rows).collect();
        assert_eq!(between.len(), 8);
        assert!((2..5000).all(|rows| (rows..=rows + rows / 8).contains(&rounded_rows(rows))));
    }
}
