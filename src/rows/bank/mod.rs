//! Banks: embeddings in files, `(rows, dim)`, which may be larger than memory and are read block by block.
//!
//! `.npy` and `.safetensors` are mapped into memory, `.parquet` is read row group by row group; a folder holds numbered
//! `.npy` files, perhaps in clip-retrieval's layout, and a bank's rows are theirs one after the other.

mod array;
mod folder;
mod names;
mod table;

pub use table::Label;

use crate::bad_input;
use crate::search::Block;
use anyhow::Result;
use array::StoredArray;
use names::{extension, shown};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use table::Table;

/// Embeddings in a file or a folder.
#[derive(Debug)]
pub struct Bank {
    name: String,
    parts: Vec<Part>,
    dim: usize,
}

/// A file of a bank.
#[derive(Debug)]
struct Part {
    /// The numbers of its rows in the bank.
    rows: Range<u64>,
    content: Content,
    /// The table that has its labels.
    labels: Option<PathBuf>,
}

#[derive(Debug)]
enum Content {
    Array(StoredArray),
    Table(Table),
}

impl Content {
    /// Opens a file; `-` is standard input.
    fn open(path: &Path) -> Result<Self> {
        match extension(path).as_deref() {
            Some("parquet") => Table::open(path).map(Self::Table),
            _ => StoredArray::open(path).map(Self::Array),
        }
    }

    /// `(rows, dim)`.
    fn shape(&self) -> (u64, usize) {
        match self {
            Self::Array(array) => (array.rows as u64, array.dim),
            Self::Table(table) => (table.rows, table.dim),
        }
    }
}

impl Bank {
    /// Opens a file (`.npy`, `.npz`, `.safetensors`, `.parquet`), a folder of numbered files, or for `-` standard input.
    /// Of several arrays it takes `image_embeds`.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it cannot be read, holds no embeddings, or its files are of several dimensions.
    pub fn open(path: &Path) -> Result<Self> {
        let name = shown(path);
        let files = match path.is_dir() {
            true => folder::files(path)?,
            false => {
                let labels = (extension(path).as_deref() == Some("parquet")).then(|| path.to_path_buf());
                vec![(path.to_path_buf(), labels)]
            }
        };
        let (mut parts, mut end, mut dim): (Vec<Part>, u64, Option<usize>) = (Vec::new(), 0, None);
        for (file, labels) in files {
            let content = Content::open(&file)?;
            let (rows, found) = content.shape();
            if rows == 0 {
                continue;
            }
            match dim {
                Some(dim) if dim != found => {
                    let file = shown(&file);
                    return Err(bad_input!("{file} has rows of {found} numbers, and the files before it of {dim}"));
                }
                _ => dim = Some(found),
            }
            let start = end;
            end = start.saturating_add(rows);
            parts.push(Part { rows: start..end, content, labels });
        }
        match dim.filter(|dim| *dim > 0) {
            Some(dim) => Ok(Self { name, parts, dim }),
            None => Err(bad_input!("{name} holds no embeddings")),
        }
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The embedding dimension.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The number of its rows.
    pub fn rows(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.rows.end)
    }

    /// Whether its rows may have labels.
    pub fn has_labels(&self) -> bool {
        self.parts.iter().any(|part| part.labels.is_some())
    }

    /// Calls `visit` with all rows in order, at most `max` at a time.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if a file is damaged; those of `visit`.
    pub fn for_each_block(&self, max: usize, visit: &mut dyn FnMut(&Block) -> Result<()>) -> Result<()> {
        self.parts.iter().try_for_each(|part| match &part.content {
            Content::Array(array) => array.for_each_block(part.rows.start, max, visit),
            Content::Table(table) => table.for_each_block(part.rows.start, max, visit),
        })
    }

    /// The labels of rows, as far as they have any.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if a table of labels cannot be read.
    pub fn labels(&self, rows: &BTreeSet<u64>) -> Result<BTreeMap<u64, Label>> {
        let mut labels = BTreeMap::new();
        for part in &self.parts {
            let wanted: Vec<u64> = rows.range(part.rows.clone()).map(|row| row - part.rows.start).collect();
            if let Some(path) = part.labels.as_ref().filter(|_| !wanted.is_empty()) {
                let found = table::labels(path, &wanted)?;
                labels.extend(found.into_iter().map(|(row, label)| (part.rows.start + row, label)));
            }
        }
        Ok(labels)
    }
}

#[cfg(test)]
mod tests;
