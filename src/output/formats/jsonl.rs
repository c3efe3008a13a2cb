//! JSON lines: an object a row.

use crate::output::arrays::{ArrayName, Arrays};
use crate::output::batch::{Batch, OutputRow};
use crate::output::column::Content;
use crate::output::dtype::{Encoding, OutputDtype};
use crate::output::record::OutputRecord;
use crate::output::sink::{Layout, PartRow, ReadRows, Region, Shape, Sink};
use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::marker::PhantomData;
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

    fn is_lines(&self) -> bool {
        true
    }

    fn layout(&self, shape: &Shape) -> Result<Layout> {
        Ok(Layout::InPlace(vec![Region::only(Content::Own(shape.arrays, lines::<Decimal>), 0)]))
    }

    fn open(&self, path: &Path, record: &OutputRecord) -> Result<Box<dyn ReadRows>> {
        Ok(Box::new(Lines::<Decimal>::open(path, record)?))
    }
}

/// How a line writes the numbers of an array.
pub(super) trait Numbers: Serialize + DeserializeOwned {
    /// Of the bytes of numbers of this type.
    ///
    /// # Errors
    /// If it cannot hold one of them.
    fn of(bytes: &[u8], dtype: OutputDtype) -> Result<Self>;

    /// The numbers.
    ///
    /// # Errors
    /// If it is damaged.
    fn read(self, dtype: OutputDtype) -> Result<Vec<f32>>;
}

/// A list of decimal numbers.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Decimal(Vec<f32>);

impl Numbers for Decimal {
    fn of(bytes: &[u8], dtype: OutputDtype) -> Result<Self> {
        let mut numbers = Vec::new();
        dtype.decode(bytes, &mut numbers);
        // JSON cannot hold infinities and NaN.
        match numbers.iter().all(|number| number.is_finite()) {
            true => Ok(Self(numbers)),
            false => Err(anyhow!("holds a number that is not finite, which JSON cannot hold")),
        }
    }

    fn read(self, _: OutputDtype) -> Result<Vec<f32>> {
        Ok(self.0)
    }
}

#[derive(Serialize)]
struct WrittenLine<'a, N> {
    row: u64,
    id: Option<&'a str>,
    prompt: &'a str,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_embeds: Option<N>,
    #[serde(skip_serializing_if = "Option::is_none")]
    negative_image_embeds: Option<N>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_embeds: Option<N>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<N>,
}

/// The lines of a batch, with the numbers as `encoding` rounds them.
pub(super) fn lines<N: Numbers>(batch: &Batch, arrays: Arrays, encoding: Encoding) -> Result<Vec<u8>> {
    let encoded = |array: ArrayName| match batch.values(array).filter(|_| arrays.has(array)) {
        Some(values) => encoding.of(array).encode(values, batch.rows),
        None => Ok(Vec::new()),
    };
    let (image, negative) = (encoded(ArrayName::Image)?, encoded(ArrayName::Negative)?);
    let (text, scores) = (encoded(ArrayName::Text)?, encoded(ArrayName::Scores)?);
    let bytes = batch.dim(arrays)? * encoding.dtype.size();
    let mut lines = Vec::new();
    for (place, OutputRow { row, id, prompt, seed }) in batch.rows.iter().enumerate() {
        let of_row = |array: &[u8]| {
            let numbers = array.get(place * bytes..(place + 1) * bytes).map(|bytes| N::of(bytes, encoding.dtype));
            numbers.transpose().map_err(|error| anyhow!("row {row} {error}"))
        };
        let line = WrittenLine {
            row: *row,
            id: id.as_deref(),
            prompt,
            seed: *seed,
            image_embeds: of_row(&image)?,
            negative_image_embeds: of_row(&negative)?,
            text_embeds: of_row(&text)?,
            scores: of_row(&scores)?,
        };
        serde_json::to_writer(&mut lines, &line)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// The lines of a file.
pub(super) struct Lines<N> {
    input: BufReader<File>,
    line: Vec<u8>,
    number: u64,
    arrays: Arrays,
    dtype: OutputDtype,
    numbers: PhantomData<N>,
}

impl<N> Lines<N> {
    /// # Errors
    /// If the file cannot be opened.
    pub(super) fn open(path: &Path, record: &OutputRecord) -> Result<Self> {
        let input = BufReader::with_capacity(1 << 20, File::open(path)?);
        let OutputRecord { arrays, dtype, .. } = *record;
        Ok(Self { input, line: Vec::new(), number: 0, arrays, dtype, numbers: PhantomData })
    }
}

#[derive(Deserialize)]
struct ReadLine<N> {
    #[serde(flatten)]
    known: OutputRow,
    image_embeds: Option<N>,
    negative_image_embeds: Option<N>,
    text_embeds: Option<N>,
    scores: Option<N>,
}

impl<N: Numbers> ReadRows for Lines<N> {
    fn next_row(&mut self, row: &mut PartRow) -> Result<()> {
        self.line.clear();
        self.number += 1;
        self.input.by_ref().take(MAX_LINE).read_until(b'\n', &mut self.line)?;
        if !self.line.ends_with(b"\n") {
            bail!("it ends early, in line {}", self.number);
        }
        let mut read: ReadLine<N> =
            serde_json::from_slice(&self.line).with_context(|| format!("line {}", self.number))?;
        for (array, numbers) in self.arrays.names().iter().zip(&mut row.numbers) {
            let read = match array {
                ArrayName::Image => read.image_embeds.take(),
                ArrayName::Negative => read.negative_image_embeds.take(),
                ArrayName::Text => read.text_embeds.take(),
                ArrayName::Scores => read.scores.take(),
            };
            let read = read.with_context(|| format!("line {} has no {}", self.number, array.name()))?;
            *numbers = read.read(self.dtype).with_context(|| format!("line {}", self.number))?;
        }
        row.known = Some(read.known);
        Ok(())
    }

    fn is_at_end(&mut self) -> Result<bool> {
        Ok(self.input.fill_buf()?.is_empty())
    }
}
