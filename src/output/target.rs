//! An output while it is written: its columns, and the file that is made of them.

use super::column::{ColumnSpec, Content};
use super::options::{Output, WriteOptions};
use super::record::OutputRecord;
use super::sink::{Layout, Region, Shape, contents};
use super::store::Store;
use crate::atomic::sync_all;
use crate::dir::{Access, Dir};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

/// An output while it is written.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) output: Output,
    pub(crate) layout: Layout,
    pub(crate) shape: Shape,
    /// The name of its file in the hidden folder.
    pub(crate) part: String,
}

impl Target {
    /// The `place`-th of the outputs.
    ///
    /// # Errors
    /// If the sizes overflow.
    pub(crate) fn new(place: usize, output: Output, options: &WriteOptions) -> Result<Self> {
        let rows = options.total_rows.filter(|_| options.shard.is_none());
        let dim = options.dim.map(|dim| options.width(output.arrays, dim));
        let (dtype, row, provenance) = (options.out_dtype, options.row_shape, options.provenance.clone());
        let shape = Shape { arrays: output.arrays, dtype, dim, row, rows, provenance };
        let layout = output.format.sink().layout(&shape)?;
        Ok(Self { output, layout, shape, part: format!("output-{place}") })
    }

    /// What is known of its rows and arrays, whatever its layout.
    pub(crate) fn contents(&self) -> Vec<Content> {
        contents(self.output.arrays, self.output.format.holds_rows())
    }

    /// Makes the file of complete columns, in the folder that they are in.
    ///
    /// # Errors
    /// If they cannot be read, or it cannot be written.
    pub(crate) fn make(&self, store: &Store, record: Option<&OutputRecord>) -> Result<()> {
        let sink = self.output.format.sink();
        match &self.layout {
            Layout::InPlace(regions) => {
                let head = sink.head(&self.shape, store.rows, store.dim)?;
                if regions.first().is_none_or(|first| first.start != head.len() as u64) {
                    bail!("internal error: {} rows in {}, whose header is another's", store.rows, self.part);
                }
                let file = store.dir.open_file(&self.part, Access::Write)?;
                file.write_all_at(&head, 0)?;
                Ok(sync_all(&file)?)
            }
            Layout::Gathered(_) => {
                create(store.dir, &self.part, |file| sink.write(store, self.output.arrays, record, file))
            }
            Layout::Numbered => Ok(()),
        }
    }
}

/// The columns of outputs, without those of numbered folders: what is written in place, what files are made of at the
/// end, and what only a record's checksums need.
pub(crate) fn columns(targets: &[Target]) -> Vec<ColumnSpec> {
    let mut columns: Vec<ColumnSpec> = Vec::new();
    let column = |content, location| ColumnSpec { content, location, is_numbered: false };
    for target in targets {
        if let Layout::InPlace(regions) = &target.layout {
            columns.extend(regions.iter().map(|region| column(region.content, Some(region.at(&target.part)))));
        }
    }
    for target in targets {
        let Layout::Gathered(contents) = &target.layout else { continue };
        for content in contents {
            if !columns.iter().any(|column| column.content.is(*content)) {
                let name = match content {
                    Content::Values(array) => array.name(),
                    _ => "rows",
                };
                columns.push(column(*content, Some(Region::only(*content, 0).at(name))));
            }
        }
    }
    for target in targets.iter().filter(|target| !matches!(target.layout, Layout::Numbered)) {
        for content in target.contents() {
            if !columns.iter().any(|column| column.content.is(content)) {
                columns.push(column(content, None));
            }
        }
    }
    columns
}

/// Creates a file and syncs it to disk. What an earlier attempt left of it goes.
///
/// # Errors
/// Those of `write`; or if it cannot be created or synced.
pub(crate) fn create(dir: &Dir, name: &str, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let file = dir.create_anew(name).with_context(|| format!("cannot create {:?}", dir.path().join(name)))?;
    let mut output = BufWriter::with_capacity(1 << 20, file);
    write(&mut output)?;
    output.flush()?;
    Ok(sync_all(output.get_ref())?)
}
