//! A folder of numbered files, as clip-retrieval writes and embedding-reader reads it: `img_emb/img_emb_0000.npy` and
//! what its rows belong to, `metadata/metadata_0000.parquet`.

use crate::bad_input;
use crate::output::record::OutputRecord;
use crate::output::sink::{Layout, ReadRows, Shape, Sink};
use anyhow::Result;
use std::path::Path;

/// The format.
pub(crate) struct Folder;

impl Sink for Folder {
    fn name(&self) -> &'static str {
        "folder"
    }

    fn holds_rows(&self) -> bool {
        true
    }

    fn layout(&self, _: &Shape) -> Result<Layout> {
        Ok(Layout::Numbered)
    }

    fn open(&self, path: &Path, _: &OutputRecord) -> Result<Box<dyn ReadRows>> {
        Err(bad_input!(
            "{path:?} is a folder, whose shards need no merge: give them all the same --out-dir, or write files"
        ))
    }
}
