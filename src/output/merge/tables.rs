//! Rows in JSON lines and Parquet.

use super::part::PartRow;
use crate::output::shard::METADATA_KEY;
use crate::output::{ArrayName, OutputRow};
use crate::rows::parquet::guard::guarded;
use anyhow::{Context, Result, bail};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The longest line that is read.
const LONGEST_LINE: u64 = 256 << 20;

/// Rows that are read from Parquet at once.
const TABLE_ROWS: usize = 1024;

/// The lines of a `.jsonl` file.
pub(super) struct JsonRows {
    input: BufReader<File>,
    line: Vec<u8>,
    number: u64,
}

#[derive(Deserialize)]
struct JsonRow {
    #[serde(flatten)]
    known: OutputRow,
    image_embeds: Option<Vec<f32>>,
    negative_image_embeds: Option<Vec<f32>>,
}

impl JsonRows {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self { input: BufReader::with_capacity(1 << 20, File::open(path)?), line: Vec::new(), number: 0 })
    }

    pub(super) fn read(&mut self, arrays: &[ArrayName], row: &mut PartRow) -> Result<()> {
        self.line.clear();
        self.number += 1;
        self.input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut self.line)?;
        if !self.line.ends_with(b"\n") {
            bail!("it ends early, in line {}", self.number);
        }
        let mut read: JsonRow = serde_json::from_slice(&self.line).with_context(|| format!("line {}", self.number))?;
        for (array, numbers) in arrays.iter().zip(&mut row.numbers) {
            let read = match array {
                ArrayName::Image => read.image_embeds.take(),
                ArrayName::Negative => read.negative_image_embeds.take(),
            };
            *numbers = read.with_context(|| format!("line {} has no {}", self.number, array.name()))?;
        }
        row.known = Some(read.known);
        Ok(())
    }

    pub(super) fn is_at_end(&mut self) -> Result<bool> {
        Ok(self.input.fill_buf()?.is_empty())
    }
}

/// The rows of a Parquet file.
pub(super) struct TableRows {
    batches: ParquetRecordBatchReader,
    batch: RecordBatch,
    /// The next row in the batch.
    next: usize,
    prompt_column: &'static str,
    arrays: Vec<&'static str>,
}

impl TableRows {
    pub(super) fn open(path: &Path, prompt_column: &'static str, arrays: &[&'static str]) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {path:?}"))?;
        let (batch, batches) = guarded(|| {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file)?.with_batch_size(TABLE_ROWS);
            Ok((RecordBatch::new_empty(builder.schema().clone()), builder.build()?))
        })?;
        Ok(Self { batches, batch, next: 0, prompt_column, arrays: arrays.to_vec() })
    }

    pub(super) fn read(&mut self, row: &mut PartRow) -> Result<()> {
        if self.is_at_end()? {
            bail!("it ends early");
        }
        let place = self.next;
        self.next += 1;
        let text = |name: &str| -> Result<Option<String>> {
            let column = column(&self.batch, name)?;
            let texts = column.as_string_opt::<i32>().with_context(|| format!("{name} is not text"))?;
            Ok(texts.is_valid(place).then(|| texts.value(place).to_string()))
        };
        let number = |name: &str| -> Result<u64> {
            let column = column(&self.batch, name)?;
            let numbers = column.as_primitive_opt::<UInt64Type>().filter(|numbers| numbers.is_valid(place));
            Ok(numbers.with_context(|| format!("no number in {name}"))?.value(place))
        };
        for (name, numbers) in self.arrays.iter().zip(&mut row.numbers) {
            list_values(column(&self.batch, name)?, place, numbers)
                .with_context(|| format!("{name} is no embedding"))?;
        }
        let prompt = text(self.prompt_column)?.with_context(|| format!("no {}", self.prompt_column))?;
        let (id, prompt) = (text("id")?, prompt.into());
        row.known = Some(OutputRow { row: number("row")?, id, prompt, seed: number("seed")? });
        Ok(())
    }

    pub(super) fn is_at_end(&mut self) -> Result<bool> {
        while self.next == self.batch.num_rows() {
            match guarded(|| Ok(self.batches.next().transpose()))?? {
                Some(batch) => (self.batch, self.next) = (batch, 0),
                None => return Ok(true),
            }
        }
        Ok(false)
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a dyn Array> {
    Ok(batch.column_by_name(name).with_context(|| format!("no column {name}"))?.as_ref())
}

/// Appends the numbers of a list; `None` if it is none.
fn list_values(column: &dyn Array, place: usize, numbers: &mut Vec<f32>) -> Option<()> {
    let lists = column.as_fixed_size_list_opt().filter(|lists| lists.is_valid(place))?;
    let values = lists.value(place);
    match values.data_type() {
        DataType::Float32 => numbers.extend_from_slice(values.as_primitive_opt::<Float32Type>()?.values()),
        DataType::Float16 => {
            let values = values.as_primitive_opt::<Float16Type>()?.values();
            numbers.extend(values.iter().map(|value| value.to_f32()));
        }
        _ => return None,
    }
    Some(())
}

/// What a Parquet file says of its shard.
pub(super) fn parquet_metadata(path: &Path) -> Result<Option<String>> {
    let file = File::open(path)?;
    let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new(file))?;
    let entries = builder.metadata().file_metadata().key_value_metadata();
    let record = entries.and_then(|entries| entries.iter().find(|entry| entry.key == METADATA_KEY));
    Ok(record.and_then(|record| record.value.clone()))
}
