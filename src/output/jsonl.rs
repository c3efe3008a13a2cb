//! JSON lines: an object a row.

use super::store::Store;
use super::{ArrayName, Arrays, Batch, OutputRow};
use anyhow::{Result, anyhow};
use ndarray::{ArrayView1, Axis};
use serde::{Serialize, Serializer};
use std::io::{Read, Write};

#[derive(Serialize)]
struct Line<'a> {
    row: u64,
    id: Option<&'a str>,
    prompt: &'a str,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_embeds: Option<Values<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    negative_image_embeds: Option<Values<'a>>,
}

struct Values<'a>(ArrayView1<'a, f32>);

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0)
    }
}

/// Writes one line.
fn write_line<'a>(
    row: &'a OutputRow,
    values: impl Fn(ArrayName) -> Option<ArrayView1<'a, f32>>,
    output: &mut dyn Write,
) -> Result<()> {
    let finite = |array: ArrayName| -> Result<Option<Values<'a>>> {
        match values(array) {
            // JSON has no word for what is not a number.
            Some(values) if values.iter().any(|value| !value.is_finite()) => {
                Err(anyhow!("row {} holds a number that is not finite, which JSON cannot hold", row.row))
            }
            values => Ok(values.map(Values)),
        }
    };
    let line = Line {
        row: row.row,
        id: row.id.as_deref(),
        prompt: &row.prompt,
        seed: row.seed,
        image_embeds: finite(ArrayName::Image)?,
        negative_image_embeds: finite(ArrayName::Negative)?,
    };
    serde_json::to_writer(&mut *output, &line)?;
    Ok(output.write_all(b"\n")?)
}

/// Writes the lines of a batch whose numbers are as they shall be written.
pub(crate) fn write_batch(batch: &Batch, arrays: Arrays, output: &mut dyn Write) -> Result<()> {
    for (place, row) in batch.rows.iter().enumerate() {
        let values = |array| {
            let values = batch.values(array).filter(|_| arrays.names().contains(&array));
            values.map(|values| values.index_axis_move(Axis(0), place))
        };
        write_line(row, values, output)?;
    }
    Ok(())
}

/// Writes all rows.
pub(crate) fn write(store: &Store, arrays: Arrays, output: &mut dyn Write) -> Result<()> {
    let inputs: Result<Vec<_>> = arrays.names().iter().map(|array| Ok((*array, store.values(*array, 0)?))).collect();
    let mut inputs = inputs?;
    let mut bytes = vec![0; store.row_bytes()];
    let mut numbers = vec![Vec::with_capacity(store.dim); inputs.len()];
    for row in store.output_rows()? {
        for ((_, input), numbers) in inputs.iter_mut().zip(&mut numbers) {
            input.read_exact(&mut bytes)?;
            numbers.clear();
            store.dtype.decode(&bytes, numbers);
        }
        let values = |array| {
            let place = arrays.names().iter().position(|other| *other == array)?;
            numbers.get(place).map(|numbers| ArrayView1::from(numbers.as_slice()))
        };
        write_line(&row?, values, output)?;
    }
    Ok(())
}
