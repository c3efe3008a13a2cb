//! Embeddings, and what is known of them, in a Parquet file.

use super::names::{EMBEDS, shown};
use crate::bad_input;
use crate::bad_input::BadInput;
use crate::rows::parquet::guard::guarded;
use crate::rows::parquet::limits::{LimitedFile, Limits};
use crate::rows::parquet::open_metadata;
use crate::search::{Block, Float};
use anyhow::Result;
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float16Type, Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, DataType, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of text that are decoded together.
const LABEL_ROWS: usize = 64;

/// What is known of a row beside its embedding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Label {
    /// Its id.
    pub id: Option<String>,
    /// Its prompt or caption.
    pub caption: Option<String>,
}

/// A Parquet file, opened.
struct Opened {
    name: String,
    file: File,
    metadata: ArrowReaderMetadata,
    limits: Arc<Limits>,
}

impl Opened {
    fn new(path: &Path) -> Result<Self> {
        let name = shown(path);
        let file = File::open(path).map_err(|error| bad_input!("cannot read {name} ({error})"))?;
        let limits = Limits::of_file(&file);
        let metadata = open_metadata(&file, &limits).map_err(|cause| damaged(&name, &limits, cause))?;
        Ok(Self { name, file, metadata, limits })
    }

    /// The error for what cannot be read.
    fn damaged(&self, cause: ParquetError) -> anyhow::Error {
        damaged(&self.name, &self.limits, cause)
    }

    /// Reads some columns, of all row groups or of some. Texts are views, which do not copy what rows share.
    fn reader(
        &self,
        columns: &[usize],
        groups: Option<Vec<usize>>,
        rows: usize,
    ) -> Result<ParquetRecordBatchReader, ParquetError> {
        guarded(|| {
            let metadata = self.metadata.metadata();
            let fields = self.metadata.schema().fields().iter().map(|field| match field.data_type() {
                DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
                DataType::Binary => Arc::new(field.as_ref().clone().with_data_type(DataType::BinaryView)),
                _ => Arc::clone(field),
            });
            let options = ArrowReaderOptions::new().with_schema(Arc::new(Schema::new(fields.collect::<Vec<_>>())));
            let file = LimitedFile::new(self.file.try_clone()?, metadata, Arc::clone(&self.limits));
            let arrow = ArrowReaderMetadata::try_new(Arc::clone(metadata), options)?;
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, arrow);
            let projection = ProjectionMask::roots(builder.parquet_schema(), columns.iter().copied());
            let builder = builder.with_projection(projection).with_batch_size(rows);
            match groups {
                Some(groups) => builder.with_row_groups(groups).build(),
                None => builder.build(),
            }
        })
    }
}

fn damaged(name: &str, limits: &Limits, cause: ParquetError) -> anyhow::Error {
    let line = match limits.exceeded() {
        Some(limit) => format!("{name} is not read: {limit}"),
        None => format!("{name} is not a Parquet file, or is truncated; get it again"),
    };
    anyhow::Error::new(cause).context(BadInput(line))
}

/// A column of embeddings, `(rows, dim)`.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    /// The column among the table's.
    column: usize,
    pub(super) rows: u64,
    pub(super) dim: usize,
}

impl Table {
    /// Opens a file, and reads its first row.
    ///
    /// # Errors
    /// [`BadInput`] if it cannot be read or has no column of embeddings.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let opened = Opened::new(path)?;
        let name = &opened.name;
        let fields = opened.metadata.schema().fields();
        let is_floats = |data_type: &DataType| match data_type {
            DataType::List(item) => item.data_type().is_floating(),
            _ => false,
        };
        let lists: Vec<usize> = (0..fields.len()).filter(|place| is_floats(fields[*place].data_type())).collect();
        let named = lists.iter().find(|place| fields[**place].name() == EMBEDS);
        let column = match (named, &lists[..]) {
            (Some(named), _) => *named,
            (None, [only]) => *only,
            (None, []) => return Err(bad_input!("{name} has no column of embeddings, which are lists of floats")),
            _ => return Err(bad_input!("{name} has {} columns of lists, and none is called {EMBEDS}", lists.len())),
        };
        let rows = opened.metadata.metadata().file_metadata().num_rows().cast_unsigned();
        let mut table = Self { path: path.to_path_buf(), column, rows, dim: 0 };
        let first =
            opened.reader(&[column], None, 1).and_then(|mut reader| guarded(|| Ok(reader.next().transpose()?)));
        if let Some(batch) = first.map_err(|cause| opened.damaged(cause))? {
            table.dim = list_len(&batch).unwrap_or(0);
        }
        Ok(table)
    }

    /// See [`super::Bank::for_each_block`]; the first row has the number `first`.
    ///
    /// # Errors
    /// [`BadInput`] if the file is damaged or a row is no embedding; those of `visit`.
    pub(super) fn for_each_block(
        &self,
        first: u64,
        max: usize,
        visit: &mut dyn FnMut(&Block) -> Result<()>,
    ) -> Result<()> {
        let opened = Opened::new(&self.path)?;
        let mut reader = opened.reader(&[self.column], None, max).map_err(|cause| opened.damaged(cause))?;
        let mut done = 0;
        while let Some(batch) = guarded(|| Ok(reader.next().transpose()?)).map_err(|cause| opened.damaged(cause))? {
            let Some((float, bytes)) = values(batch.column(0), self.dim) else {
                let (name, dim, last) = (&opened.name, self.dim, done + batch.num_rows() as u64 - 1);
                return Err(bad_input!("{name}: a row from {done} to {last} is not a list of {dim} numbers"));
            };
            visit(&Block { first: first + done, dim: self.dim, float, bytes: Cow::Owned(bytes) })?;
            done += batch.num_rows() as u64;
        }
        match done == self.rows {
            true => Ok(()),
            false => Err(opened.damaged(ParquetError::EOF("rows are missing".into()))),
        }
    }
}

