//! Parquet: one Parquet row per embedding, which is a list of fixed size.
//!
//! Where a row group ends depends on the rows alone, and the file holds no times: the same rows give the same bytes,
//! whatever batches they came in.

use crate::output::arrays::{ArrayName, Arrays};
use crate::output::batch::OutputRow;
use crate::output::dtype::OutputDtype;
use crate::output::record::{METADATA_KEY, OutputRecord};
use crate::output::sink::{Layout, PartRow, ReadRows, Shape, Sink, contents};
use crate::output::store::Store;
use crate::rows::parquet::guard::guarded;
use anyhow::{Context, Result, bail};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, UInt64Type};
use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, Float16Array, Float32Array, RecordBatch, StringArray, UInt64Array,
};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::Path;
use std::sync::Arc;

/// Rows of a row group at most, and bytes of its numbers and of its text: a group is held in memory.
const MAX_GROUP_ROWS: usize = 16_384;
const MAX_GROUP_BYTES: usize = 8 << 20;

/// Bytes of a row group that is read back, at most. One that was written here is larger only if a single prompt is.
const MAX_READ_BYTES: i64 = 1 << 30;

/// Rows that are read at once.
const READ_ROWS: usize = 1024;

/// The format.
pub(crate) struct Parquet;

impl Sink for Parquet {
    fn name(&self) -> &'static str {
        "parquet"
    }

    fn holds_rows(&self) -> bool {
        true
    }

    fn holds_record(&self) -> bool {
        true
    }

    fn layout(&self, shape: &Shape) -> Result<Layout> {
        Ok(Layout::Gathered(contents(shape.arrays, true)))
    }

    /// Writes the columns `row`, `id`, `prompt`, `seed` and one for each array.
    fn write(
        &self,
        store: &Store,
        arrays: Arrays,
        record: Option<&OutputRecord>,
        output: &mut BufWriter<File>,
    ) -> Result<()> {
        let text = |name, nullable| Field::new(name, DataType::Utf8, nullable);
        let number = |name| Field::new(name, DataType::UInt64, false);
        let mut fields = vec![number("row"), text("id", true), text("prompt", false), number("seed")];
        let dim = i32::try_from(store.dim)?;
        fields.extend(arrays.names().iter().map(|array| {
            let list = DataType::FixedSizeList(item(store.dtype), dim);
            Field::new(array.name(), list, false)
        }));
        let schema = Arc::new(Schema::new(fields));
        let mut writer = ArrowWriter::try_new(output, schema.clone(), Some(properties(arrays.names(), record)?))?;
        let mut inputs = arrays.names().iter().map(|array| store.values(*array)).collect::<Result<Vec<_>>>()?;
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

    fn open(&self, path: &Path, record: &OutputRecord) -> Result<Box<dyn ReadRows>> {
        let builder = open(path)?.with_batch_size(READ_ROWS);
        let batch = RecordBatch::new_empty(builder.schema().clone());
        Ok(Box::new(Table { batches: guarded(|| builder.build())?, batch, next: 0, arrays: record.arrays }))
    }

    fn read_record(&self, path: &Path) -> Result<Option<String>> {
        let builder = open(path)?;
        let entries = builder.metadata().file_metadata().key_value_metadata();
        let record = entries.and_then(|entries| entries.iter().find(|entry| entry.key == METADATA_KEY));
        Ok(record.and_then(|record| record.value.clone()))
    }
}

/// Writes the metadata that goes with a numbered folder's embeddings: `caption`, `id`, `seed`, `row`.
///
/// # Errors
/// If it cannot be read or written.
pub(crate) fn write_metadata(store: &Store, output: &mut BufWriter<File>) -> Result<()> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("caption", DataType::Utf8, false),
        Field::new("id", DataType::Utf8, true),
        Field::new("seed", DataType::UInt64, false),
        Field::new("row", DataType::UInt64, false),
    ]));
    let mut writer = ArrowWriter::try_new(output, schema.clone(), Some(properties(&[], None)?))?;
    let mut groups = Groups::new(store.output_rows()?, 1);
    while let Some(rows) = groups.next_group()? {
        let columns = vec![prompts_column(&rows), ids_column(&rows), seeds_column(&rows), rows_column(&rows)];
        writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
        writer.flush()?;
    }
    writer.close()?;
    Ok(())
}

