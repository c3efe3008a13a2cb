//! Parquet, row group by row group, a few rows at a time.
//!
//! Values are read as the file stores them and not as Arrow arrays. Texts of every Arrow type (`Utf8`, `LargeUtf8`,
//! `Utf8View`, dictionaries of them) are stored alike; one that is not UTF-8 spoils its row alone; and a long text that
//! many rows of a dictionary share is in memory once.

mod compact;
pub(crate) mod guard;
mod kind;
mod limits;
#[cfg(test)]
mod tests;

use super::lines::MAX_BYTES;
use super::record::{Draft, Field, Scalar};
use super::source::Source;
use super::table::{Column, Holds, Layout};
use super::{Entry, Notices, Place, PromptRecord, Rows};
use crate::bad_input;
use crate::error::{BadInput, shorten};
use anyhow::Result;
use guard::guarded;
use kind::Kind;
use limits::{Memory, Pages, TooMuch};
use parquet::basic::ConvertedType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::schema::types::Type;
use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

/// Rows that are decoded together. Few, since texts that share their beginnings can be far larger than the file.
const BATCH_ROWS: usize = 64;

/// The rows of `source`.
///
/// # Errors
/// [`crate::error::BadInput`] if it is no Parquet file, or one without a column of prompts.
pub(super) fn rows(source: Source, prompt_column: Option<&str>, notices: &Notices) -> Result<Rows> {
    let (mut file, name) = source.file()?;
    let opened = guarded(|| {
        limits::check_footer(&mut file)?;
        ParquetMetaDataReader::new().parse_and_finish(&file)
    });
    let metadata = opened.map_err(|cause| match TooMuch::of(&cause) {
        Some(reason) => bad_input!("{name} is not read: {reason}"),
        None => {
            let line = format!("{name} is no Parquet file, or not a whole one; get it again");
            anyhow::Error::new(cause).context(BadInput(line))
        }
    })?;
    let schema = metadata.file_metadata().schema_descr();
    let writer = metadata.file_metadata().created_by().unwrap_or_default();
    let (mut columns, mut leaves, mut next_leaf) = (Vec::new(), Vec::new(), 0);
    for column in schema.root_schema().get_fields() {
        let nested = nested(column);
        let kind = schema.columns().get(next_leaf).and_then(|leaf| Kind::of(leaf, writer));
        let holds = match (nested, kind) {
            (Some(values), _) => Holds::Nested(values),
            (None, Some(Kind::Text)) => Holds::Text,
            _ => Holds::Other,
        };
        columns.push(Column { name: column.name().into(), holds });
        leaves.push((next_leaf, kind));
        next_leaf += count_leaves(column);
    }
    let layout = Layout::find(&name, &columns, prompt_column, "")?;
    let mut stored = Vec::new();
    for (place, field) in layout.columns {
        let (index, kind) = leaves[place];
        let leaf = schema.column(index);
        let Some(kind) = kind.filter(|kind| kind.suits(field)) else {
            let (column, stored) = (leaf.name(), leaf.physical_type());
            let needed = if field.is_text() { "texts" } else { "numbers" };
            return Err(bad_input!(
                "{name}: column {column:?} is of a type that holds no {needed} ({stored}); rename or convert it"
            ));
        };
        stored.push(Stored { index, field, kind, is_nullable: leaf.max_def_level() > 0 });
    }
    let prompt_name = layout.prompt_name;
    notices.note(format!("the prompts of {name} are in column {:?}", shorten(&prompt_name, 40)));
    let memory = Memory::of_file(file.metadata().map_or(0, |metadata| metadata.len()));
    Ok(Box::new(Table {
        name,
        file: Arc::new(file),
        metadata,
        memory,
        prompt_name,
        columns: stored,
        group: 0,
        open: Vec::new(),
        left_in_group: 0,
        row: 0,
    }))
}

/// What the values of a column with parts are called.
fn nested(column: &Type) -> Option<&'static str> {
    let info = column.get_basic_info();
    match info.converted_type() {
        _ if info.has_repetition() && info.repetition() == parquet::basic::Repetition::REPEATED => Some("lists"),
        ConvertedType::LIST => Some("lists"),
        ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE => Some("maps"),
        _ => column.is_group().then_some("structs"),
    }
}

/// How many columns the file has for one of the table.
fn count_leaves(column: &Type) -> usize {
    if column.is_group() { column.get_fields().iter().map(|field| count_leaves(field)).sum() } else { 1 }
}

/// A column to read.
#[derive(Debug, Clone, Copy)]
struct Stored {
    index: usize,
    field: Field,
    kind: Kind,
    is_nullable: bool,
}

struct Table {
    name: String,
    file: Arc<File>,
    metadata: ParquetMetaData,
    memory: Arc<Memory>,
    prompt_name: String,
    columns: Vec<Stored>,
    /// The row group to open next.
    group: usize,
    /// The columns of the row group that is open.
    open: Vec<OpenColumn>,
    left_in_group: u64,
    /// The row that was read last, counted from 1.
    row: u64,
}

impl Iterator for Table {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        while self.left_in_group == 0 {
            if self.group >= self.metadata.num_row_groups() {
                return None;
            }
            if let Err(cause) = guarded(|| self.open_group()) {
                return Some(Err(self.damaged(self.row + 1, cause)));
            }
        }
        self.left_in_group -= 1;
        self.row += 1;
        match guarded(|| self.read_row()) {
            Ok(record) => Some(Ok(Entry::new(Place::Row(self.row), record))),
            Err(cause) => Some(Err(self.damaged(self.row, cause))),
        }
    }
}

