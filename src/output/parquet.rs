//! Parquet: a row a row, an embedding a list of fixed size.
//!
//! Where a row group ends depends on the rows alone, and there are no times in the file: the same rows give the same
//! bytes, whatever batches they came in.

use super::shard::{METADATA_KEY, ShardRecord};
use super::store::{OutputRows, Store};
use super::{ArrayName, Arrays, OutputDtype, OutputRow};
use anyhow::Result;
use arrow_array::{ArrayRef, FixedSizeListArray, Float16Array, Float32Array, RecordBatch, StringArray, UInt64Array};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use std::io::{Read, Write};
use std::sync::Arc;

/// The most rows of a row group, and the most bytes of numbers and of text: a group is held in memory.
const GROUP_ROWS: usize = 16_384;
const GROUP_BYTES: usize = 8 << 20;

/// Writes all rows: the columns `row`, `id`, `prompt`, `seed` and one for each array.
pub(crate) fn write(
    store: &Store,
    arrays: Arrays,
    shard: Option<&ShardRecord>,
    output: &mut (dyn Write + Send),
) -> Result<()> {
    let text = |name, nullable| Field::new(name, DataType::Utf8, nullable);
    let number = |name| Field::new(name, DataType::UInt64, false);
    let mut fields = vec![number("row"), text("id", true), text("prompt", false), number("seed")];
    fields.extend(arrays.names().iter().map(|array| {
        let list = DataType::FixedSizeList(item(store.dtype), store.dim as i32);
        Field::new(array.name(), list, false)
    }));
    i32::try_from(store.dim)?;
    let schema = Arc::new(Schema::new(fields));
    let mut writer = ArrowWriter::try_new(output, schema.clone(), Some(properties(arrays.names(), shard)?))?;
    let mut inputs = arrays.names().iter().map(|array| store.values(*array, 0)).collect::<Result<Vec<_>>>()?;
    let mut groups = Groups::new(store.output_rows()?, store.row_bytes() * inputs.len());
    while let Some(rows) = groups.next_group()? {
        let mut columns = vec![rows_column(&rows), ids_column(&rows), prompts_column(&rows), seeds_column(&rows)];
        for input in &mut inputs {
            columns.push(values_column(store, rows.len(), input)?);
        }
        writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
        writer.flush()?;
    }
    writer.close()?;
    Ok(())
}

/// Writes `rows` as a file of the metadata that goes with a folder's embeddings: `caption`, `id`, `seed`, `row`.
pub(crate) fn write_metadata(rows: &mut OutputRows, count: u64, output: &mut (dyn Write + Send)) -> Result<()> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("caption", DataType::Utf8, false),
        Field::new("id", DataType::Utf8, true),
        Field::new("seed", DataType::UInt64, false),
        Field::new("row", DataType::UInt64, false),
    ]));
    let mut writer = ArrowWriter::try_new(output, schema.clone(), Some(properties(&[], None)?))?;
    let mut groups = Groups::new(rows.take(usize::try_from(count)?), 1);
    while let Some(rows) = groups.next_group()? {
        let columns = vec![prompts_column(&rows), ids_column(&rows), seeds_column(&rows), rows_column(&rows)];
        writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
        writer.flush()?;
    }
    writer.close()?;
    Ok(())
}

fn properties(arrays: &[ArrayName], shard: Option<&ShardRecord>) -> Result<WriterProperties> {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_dictionary_enabled(false)
        .set_max_row_group_row_count(None);
    for array in arrays {
        // Embeddings neither compress nor sort.
        let column = ColumnPath::new(vec![array.name().into(), "list".into(), "element".into()]);
        builder = builder
            .set_column_compression(column.clone(), Compression::UNCOMPRESSED)
            .set_column_statistics_enabled(column, EnabledStatistics::None);
    }
    if let Some(record) = shard {
        let record = KeyValue::new(METADATA_KEY.to_string(), serde_json::to_string(record)?);
        builder = builder.set_key_value_metadata(Some(vec![record]));
    }
    Ok(builder.build())
}

/// Cuts rows into row groups.
struct Groups<I> {
    rows: I,
    /// A row that did not fit into the last group.
    waiting: Option<OutputRow>,
    most_rows: usize,
}

impl<I: Iterator<Item = Result<OutputRow>>> Groups<I> {
    fn new(rows: I, row_bytes: usize) -> Self {
        let most_rows = (GROUP_BYTES / row_bytes.max(1)).clamp(1, GROUP_ROWS);
        Self { rows, waiting: None, most_rows }
    }

    fn next_group(&mut self) -> Result<Option<Vec<OutputRow>>> {
        let mut group: Vec<OutputRow> = self.waiting.take().into_iter().collect();
        let text_of = |row: &OutputRow| row.prompt.len() + row.id.as_ref().map_or(0, String::len);
        let mut text: usize = group.iter().map(text_of).sum();
        while group.len() < self.most_rows {
            let Some(row) = self.rows.next().transpose()? else { break };
            text += text_of(&row);
            if text > GROUP_BYTES && !group.is_empty() {
                self.waiting = Some(row);
                break;
            }
            group.push(row);
        }
        Ok(if group.is_empty() { None } else { Some(group) })
    }
}

fn item(dtype: OutputDtype) -> Arc<Field> {
    let number = match dtype {
        OutputDtype::F32 => DataType::Float32,
        OutputDtype::F16 => DataType::Float16,
    };
    Arc::new(Field::new("element", number, false))
}

fn rows_column(rows: &[OutputRow]) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.row)))
}

fn seeds_column(rows: &[OutputRow]) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.seed)))
}

fn prompts_column(rows: &[OutputRow]) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &*row.prompt)))
}

fn ids_column(rows: &[OutputRow]) -> ArrayRef {
    Arc::new(rows.iter().map(|row| row.id.as_ref()).collect::<StringArray>())
}

/// The next `rows` rows of an array.
fn values_column(store: &Store, rows: usize, input: &mut impl Read) -> Result<ArrayRef> {
    let mut bytes = vec![0; rows * store.row_bytes()];
    input.read_exact(&mut bytes)?;
    let values: ArrayRef = match store.dtype {
        OutputDtype::F32 => {
            let (numbers, _) = bytes.as_chunks::<4>();
            Arc::new(Float32Array::from_iter_values(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes))))
        }
        OutputDtype::F16 => {
            let (numbers, _) = bytes.as_chunks::<2>();
            Arc::new(Float16Array::from_iter_values(numbers.iter().map(|bytes| half::f16::from_le_bytes(*bytes))))
        }
    };
    Ok(Arc::new(FixedSizeListArray::try_new(item(store.dtype), store.dim as i32, values, None)?))
}