/// Values as texts.
fn texts(values: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let texts = match values.data_type() {
        DataType::Utf8View | DataType::BinaryView => Arc::clone(values),
        _ => arrow_cast::cast(values, &DataType::Utf8)?,
    };
    arrow_cast::cast(&texts, &DataType::Utf8View)
}

/// The length of the first list of a batch.
fn list_len(batch: &RecordBatch) -> Option<usize> {
    let lists = batch.column(0).as_list_opt::<i32>()?;
    (lists.len() > 0).then(|| lists.value_length(0) as usize)
}

/// The bytes of lists, if all are of `dim` numbers.
fn values(column: &ArrayRef, dim: usize) -> Option<(Float, Vec<u8>)> {
    fn bytes<T: ArrowPrimitiveType, const N: usize>(
        values: &ArrayRef,
        to_bytes: impl Fn(T::Native) -> [u8; N],
    ) -> Option<Vec<u8>> {
        Some(values.as_primitive_opt::<T>()?.values().iter().flat_map(|value| to_bytes(*value)).collect())
    }
    let lists = column.as_list_opt::<i32>()?;
    if lists.null_count() > 0 || !lists.offsets().lengths().all(|len| len == dim) {
        return None;
    }
    let start = lists.offsets().first() as usize;
    let values = lists.values().slice(start, lists.len() * dim);
    if values.null_count() > 0 {
        return None;
    }
    Some(match values.data_type() {
        DataType::Float16 => (Float::F16, bytes::<Float16Type, 2>(&values, |value| value.to_le_bytes())?),
        DataType::Float32 => (Float::F32, bytes::<Float32Type, 4>(&values, f32::to_le_bytes)?),
        DataType::Float64 => (Float::F64, bytes::<Float64Type, 8>(&values, f64::to_le_bytes)?),
        _ => return None,
    })
}

/// The labels of rows of a file, whose numbers ascend: the columns `id`, and `caption` or `prompt`.
///
/// # Errors
/// [`BadInput`] if the file cannot be read.
pub(super) fn labels(path: &Path, rows: &[u64]) -> Result<BTreeMap<u64, Label>> {
    let opened = Opened::new(path)?;
    let fields = opened.metadata.schema().fields();
    let find = |names: &[&str]| {
        let is_text = |data_type: &DataType| arrow_cast::can_cast_types(data_type, &DataType::Utf8);
        let places = names.iter().filter_map(|name| fields.iter().position(|field| field.name() == *name));
        places.into_iter().find(|place| !fields[*place].data_type().is_nested() && is_text(fields[*place].data_type()))
    };
    let (id, caption) = (find(&["id"]), find(&["caption", "prompt"]));
    // The row groups that they are in, and the number of each one's first row.
    let (mut groups, mut starts, mut start) = (Vec::new(), Vec::new(), 0_u64);
    for (place, group) in opened.metadata.metadata().row_groups().iter().enumerate() {
        let end = start.saturating_add(group.num_rows().cast_unsigned());
        let from = rows.partition_point(|row| *row < start);
        if rows.get(from).is_some_and(|row| *row < end) {
            groups.push(place);
            starts.push(start..end);
        }
        start = end;
    }
    let columns: Vec<usize> = id.into_iter().chain(caption).collect();
    if columns.is_empty() || groups.is_empty() {
        return Ok(BTreeMap::new());
    }
    let read = || -> Result<BTreeMap<u64, Label>, ParquetError> {
        let mut labels = BTreeMap::new();
        let mut reader = opened.reader(&columns, Some(groups), LABEL_ROWS)?;
        let mut numbers = starts.into_iter().flatten();
        while let Some(batch) = guarded(|| Ok(reader.next().transpose()?))? {
            let text = |column: Option<usize>| -> Result<Option<ArrayRef>, ParquetError> {
                let named = column.and_then(|column| batch.column_by_name(fields[column].name()));
                Ok(named.map(texts).transpose()?)
            };
            let (ids, captions) = (text(id)?, text(caption)?);
            for (place, row) in numbers.by_ref().take(batch.num_rows()).enumerate() {
                if rows.binary_search(&row).is_ok() {
                    let text = |texts: &Option<ArrayRef>| {
                        let texts = texts.as_ref()?.as_string_view_opt().filter(|texts| texts.is_valid(place))?;
                        Some(texts.value(place).to_string())
                    };
                    labels.insert(row, Label { id: text(&ids), caption: text(&captions) });
                }
            }
        }
        Ok(labels)
    };
    read().map_err(|cause| opened.damaged(cause))
}
