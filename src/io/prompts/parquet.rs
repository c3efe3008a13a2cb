//! Parquet, row group by row group, a few rows at a time.
//!
//! Values are read as the file stores them and not as Arrow arrays. Texts of every Arrow type (`Utf8`, `LargeUtf8`,
//! `Utf8View`, dictionaries of them) are stored alike; one that is not UTF-8 spoils its row alone; and a long text that
//! many rows of a dictionary share is in memory once.

pub(in crate::io) mod guard;
#[cfg(test)]
mod tests;

use super::lines::MAX_BYTES;
use super::record::{Draft, Field, Scalar};
use super::source::Source;
use super::table::{Column, Layout};
use super::{Entry, Place, PromptRecord, Rows};
use crate::bad_input;
use crate::error::{BadInput, OrBadInput};
use anyhow::Result;
use guard::guarded;
use parquet::basic::{ConvertedType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescPtr, ColumnDescriptor};
use std::collections::VecDeque;
use std::fs::File;

/// Rows that are decoded together. Few, since texts that share their beginnings can be far larger than the file.
const BATCH_ROWS: usize = 64;

/// The rows of `source`.
///
/// # Errors
/// [`crate::error::BadInput`] if it is no Parquet file, or one without a column of prompts.
pub(super) fn rows(source: Source, prompt_column: Option<&str>) -> Result<Rows> {
    let (file, name) = source.file()?;
    let file = guarded(|| SerializedFileReader::new(file))
        .or_bad_input(|| format!("{name} is no Parquet file, or not a whole one; get it again"))?;
    // Of nested columns (lists, structs) none can hold a value of ours.
    let descriptors: Vec<(usize, ColumnDescPtr)> =
        file.metadata().file_metadata().schema_descr().columns().iter().cloned().enumerate().filter(is_flat).collect();
    let columns: Vec<Column> = descriptors
        .iter()
        .map(|(_, column)| Column { name: column.name().into(), is_text: kind_of(column) == Some(Kind::Text) })
        .collect();
    let layout = Layout::find(&name, &columns, prompt_column)?;
    let mut columns = Vec::new();
    for (place, field) in layout.columns {
        let (index, descriptor) = &descriptors[place];
        let Some(kind) = kind_of(descriptor) else {
            let (column, stored) = (descriptor.name(), descriptor.physical_type());
            return Err(bad_input!(
                "{name}: column {column:?} is of a type that holds neither texts nor numbers ({stored}); rename or \
                 convert it"
            ));
        };
        columns.push(Stored { index: *index, field, kind, is_nullable: descriptor.max_def_level() > 0 });
    }
    let prompt_name = layout.prompt_name;
    Ok(Box::new(Table { name, file, prompt_name, columns, group: 0, open: Vec::new(), left_in_group: 0, row: 0 }))
}

fn is_flat((_, column): &(usize, ColumnDescPtr)) -> bool {
    column.path().parts().len() == 1 && column.max_rep_level() == 0
}

/// What a column's stored values mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Signed,
    Unsigned,
    Bool,
    Float,
}

/// The kind of a column's values, if they are of one that is read.
fn kind_of(column: &ColumnDescriptor) -> Option<Kind> {
    use ConvertedType as Meaning;
    match (column.physical_type(), column.converted_type()) {
        // Some writers leave out that bytes are text.
        (Type::BYTE_ARRAY, Meaning::NONE | Meaning::UTF8 | Meaning::ENUM | Meaning::JSON) => Some(Kind::Text),
        (Type::BOOLEAN, _) => Some(Kind::Bool),
        (Type::FLOAT | Type::DOUBLE, _) => Some(Kind::Float),
        (Type::INT32 | Type::INT64, Meaning::UINT_8 | Meaning::UINT_16 | Meaning::UINT_32 | Meaning::UINT_64) => {
            Some(Kind::Unsigned)
        }
        (
            Type::INT32 | Type::INT64,
            Meaning::NONE | Meaning::INT_8 | Meaning::INT_16 | Meaning::INT_32 | Meaning::INT_64,
        ) => Some(Kind::Signed),
        _ => None,
    }
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
    file: SerializedFileReader<File>,
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
            if self.group >= self.file.num_row_groups() {
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
        let line = format!("{name}: {place}: the Parquet data are damaged or end too early; get the whole file again");
        anyhow::Error::new(cause).context(BadInput(line))
    }

    fn open_group(&mut self) -> Result<(), ParquetError> {
        let group = self.file.get_row_group(self.group)?;
        self.group += 1;
        self.left_in_group = group.metadata().num_rows().try_into().unwrap_or(0);
        self.open.clear();
        for &column in &self.columns {
            let reader = group.get_column_reader(column.index)?;
            self.open.push(OpenColumn { column, reader, values: VecDeque::new() });
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
        let is_unsigned = self.column.kind == Kind::Unsigned;
        let whole =
            |signed: i64, unsigned: u64| if is_unsigned { Scalar::Unsigned(unsigned) } else { of_signed(signed) };
        let (nullable, values) = (self.column.is_nullable, &mut self.values);
        match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) => decode(reader, nullable, values, Value::Bytes),
            ColumnReader::BoolColumnReader(reader) => {
                decode(reader, nullable, values, |value| Value::Scalar(Scalar::Bool(value)))
            }
            ColumnReader::Int32ColumnReader(reader) => decode(reader, nullable, values, |value| {
                Value::Scalar(whole(value.into(), u64::from(value.cast_unsigned())))
            }),
            ColumnReader::Int64ColumnReader(reader) => {
                decode(reader, nullable, values, |value| Value::Scalar(whole(value, value.cast_unsigned())))
            }
            ColumnReader::FloatColumnReader(reader) => {
                decode(reader, nullable, values, |value| Value::Scalar(Scalar::Float(value.into())))
            }
            ColumnReader::DoubleColumnReader(reader) => {
                decode(reader, nullable, values, |value| Value::Scalar(Scalar::Float(value)))
            }
            ColumnReader::Int96ColumnReader(_) | ColumnReader::FixedLenByteArrayColumnReader(_) => {
                Err(ParquetError::General("a column is not of the type that the schema says".into()))
            }
        }
    }
}

fn of_signed(value: i64) -> Scalar {
    u64::try_from(value).map_or(Scalar::Signed(value), Scalar::Unsigned)
}

/// Decodes the next values of a column, null where there is none.
fn decode<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    is_nullable: bool,
    values: &mut VecDeque<Value>,
    convert: impl Fn(T::T) -> Value,
) -> Result<(), ParquetError> {
    let (mut levels, mut decoded) = (Vec::new(), Vec::new());
    let levels_wanted = is_nullable.then_some(&mut levels);
    reader.read_records(BATCH_ROWS, levels_wanted, None, &mut decoded)?;
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
