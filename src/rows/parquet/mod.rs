//! Parquet, read as Arrow batches of the columns that are needed.

mod column;
pub(crate) mod guard;
pub(in crate::rows) mod limits;
#[cfg(test)]
mod tests;

use super::field::{Extras, Field, FieldNames, RecordBuilder};
use super::format::{PromptFormat, ReadOptions};
use super::input::Input;
use super::record::{Notices, Place, PromptRecord, PromptRow, PromptRows};
use super::table::{Column, ColumnKind, FieldColumns};
use crate::bad_input;
use crate::bad_input::BadInput;
use crate::text::shorten;
use anyhow::Result;
use arrow_array::ArrayRef;
use arrow_schema::{DataType, Schema};
use column::ValueType;
use guard::guarded;
use limits::{LimitedFile, Limits};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Encoding;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use std::fs::File;
use std::sync::Arc;

pub(super) static PARQUET: PromptFormat = PromptFormat {
    name: "parquet",
    extensions: &["parquet"],
    has_columns: true,
    has_header: false,
    open: |input, options, notices| rows(input, options, notices),
};

/// Rows that are decoded together. Few, since each may be on a page of its own.
const BATCH_ROWS: usize = 64;

fn rows(input: Input, read: &ReadOptions, notices: &Notices) -> Result<PromptRows> {
    let (file, name) = input.file()?;
    let limits = Limits::of_file(&file);
    let unreadable = |cause: ParquetError| match limits.exceeded() {
        Some(limit) => bad_input!("{name} is not read: {limit}"),
        None => {
            let line = format!("{name} is not a Parquet file, or is truncated; get it again");
            anyhow::Error::new(cause).context(BadInput(line))
        }
    };
    let metadata = open_metadata(&file, &limits).map_err(unreadable)?;
    let Selection { prompt_name, columns, leaves, schema } = Selection::of(&name, &metadata, read)?;
    let metadata = metadata.metadata();
    let reader = guarded(|| {
        let options = ArrowReaderOptions::new().with_schema(schema);
        let file = LimitedFile::new(file.try_clone()?, metadata, limits.clone());
        let arrow = ArrowReaderMetadata::try_new(metadata.clone(), options)?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, arrow);
        let batch_rows = if has_prefixes(metadata) { 1 } else { BATCH_ROWS };
        let projection = ProjectionMask::leaves(builder.parquet_schema(), leaves);
        builder.with_projection(projection).with_batch_size(batch_rows).build()
    });
    let reader = reader.map_err(unreadable)?;
    notices.note(format!("the prompts of {name} are in column {:?}", shorten(&prompt_name, 40)));
    let total = metadata.file_metadata().num_rows().cast_unsigned();
    let (batch, index, row) = (Vec::new(), 0, 0);
    Ok(Box::new(ParquetTable { name, limits, reader, prompt_name, columns, batch, index, row, total }))
}

/// Reads the metadata of a file, once it is known to take no more memory than its limits.
///
/// # Errors
/// If it exceeds them, or is damaged.
pub(in crate::rows) fn open_metadata(file: &File, limits: &Limits) -> Result<ArrowReaderMetadata, ParquetError> {
    guarded(|| {
        limits.check_footer(file)?;
        let metadata = ArrowReaderMetadata::load(file, ArrowReaderOptions::new().with_skip_arrow_metadata(true))?;
        check(metadata.metadata())?;
        Ok(metadata)
    })
}

/// The columns to read.
struct Selection {
    prompt_name: String,
    columns: Vec<(Field, ValueType)>,
    /// Their indices among the file's columns.
    leaves: Vec<usize>,
    /// The table's schema with the types to read them as.
    schema: Arc<Schema>,
}

impl Selection {
    /// # Errors
    /// [`BadInput`] if there is no prompt column, or one that is needed is of the wrong type.
    fn of(name: &str, metadata: &ArrowReaderMetadata, options: &ReadOptions) -> Result<Self> {
        let (stored, mut fields) = (metadata.parquet_schema(), metadata.schema().fields().to_vec());
        let writer = metadata.metadata().file_metadata().created_by().unwrap_or_default();
        // Of each column of the table, the first of the file's.
        let mut leaves: Vec<usize> = (0..stored.num_columns()).collect();
        leaves.dedup_by_key(|leaf| stored.get_column_root_idx(*leaf));
        let (columns, types): (Vec<Column>, Vec<Option<ValueType>>) = fields
            .iter()
            .zip(&leaves)
            .map(|(field, leaf)| {
                let value_type = ValueType::of(field.data_type(), &stored.column(*leaf), writer);
                let kind = match (nested(field.data_type()), value_type) {
                    (Some(values), _) => ColumnKind::Nested(values),
                    (None, Some(ValueType::Text)) => ColumnKind::Text,
                    _ => ColumnKind::Other,
                };
                (Column { name: field.name().clone(), kind }, value_type)
            })
            .unzip();
        let FieldColumns { prompt_name, columns: found, .. } = FieldColumns::find(name, &columns, options, "")?;
        let mut columns = Vec::new();
        for (index, field) in &found {
            let leaf = stored.column(leaves[*index]);
            let Some(value_type) = types[*index].filter(|value_type| value_type.suits(*field)) else {
                let (column, stored) = (leaf.name(), leaf.physical_type());
                let needed = if field.is_text() { "text" } else { "numbers" };
                return Err(bad_input!(
                    "{name}: column {column:?} is of a type that holds no {needed} ({stored}); rename or convert it"
                ));
            };
            let arrow = fields[*index].as_ref().clone();
            let data_type = value_type.read_as(arrow.data_type(), &leaf);
            fields[*index] = Arc::new(arrow.with_data_type(data_type));
            columns.push((*field, value_type));
        }
        let leaves = found.iter().map(|(index, _)| leaves[*index]).collect();
        Ok(Self { prompt_name, columns, leaves, schema: Arc::new(Schema::new(fields)) })
    }
}