fn properties(arrays: &[ArrayName], record: Option<&OutputRecord>) -> Result<WriterProperties> {
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
    if let Some(record) = record {
        let record = KeyValue::new(METADATA_KEY.to_string(), serde_json::to_string(record)?);
        builder = builder.set_key_value_metadata(Some(vec![record]));
    }
    Ok(builder.build())
}

/// Splits rows into row groups.
struct Groups<I> {
    rows: I,
    /// A row that did not fit into the last group.
    waiting: Option<OutputRow>,
    max_rows: usize,
}

impl<I: Iterator<Item = Result<OutputRow>>> Groups<I> {
    fn new(rows: I, row_bytes: usize) -> Self {
        let max_rows = (MAX_GROUP_BYTES / row_bytes.max(1)).clamp(1, MAX_GROUP_ROWS);
        Self { rows, waiting: None, max_rows }
    }

    fn next_group(&mut self) -> Result<Option<Vec<OutputRow>>> {
        let mut group: Vec<OutputRow> = self.waiting.take().into_iter().collect();
        let text_of = |row: &OutputRow| row.prompt.len() + row.id.as_ref().map_or(0, String::len);
        let mut text: usize = group.iter().map(text_of).sum();
        while group.len() < self.max_rows {
            let Some(row) = self.rows.next().transpose()? else { break };
            text += text_of(&row);
            if text > MAX_GROUP_BYTES && !group.is_empty() {
                self.waiting = Some(row);
                break;
            }
            group.push(row);
        }
        Ok((!group.is_empty()).then_some(group))
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

/// Opens a file, and checks where its row groups say that they are and how large.
fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path)?;
    let file_bytes = i64::try_from(file.metadata()?.len())?;
    let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new(file))?;
    for group in builder.metadata().row_groups() {
        let is_inside = |start: i64, bytes: i64| {
            start >= 0 && bytes >= 0 && start.checked_add(bytes).is_some_and(|end| end <= file_bytes)
        };
        for column in group.columns() {
            let pages = [Some(column.data_page_offset()), column.dictionary_page_offset()];
            let bytes = column.compressed_size();
            if !pages.into_iter().flatten().all(|start| is_inside(start, 0)) || !is_inside(4, bytes) {
                bail!("a column is outside the file");
            }
        }
        let bytes = group.columns().iter().try_fold(0_i64, |sum, column| sum.checked_add(column.uncompressed_size()));
        if group.num_rows() < 0 || bytes.is_none_or(|bytes| !(0..=MAX_READ_BYTES).contains(&bytes)) {
            bail!("a row group is larger than {} MiB", MAX_READ_BYTES >> 20);
        }
    }
    Ok(builder)
}

/// The rows of a file.
struct Table {
    batches: ParquetRecordBatchReader,
    batch: RecordBatch,
    /// The next row in the batch.
    next: usize,
    arrays: Arrays,
}

impl ReadRows for Table {
    fn next_row(&mut self, row: &mut PartRow) -> Result<()> {
        if self.is_at_end()? {
            bail!("it ends early");
        }
        let place = self.next;
        self.next += 1;
        let text = |name: &str| -> Result<Option<String>> {
            let texts = column(&self.batch, name)?.as_string_opt::<i32>();
            let texts = texts.with_context(|| format!("{name} is not text"))?;
            Ok(texts.is_valid(place).then(|| texts.value(place).to_string()))
        };
        let number = |name: &str| -> Result<u64> {
            let numbers = column(&self.batch, name)?.as_primitive_opt::<UInt64Type>();
            let numbers = numbers.filter(|numbers| numbers.is_valid(place));
            Ok(numbers.with_context(|| format!("no number in {name}"))?.value(place))
        };
        for (array, numbers) in self.arrays.names().iter().zip(&mut row.numbers) {
            let name = array.name();
            list_values(column(&self.batch, name)?, place, numbers)
                .with_context(|| format!("{name} is not an embedding"))?;
        }
        let prompt = text("prompt")?.context("no prompt")?.into();
        row.known = Some(OutputRow { row: number("row")?, id: text("id")?, prompt, seed: number("seed")? });
        Ok(())
    }

    fn is_at_end(&mut self) -> Result<bool> {
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

/// Appends the numbers of a list; `None` if it is not one.
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
