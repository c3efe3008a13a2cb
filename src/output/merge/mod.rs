//! Joins the outputs of shards, and checks that they are all of one whole.

mod finished;
mod part;
mod provenance;

pub use finished::{earlier_setting, finished};

use super::arrays::Arrays;
use super::batch::{Batch, Flow, OutputRow};
use super::destination::Destination;
use super::formats::OutputFormat;
use super::options::{Output, WriteOptions};
use super::paths::shown;
use super::provenance::pretty;
use super::record::OutputRecord;
use super::sink::PartRow;
use super::writer::EmbeddingWriter;
use crate::bad_input;
use crate::bad_input::BadInput;
use anyhow::Result;
use ndarray::ArrayView2;
use part::Part;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::path::{Path, PathBuf};

/// Numbers that are written at once.
const BATCH_NUMBERS: usize = 1 << 20;

/// How to write the whole.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// Its format.
    pub format: OutputFormat,
    /// Rows in each file of a numbered folder.
    pub rows_per_file: u64,
    /// Whether existing outputs may be replaced.
    pub overwrite: bool,
    /// A file for the provenance of the whole.
    pub provenance: Option<PathBuf>,
}

/// Joins `parts`, the outputs of all shards in any order, into `out`, which has the bytes of an unsharded run's output.
/// Returns the number of rows; `None` if the reader of `out` has closed it.
///
/// # Errors
/// [`BadInput`] if a part is not a shard, missing, given twice, damaged or of a run with other settings; if rows are
/// missing or occur twice; if `out` cannot be written. Then nothing is.
pub fn merge(parts: &[PathBuf], out: &Path, options: &MergeOptions) -> Result<Option<u64>> {
    let mut parts = parts.iter().map(|path| Part::open(path)).collect::<Result<Vec<_>>>()?;
    check(&parts)?;
    let Some(first) = parts.first() else {
        return Err(bad_input!("no parts to merge; name the outputs of all shards"));
    };
    let record = first.record.clone();
    let format = options.format;
    if let Some(part) = parts.iter().find(|part| format.holds_rows() && !part.format.holds_rows()) {
        let (name, from) = (shown(&part.path), part.format.name());
        return Err(bad_input!(
            "{name} is {from} and holds no prompts, which {} needs; choose another format",
            format.name()
        ));
    }
    let mut write_options = WriteOptions::new(vec![Output { path: out.to_path_buf(), format, arrays: record.arrays }]);
    write_options.out_dtype = record.dtype;
    write_options.rows_per_file = options.rows_per_file;
    write_options.overwrite = options.overwrite;
    write_options.keep = false;
    write_options.dim = Some(record.dim);
    write_options.total_rows = Some(record.total_rows);
    write_options.provenance = provenance::of_whole(&parts)?;
    let provenance = match (&options.provenance, &write_options.provenance) {
        (Some(path), Some(text)) => Some((Destination::open(path, options.overwrite)?, pretty(text)?)),
        (Some(_), None) => return Err(bad_input!("--provenance: the parts have none; leave it out")),
        (None, _) => None,
    };
    let mut writer = EmbeddingWriter::open(write_options)?;
    match join(&mut parts, &record, &mut writer) {
        Ok(Flow::Continue) => match provenance {
            Some((file, text)) => writer.finish_and(|| file.write(|output| Ok(output.write_all(text.as_bytes())?)))?,
            None => writer.finish()?,
        },
        Ok(Flow::ReaderGone) => {
            writer.discard()?;
            return Ok(None);
        }
        // The writer removes what there is.
        Err(error) => {
            return Err(match error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()) {
                Some(cause) if error.downcast_ref::<BadInput>().is_none() => {
                    let line = format!("cannot merge into {}: {cause}; nothing was written", shown(out));
                    error.context(line)
                }
                _ => error,
            });
        }
    }
    Ok(Some(record.total_rows))
}