/// Checks metadata that the decoder takes for granted.
fn check(metadata: &ParquetMetaData) -> Result<(), ParquetError> {
    let groups = metadata.row_groups();
    let is_valid = |group: &RowGroupMetaData| {
        let mut columns = group.columns().iter();
        group.num_rows() >= 0
            && columns.all(|column| {
                let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
                start >= 0 && column.compressed_size() >= 0
            })
    };
    let rows = groups.iter().try_fold(0_i64, |rows, group| rows.checked_add(group.num_rows()));
    if groups.iter().all(is_valid) && rows == Some(metadata.file_metadata().num_rows()) {
        return Ok(());
    }
    Err(ParquetError::General("the metadata of a row group is damaged".into()))
}

/// Whether values may be stored as what they share with the one before and the rest: those of a batch may be far larger
/// than their page.
fn has_prefixes(metadata: &ParquetMetaData) -> bool {
    let mut columns = metadata.row_groups().iter().flat_map(|group| group.columns());
    columns.any(|column| column.encodings().any(|encoding| encoding == Encoding::DELTA_BYTE_ARRAY))
}

/// What the values of a nested column are called.
fn nested(data_type: &DataType) -> Option<&'static str> {
    match data_type {
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => Some("lists"),
        DataType::Map(..) => Some("maps"),
        DataType::Struct(_) => Some("structs"),
        _ => None,
    }
}

struct ParquetTable {
    name: String,
    limits: Arc<Limits>,
    reader: ParquetRecordBatchReader,
    prompt_name: String,
    /// The columns of a batch.
    columns: Vec<(Field, ValueType)>,
    /// The current batch, and the index of the next row in it.
    batch: Vec<ArrayRef>,
    index: usize,
    /// The number of the current row, counted from 1.
    row: u64,
    /// How many rows the file declares.
    total: u64,
}

impl Iterator for ParquetTable {
    type Item = Result<PromptRow>;

    fn next(&mut self) -> Option<Result<PromptRow>> {
        self.row += 1;
        while self.batch.first().is_none_or(|column| self.index == column.len()) {
            match guarded(|| self.read_batch()) {
                Ok(true) => {}
                Ok(false) if self.row > self.total => return None,
                Ok(false) => return Some(Err(self.damaged(ParquetError::EOF("rows are missing".into())))),
                Err(cause) => return Some(Err(self.damaged(cause))),
            }
        }
        let record = self.record();
        self.index += 1;
        Some(Ok(PromptRow::new(Place::Row(self.row), record)))
    }
}

impl ParquetTable {
    /// Reads the next batch; false at the end of the file.
    fn read_batch(&mut self) -> Result<bool, ParquetError> {
        let Some(batch) = self.reader.next().transpose()? else { return Ok(false) };
        let columns = batch.columns().iter().zip(&self.columns);
        self.batch = columns.map(|(values, (_, value_type))| value_type.cast(values)).collect::<Result<_, _>>()?;
        self.index = 0;
        Ok(true)
    }

    /// The next row of the batch.
    fn record(&self) -> Result<PromptRecord, String> {
        let mut builder =
            RecordBuilder::new(FieldNames { prompt: &self.prompt_name, extras: Extras { images: true, noise: true } });
        for (values, (field, value_type)) in self.batch.iter().zip(&self.columns) {
            builder.set(*field, value_type.scalar(values, self.index)?)?;
        }
        builder.finish()
    }

    fn damaged(&self, cause: ParquetError) -> anyhow::Error {
        let (name, place) = (&self.name, Place::Row(self.row));
        let line = match self.limits.exceeded() {
            Some(limit) => format!("{name}: {place}: {limit}"),
            None => format!("{name}: {place}: the Parquet data are damaged or end too early; get the whole file again"),
        };
        anyhow::Error::new(cause).context(BadInput(line))
    }
}