impl Table {
    fn damaged(&self, row: u64, cause: ParquetError) -> anyhow::Error {
        let (name, place) = (&self.name, Place::Row(row));
        let line = match TooMuch::of(&cause) {
            Some(reason) => format!("{name}: {place}: {reason}"),
            None => format!("{name}: {place}: the Parquet data are damaged or end too early; get the whole file again"),
        };
        anyhow::Error::new(cause).context(BadInput(line))
    }

    fn open_group(&mut self) -> Result<(), ParquetError> {
        let group = self.metadata.row_group(self.group);
        self.group += 1;
        self.left_in_group = group.num_rows().try_into().unwrap_or(0);
        self.open.clear();
        for &column in &self.columns {
            let chunk = group.column(column.index);
            let pages = Pages::open(&self.file, chunk, column.is_nullable, &self.memory)?;
            let reader = get_column_reader(chunk.column_descr_ptr(), Box::new(pages));
            let batch = if limits::has_prefixes(chunk) { 1 } else { BATCH_ROWS };
            self.open.push(OpenColumn { column, reader, batch, values: VecDeque::new() });
        }
        Ok(())
    }

    /// The next row, or what is wrong with it.
    fn read_row(&mut self) -> Result<Result<PromptRecord, String>, ParquetError> {
        let mut draft = Draft::new(&self.prompt_name);
        let mut problem = None;
        for open in &mut self.open {
            // Of every column, also of those after a bad value, so that they stay side by side.
            let value = open.next()?;
            if problem.is_none() {
                problem = value.scalar().and_then(|value| draft.set(open.column.field, value)).err();
            }
        }
        Ok(problem.map_or_else(|| draft.finish(), Err))
    }
}

/// A column of the row group that is open, and values of it that were decoded already.
struct OpenColumn {
    column: Stored,
    reader: ColumnReader,
    /// Rows to decode together.
    batch: usize,
    values: VecDeque<Value>,
}

/// A value as it is stored. Bytes share their memory with the page that they are from.
enum Value {
    Bytes(ByteArray),
    Scalar(Scalar),
}

impl Value {
    fn scalar(self) -> Result<Scalar, String> {
        match self {
            Self::Scalar(scalar) => Ok(scalar),
            Self::Bytes(bytes) if bytes.len() > MAX_BYTES => {
                Err(format!("a text is longer than {} MiB", MAX_BYTES >> 20))
            }
            Self::Bytes(bytes) => {
                let text = std::str::from_utf8(bytes.data()).map_err(|_| "a text is not UTF-8; convert the file")?;
                Ok(Scalar::Text(text.into()))
            }
        }
    }
}

impl OpenColumn {
    fn next(&mut self) -> Result<Value, ParquetError> {
        if self.values.is_empty() {
            self.decode()?;
        }
        self.values.pop_front().ok_or_else(|| ParquetError::EOF("a column is shorter than its row group".into()))
    }

    fn decode(&mut self) -> Result<(), ParquetError> {
        let Stored { kind, is_nullable: nullable, .. } = self.column;
        let (batch, values) = (self.batch, &mut self.values);
        match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) if kind == Kind::Text => {
                decode(reader, batch, nullable, values, Value::Bytes)
            }
            ColumnReader::ByteArrayColumnReader(reader) => {
                decode(reader, batch, nullable, values, |value| Value::Scalar(kind.of_bytes(value.data())))
            }
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                decode(reader, batch, nullable, values, |value| Value::Scalar(kind.of_bytes(value.data())))
            }
            ColumnReader::BoolColumnReader(reader) => {
                decode(reader, batch, nullable, values, |value| Value::Scalar(Scalar::Bool(value)))
            }
            ColumnReader::Int32ColumnReader(reader) => decode(reader, batch, nullable, values, |value| {
                Value::Scalar(kind.of_whole(value.into(), value.cast_unsigned().into()))
            }),
            ColumnReader::Int64ColumnReader(reader) => decode(reader, batch, nullable, values, |value| {
                Value::Scalar(kind.of_whole(value, value.cast_unsigned()))
            }),
            ColumnReader::Int96ColumnReader(reader) => {
                decode(reader, batch, nullable, values, |value| Value::Scalar(Kind::of_int96(&value)))
            }
            ColumnReader::FloatColumnReader(reader) => decode(reader, batch, nullable, values, |value| {
                Value::Scalar(Scalar::Float { value: value.into(), bits: f32::MANTISSA_DIGITS })
            }),
            ColumnReader::DoubleColumnReader(reader) => {
                decode(reader, batch, nullable, values, |value| Value::Scalar(Scalar::double(value)))
            }
        }
    }
}

/// Decodes the next values of a column, null where there is none.
fn decode<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    rows: usize,
    is_nullable: bool,
    values: &mut VecDeque<Value>,
    convert: impl Fn(T::T) -> Value,
) -> Result<(), ParquetError> {
    let (mut levels, mut decoded) = (Vec::new(), Vec::new());
    let levels_wanted = is_nullable.then_some(&mut levels);
    reader.read_records(rows, levels_wanted, None, &mut decoded)?;
    let mut decoded = decoded.into_iter().map(convert);
    if is_nullable {
        // In a column that is not nested, level 1 is a value and level 0 is none.
        for level in levels {
            values.push_back(match level {
                1 => decoded.next().ok_or_else(|| ParquetError::EOF("a value is missing".into()))?,
                _ => Value::Scalar(Scalar::Null),
            });
        }
    } else {
        values.extend(decoded);
    }
    Ok(())
}