/// Checks that the parts are all shards of one run, each once.
fn check(parts: &[Part]) -> Result<()> {
    let Some(first) = parts.first() else { return Ok(()) };
    for part in parts {
        let (name, other) = (shown(&part.path), shown(&first.path));
        let differences = first.record.differences(&part.record);
        if !differences.is_empty() {
            return Err(bad_input!("{name} is of another run than {other}: {}", differences.join("; ")));
        }
    }
    for (place, part) in parts.iter().enumerate() {
        let (index, count) = (part.record.index, part.record.count);
        if let Some(twin) = parts[..place].iter().find(|other| other.record.index == index) {
            return Err(bad_input!("{} and {} are both shard {index}/{count}", shown(&twin.path), shown(&part.path)));
        }
    }
    let count = first.record.count;
    if parts.len() as u64 != count {
        let there = |index: &u64| parts.iter().any(|part| part.record.index == *index);
        let missing = (1..=count).find(|index| !there(index)).unwrap_or(count);
        let there = parts.len();
        return Err(bad_input!("{there} of {count} shards are there; shard {missing}/{count} is missing"));
    }
    Ok(())
}

/// Writes the rows of all parts in order.
fn join(parts: &mut [Part], record: &OutputRecord, writer: &mut EmbeddingWriter) -> Result<Flow> {
    let rows: Vec<_> = parts.iter().map(|part| part.record.rows.clone().into_rows()).collect();
    let mut rows: Vec<_> = rows.into_iter().map(Iterator::peekable).collect();
    let next = rows.iter_mut().enumerate().filter_map(|(place, rows)| Some(Reverse((*rows.peek()?, place))));
    let mut heap: BinaryHeap<Reverse<(u64, usize)>> = next.collect();
    let mut pending = Pending::new(record);
    let mut last_place = None;
    for row in 0..record.total_rows {
        let next = heap.pop().map(|Reverse(next)| next);
        let Some((_, place)) = next.filter(|(next, _)| *next == row) else {
            return Err(match next {
                Some((next, place)) if next < row => {
                    let last = last_place.and_then(|place: usize| parts.get(place)).map(|part| shown(&part.path));
                    let name = shown(&parts[place].path);
                    bad_input!("row {next} is in {} and in {name}", last.unwrap_or_default())
                }
                _ => bad_input!("row {row} of {} is in none of the parts; a shard is not complete", record.total_rows),
            });
        };
        pending.read(&mut parts[place], row)?;
        rows[place].next();
        if let Some(next) = rows[place].peek() {
            heap.push(Reverse((*next, place)));
        }
        last_place = Some(place);
        if pending.is_full() && pending.write(writer)? == Flow::ReaderGone {
            return Ok(Flow::ReaderGone);
        }
    }
    if let Some(Reverse((row, place))) = heap.pop() {
        let (name, rows) = (shown(&parts[place].path), record.total_rows);
        return Err(bad_input!("{name} holds row {row}, and there are {rows} rows or another part holds it too"));
    }
    parts.iter_mut().try_for_each(Part::check_end)?;
    pending.write(writer)
}

/// Rows on their way from the parts to the whole.
struct Pending {
    arrays: Arrays,
    dim: usize,
    rows: Vec<OutputRow>,
    /// The arrays' numbers, in the order of [`Arrays::names`].
    numbers: Vec<Vec<f32>>,
    row: PartRow,
}

impl Pending {
    fn new(record: &OutputRecord) -> Self {
        let numbers = vec![Vec::new(); record.arrays.names().len()];
        Self { arrays: record.arrays, dim: record.dim, rows: Vec::new(), numbers, row: PartRow::default() }
    }

    fn read(&mut self, part: &mut Part, row: u64) -> Result<()> {
        part.next_row(row, &mut self.row)?;
        for (numbers, read) in self.numbers.iter_mut().zip(&self.row.numbers) {
            numbers.extend_from_slice(read);
        }
        let unknown = OutputRow { row, id: None, prompt: "".into(), seed: 0 };
        self.rows.push(self.row.known.take().unwrap_or(unknown));
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.rows.len() * self.dim >= BATCH_NUMBERS
    }

    fn write(&mut self, writer: &mut EmbeddingWriter) -> Result<Flow> {
        if self.rows.is_empty() {
            return Ok(Flow::Continue);
        }
        let shape = (self.rows.len(), self.dim);
        let mut batch = Batch { rows: &self.rows, image: None, negative: None, text: None, scores: None };
        for (array, numbers) in self.arrays.names().iter().zip(&self.numbers) {
            *batch.values_mut(*array) = Some(ArrayView2::from_shape(shape, numbers)?);
        }
        let flow = writer.write(&batch)?;
        self.rows.clear();
        self.numbers.iter_mut().for_each(Vec::clear);
        Ok(flow)
    }
}

#[cfg(test)]
mod tests;
