//! JSON lines: an object a row.

use crate::output::arrays::{ArrayName, Arrays};
use crate::output::batch::{Batch, OutputRow};
use crate::output::column::Content;
use crate::output::dtype::Encoding;
use crate::output::record::OutputRecord;
use crate::output::sink::{Layout, PartRow, ReadRows, Region, Shape, Sink};
use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Bytes of a line that is read back, at most.
const MAX_LINE: u64 = 256 << 20;

/// The format.
pub(crate) struct JsonLines;

impl Sink for JsonLines {
    fn name(&self) -> &'static str {
        "jsonl"
    }

    fn holds_rows(&self) -> bool {
        true
    }

    fn layout(&self, shape: &Shape) -> Result<Layout> {
        Ok(Layout::InPlace(vec![Region::only(Content::Own(shape.arrays, lines), 0)]))
    }

    fn open(&self, path: &Path, record: &OutputRecord) -> Result<Box<dyn ReadRows>> {
        let input = BufReader::with_capacity(1 << 20, File::open(path)?);
        Ok(Box::new(Lines { input, line: Vec::new(), number: 0, arrays: record.arrays }))
    }
}

#[derive(Serialize)]
struct WrittenLine<'a> {
    row: u64,
    id: Option<&'a str>,
    prompt: &'a str,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_embeds: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    negative_image_embeds: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_embeds: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<&'a [f32]>,
}

/// The lines of a batch, with the numbers as `encoding` rounds them.
fn lines(batch: &Batch, arrays: Arrays, encoding: Encoding) -> Result<Vec<u8>> {
    let rounded = |array: ArrayName| -> Result<Vec<f32>> {
        let mut numbers = Vec::new();
        if let Some(values) = batch.values(array).filter(|_| arrays.has(array)) {
            encoding.dtype.decode(&encoding.of(array).encode(values, batch.rows)?, &mut numbers);
        }
        Ok(numbers)
    };
    let (image, negative) = (rounded(ArrayName::Image)?, rounded(ArrayName::Negative)?);
    let (text, scores) = (rounded(ArrayName::Text)?, rounded(ArrayName::Scores)?);
    let dim = batch.dim(arrays)?;
    let mut lines = Vec::new();
    for (place, OutputRow { row, id, prompt, seed }) in batch.rows.iter().enumerate() {
        let numbers = place * dim..(place + 1) * dim;
        let (image_embeds, negative_image_embeds) = (image.get(numbers.clone()), negative.get(numbers.clone()));
        let (text_embeds, scores) = (text.get(numbers.clone()), scores.get(numbers));
        // JSON cannot hold infinities and NaN.
        if [image_embeds, negative_image_embeds, text_embeds, scores]
            .into_iter()
            .flatten()
            .flatten()
            .any(|value| !value.is_finite())
        {
            return Err(anyhow!("row {row} holds a number that is not finite, which JSON cannot hold"));
        }
        let (row, seed, id) = (*row, *seed, id.as_deref());
        let line = WrittenLine { row, id, prompt, seed, image_embeds, negative_image_embeds, text_embeds, scores };
        serde_json::to_writer(&mut lines, &line)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// The lines of a file.
struct Lines {
    input: BufReader<File>,
    line: Vec<u8>,
    number: u64,
    arrays: Arrays,
}

#[derive(Deserialize)]
struct ReadLine {
    #[serde(flatten)]
    known: OutputRow,
    image_embeds: Option<Vec<f32>>,
    negative_image_embeds: Option<Vec<f32>>,
    text_embeds: Option<Vec<f32>>,
    scores: Option<Vec<f32>>,
}

impl ReadRows for Lines {
    fn next_row(&mut self, row: &mut PartRow) -> Result<()> {
        self.line.clear();
        self.number += 1;
        self.input.by_ref().take(MAX_LINE).read_until(b'\n', &mut self.line)?;
        if !self.line.ends_with(b"\n") {
            bail!("it ends early, in line {}", self.number);
        }
        let mut read: ReadLine = serde_json::from_slice(&self.line).with_context(|| format!("line {}", self.number))?;
        for (array, numbers) in self.arrays.names().iter().zip(&mut row.numbers) {
            let read = match array {
                ArrayName::Image => read.image_embeds.take(),
                ArrayName::Negative => read.negative_image_embeds.take(),
                ArrayName::Text => read.text_embeds.take(),
                ArrayName::Scores => read.scores.take(),
            };
            *numbers = read.with_context(|| format!("line {} has no {}", self.number, array.name()))?;
        }
        row.known = Some(read.known);
        Ok(())
    }

    fn is_at_end(&mut self) -> Result<bool> {
        Ok(self.input.fill_buf()?.is_empty())
    }
}
