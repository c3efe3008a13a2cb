//! Few numbers of rows in place of many, for kernels that keep something for each, and never a single row.

use super::Epilogue;
use anyhow::{Result, ensure};
use tch::Tensor;

/// Runs a layer of oneDNN's on the rows of `x`, `(…, inputs)`, and zero rows up to a number of which there are few: eight
/// between a power of two and the next, and two at least.
///
/// oneDNN multiplies a single row with another kernel, which adds up in another order: a row's numbers would depend on
/// whether it is alone.
///
/// oneDNN makes and keeps code for each number of rows that it meets. Batches of texts have another number of tokens each
/// time, and the process would grow for thousands of batches.
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
            ensure!(other.numel() as i64 == rows * width, "{:?} to be added to {rows} rows", other.size());
            layer(&padded(x, *inputs)?, Epilogue::Add(&padded(other, width)?))?
        }
        epilogue => layer(&padded(x, *inputs)?, epilogue)?,
    };
    let outputs = y.size().last().copied().unwrap_or(1);
    Ok(y.f_narrow(0, 0, rows)?.f_reshape([outer, &[outputs]].concat())?)
}

/// The least number not below `rows` that has no more than four binary digits before its zeros, and is not 1.
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
