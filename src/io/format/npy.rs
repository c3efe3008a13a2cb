//! numpy's `.npy`: one float32 array in C order.

use super::NamedArray;
use anyhow::{Result, bail};
use ndarray_npy::WriteNpyExt;
use std::io::Write;

pub(super) fn write(arrays: &[NamedArray], output: &mut dyn Write) -> Result<()> {
    let [array] = arrays else { bail!(".npy holds one array, and there are {}", arrays.len()) };
    Ok(array.values.write_npy(output)?)
}
