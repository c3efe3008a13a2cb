//! JSON lines for programs: each array of a row is base64 of its bytes, little-endian, exact and quick to read.

use super::jsonl::{Lines, Numbers, lines};
use crate::output::column::Content;
use crate::output::dtype::OutputDtype;
use crate::output::record::OutputRecord;
use crate::output::sink::{Layout, ReadRows, Region, Shape, Sink};
use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The format.
pub(crate) struct Base64Lines;

impl Sink for Base64Lines {
    fn name(&self) -> &'static str {
        "jsonl-base64"
    }

    fn holds_rows(&self) -> bool {
        true
    }

    fn prefers_both(&self) -> bool {
        true
    }

    fn is_lines(&self) -> bool {
        true
    }

    fn layout(&self, shape: &Shape) -> Result<Layout> {
        Ok(Layout::InPlace(vec![Region::only(Content::Own(shape.arrays, lines::<Base64>), 0)]))
    }

    fn open(&self, path: &Path, record: &OutputRecord) -> Result<Box<dyn ReadRows>> {
        Ok(Box::new(Lines::<Base64>::open(path, record)?))
    }
}

/// Numbers as base64 of their bytes.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Base64(String);

impl Numbers for Base64 {
    fn of(bytes: &[u8], _: OutputDtype) -> Result<Self> {
        Ok(Self(BASE64_STANDARD.encode(bytes)))
    }

    fn read(self, dtype: OutputDtype) -> Result<Vec<f32>> {
        let mut numbers = Vec::new();
        dtype.decode(&BASE64_STANDARD.decode(self.0).context("an array is not base64")?, &mut numbers);
        Ok(numbers)
    }
}
