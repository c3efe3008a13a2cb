//! Writes to standard output, a pipe or a device: rows go out as they come where the format allows.
//!
//! An output that is a head and one region goes out batch by batch once the head is known: `.jsonl` at once, `.npy` if
//! the number of rows is known. All others are made in a temporary folder and follow at the end.

use super::batch::{Batch, Flow, Interrupted};
use super::column::{Column, Content};
use super::dtype::Encoding;
use super::options::{Output, WriteOptions};
use super::paths::shown;
use super::pipe::{self, Pipe};
use super::sink::{Layout, Region};
use super::store::Store;
use super::target::{Target, columns};
use crate::bad_input;
use crate::dir::{Access, Dir};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

/// Writes rows to a stream.
pub(crate) struct StreamWriter {
    /// What messages call it.
    name: String,
    pipe: Pipe,
    interrupt: Arc<AtomicBool>,
    target: Target,
    encoding: Encoding,
    mode: Mode,
    /// The embedding dimension, once known.
    dim: Option<usize>,
    rows: u64,
    reader_gone: bool,
}

#[derive(Debug)]
enum Mode {
    /// A head, then each batch.
    Direct(Content),
    /// Gathered in a folder that is removed in the end.
    Gathered { dir: Dir, columns: Vec<Column>, _folder: TempDir },
}

impl StreamWriter {
    /// Opens an output that is a stream.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] for a terminal or a folder, or if it cannot be opened; [`Interrupted`] while a pipe
    /// waits for its reader.
    pub(crate) fn open(output: Output, options: &WriteOptions) -> Result<Self> {
        let path = output.path.clone();
        if path.as_os_str() != "-" {
            let file = pipe::open(&path, &options.interrupt)?;
            return Self::new(Box::new(file), shown(&path), output, options);
        }
        if io::stdout().is_terminal() && !output.format.sink().is_lines() {
            return Err(bad_input!(
                "standard output is a terminal, and embeddings are binary; give a file name or a pipe"
            ));
        }
        let stdout = pipe::stdout().context("cannot write to standard output")?;
        Self::new(Box::new(stdout), "standard output".into(), output, options)
    }

    /// Writes `output` to a stream, which messages call `name`; its path is ignored.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] for a folder; or if a temporary folder is needed and cannot be created.
    fn new(stream: Box<dyn pipe::Target>, name: String, output: Output, options: &WriteOptions) -> Result<Self> {
        let target = Target::new(0, output, options)?;
        let knows_head = target.shape.rows.is_some() || target.output.format.sink().is_lines();
        let mode = match &target.layout {
            Layout::Numbered => return Err(bad_input!("a folder cannot be written to {name}; give its name")),
            Layout::InPlace(regions) if knows_head && regions.len() == 1 => {
                let [Region { content, .. }] = regions[..] else { bail!("internal error: no region") };
                Mode::Direct(content)
            }
            _ => {
                let folder = TempDir::with_prefix("prior-embed-").context("cannot make a temporary folder")?;
                let dir = Dir::open(folder.path()).context("cannot open a temporary folder")?;
                let targets = std::slice::from_ref(&target);
                let columns = columns(targets).into_iter().map(|spec| Column::create(&dir, spec));
                let columns = columns.collect::<io::Result<Vec<_>>>().context("cannot make a temporary file")?;
                Mode::Gathered { dir, columns, _folder: folder }
            }
        };
        let encoding = options.encoding();
        let interrupt = Arc::clone(&options.interrupt);
        let pipe = Pipe::new(stream, Arc::clone(&interrupt));
        let dim = target.shape.dim;
        Ok(Self { name, pipe, interrupt, target, encoding, mode, dim, rows: 0, reader_gone: false })
    }

    pub(crate) fn rows_done(&self) -> u64 {
        self.rows
    }

    /// Whether its reader is gone: so nobody waits for the rows that are being computed.
    pub(crate) fn has_lost_reader(&self) -> bool {
        self.reader_gone || self.pipe.is_closed()
    }

    /// Writes the next rows, at least one.
    ///
    /// # Errors
    /// If they cannot be written, unless the reader is gone; [`Interrupted`] if the reader stalls until
    /// [`WriteOptions::interrupt`].
    pub(crate) fn write(&mut self, batch: &Batch) -> Result<Flow> {
        if self.reader_gone {
            return Ok(Flow::ReaderGone);
        }
        let dim = batch.dim(self.target.output.arrays)?;
        if let Some(before) = self.dim.filter(|before| *before != dim && self.rows > 0) {
            bail!("internal error: rows of {dim} numbers after rows of {before}");
        }
        self.dim = Some(dim);
        let rows = self.rows + batch.rows.len() as u64;
        let bytes = match &mut self.mode {
            Mode::Direct(content) => {
                if let Some(total) = self.target.shape.rows.filter(|total| rows > *total) {
                    bail!("internal error: more than the {total} rows that {} was to hold", self.name);
                }
                let bytes = content.encode(batch, self.encoding)?;
                let head = if self.rows == 0 { self.head(dim)? } else { Vec::new() };
                [head, bytes].concat()
            }
            Mode::Gathered { columns, .. } => {
                for column in columns {
                    let bytes = column.spec.content.encode(batch, self.encoding)?;
                    let path = shown(&column.path);
                    column.append(&bytes).with_context(|| format!("cannot write {path}: is the disk full?"))?;
                }
                Vec::new()
            }
        };
        self.rows = rows;
        self.send(&bytes)
    }

    /// What comes before the rows.
    fn head(&self, dim: usize) -> Result<Vec<u8>> {
        let shape = &self.target.shape;
        self.target.output.format.sink().head(shape, shape.rows.unwrap_or_default(), dim)
    }

    /// Writes the end of the output.
    ///
    /// # Errors
    /// If it cannot be written, unless the reader is gone, or there are fewer rows than its header says;
    /// [`Interrupted`] at [`WriteOptions::interrupt`].
    pub(crate) fn finish(mut self) -> Result<()> {
        if self.reader_gone {
            return Ok(());
        }
        let Some(dim) = self.dim else { return Err(bad_input!("{}: there are no rows to write", self.name)) };
        match &self.mode {
            Mode::Direct(_) => {
                if let Some(total) = self.target.shape.rows.filter(|total| *total != self.rows) {
                    bail!("internal error: {} rows in {}, which was to hold {total}", self.rows, self.name);
                }
                if self.rows == 0 {
                    let _ = self.send(&self.head(dim)?)?;
                }
            }
            Mode::Gathered { dir, columns, .. } => {
                let (columns, interrupt) = (columns.iter().collect(), Arc::clone(&self.interrupt));
                let store = Store { dir, columns, rows: self.rows, dim, dtype: self.encoding.dtype, interrupt };
                let made = self.target.make(&store, None);
                if made.is_err() && self.interrupt.load(Ordering::Relaxed) {
                    return Err(Interrupted.into());
                }
                let part = &self.target.part;
                made.with_context(|| format!("cannot write {}: is the disk full?", shown(&dir.path().join(part))))?;
                let mut output = dir.open_file(part, Access::Read)?;
                self.copy(&mut output)?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, input: &mut impl Read) -> Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match input.read(&mut buffer)? {
                0 => return Ok(()),
                read if self.send(&buffer[..read])? == Flow::ReaderGone => return Ok(()),
                _ => {}
            }
        }
    }

    /// Writes and flushes bytes.
    fn send(&mut self, bytes: &[u8]) -> Result<Flow> {
        match self.pipe.write(bytes)? {
            Ok(()) => Ok(Flow::Continue),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.reader_gone = true;
                Ok(Flow::ReaderGone)
            }
            Err(error) => {
                let line = format!("cannot write to {}: {error}", self.name);
                Err(error).context(line)
            }
        }
    }
}

impl fmt::Debug for StreamWriter {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let mut debug = formatter.debug_struct("StreamWriter");
        debug.field("name", &self.name).field("mode", &self.mode).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::{Run, contents, options};
    use crate::output::{Arrays, EmbeddingWriter, OutputDtype, OutputFormat};
    use std::io::Write;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    /// A reader that closes after `max` bytes.
    #[derive(Clone)]
    struct Reader {
        got: Arc<Mutex<Vec<u8>>>,
        flushes: Arc<Mutex<Vec<usize>>>,
        max: usize,
    }

    impl Reader {
        fn new(max: usize) -> Self {
            Self { got: Arc::default(), flushes: Arc::default(), max }
        }
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut got = self.got.lock().unwrap();
            if got.len() >= self.max {
                return Err(ErrorKind::BrokenPipe.into());
            }
            got.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            let len = self.got.lock().unwrap().len();
            self.flushes.lock().unwrap().push(len);
            Ok(())
        }
    }

    impl pipe::Target for Reader {
        fn room(&self) -> io::Result<usize> {
            Ok(usize::MAX)
        }
    }

    fn open(format: OutputFormat, total_rows: Option<u64>, reader: &Reader) -> (StreamWriter, WriteOptions) {
        let mut options = options(Path::new("-"), format);
        (options.total_rows, options.normalize, options.out_dtype) = (total_rows, true, OutputDtype::F16);
        let output = options.outputs[0].clone();
        (StreamWriter::new(Box::new(reader.clone()), "the pipe".into(), output, &options).unwrap(), options)
    }

    fn batches(run: &Run) -> impl Iterator<Item = Batch<'_>> {
        (0..run.rows.len()).step_by(2).map(|start| {
            let end = run.rows.len().min(start + 2);
            Batch {
                rows: &run.rows[start..end],
                image: Some(run.image.slice(ndarray::s![start..end, ..])),
                negative: Some(run.negative.slice(ndarray::s![start..end, ..])),
                text: None,
                scores: None,
            }
        })
    }

    #[test]
    fn a_stream_has_the_bytes_of_a_file() {
        let folder = TempDir::new().unwrap();
        let run = Run::new(7, 3);
        for (format, total) in [
            (OutputFormat::Npy, Some(7)),
            (OutputFormat::Npy, None),
            (OutputFormat::Npz, Some(7)),
            (OutputFormat::Safetensors, None),
            (OutputFormat::JsonLines, None),
            (OutputFormat::Base64Lines, None),
            (OutputFormat::Parquet, None),
        ] {
            let reader = Reader::new(usize::MAX);
            let (mut stream, mut options) = open(format, total, &reader);
            batches(&run).for_each(|batch| assert_eq!(stream.write(&batch).unwrap(), Flow::Continue));
            stream.finish().unwrap();
            let path = folder.path().join(format!("{}{}", format.name(), total.is_some()));
            options.outputs[0].path = path.clone();
            let mut file = EmbeddingWriter::open(options).unwrap();
            run.write(&mut file, 7).unwrap();
            file.finish().unwrap();
            assert_eq!(*reader.got.lock().unwrap(), contents(&path)[0].1, "{format:?} {total:?}");
        }
    }

    #[test]
    fn a_batch_without_rows_adds_nothing_wherever_it_comes() {
        let run = Run::new(7, 3);
        for (format, total) in [(OutputFormat::Npy, Some(7)), (OutputFormat::JsonLines, None)] {
            let [plain, with_empty] = [false, true].map(|is_empty_too| {
                let reader = Reader::new(usize::MAX);
                let (stream, _) = open(format, total, &reader);
                let mut writer = EmbeddingWriter::of_stream(stream);
                let empty = run.select(&[]);
                let (image, negative) = (Some(empty.image.view()), Some(empty.negative.view()));
                let empty = Batch { rows: &[], image, negative, text: None, scores: None };
                for batch in batches(&run) {
                    if is_empty_too {
                        assert_eq!(writer.write(&empty).unwrap(), Flow::Continue);
                    }
                    assert_eq!(writer.write(&batch).unwrap(), Flow::Continue);
                }
                writer.finish().unwrap();
                reader.got.lock().unwrap().clone()
            });
            assert!(plain == with_empty, "{format:?}");
        }
    }

    #[test]
    fn every_batch_of_lines_is_flushed() {
        let reader = Reader::new(usize::MAX);
        let (mut stream, _) = open(OutputFormat::JsonLines, None, &reader);
        let run = Run::new(7, 3);
        for (place, batch) in batches(&run).enumerate() {
            let _ = stream.write(&batch).unwrap();
            let got = reader.got.lock().unwrap();
            assert_eq!(got.iter().filter(|byte| **byte == b'\n').count(), 7.min(place * 2 + 2));
            assert_eq!(reader.flushes.lock().unwrap().last(), Some(&got.len()));
        }
    }

    #[test]
    fn a_reader_that_goes_is_told_and_is_no_error() {
        let run = Run::new(7, 3);
        for (format, total) in [(OutputFormat::JsonLines, None), (OutputFormat::Npy, Some(7))] {
            let (mut stream, _) = open(format, total, &Reader::new(1));
            let flows: Vec<Flow> = batches(&run).map(|batch| stream.write(&batch).unwrap()).collect();
            assert_eq!(flows, [Flow::Continue, Flow::ReaderGone, Flow::ReaderGone, Flow::ReaderGone]);
            stream.finish().unwrap();
        }
        let (mut stream, _) = open(OutputFormat::Npz, None, &Reader::new(0));
        batches(&run).for_each(|batch| assert_eq!(stream.write(&batch).unwrap(), Flow::Continue));
        stream.finish().unwrap();
    }

    #[test]
    fn an_npy_stream_holds_as_many_rows_as_it_says() {
        let run = Run::new(4, 3);
        let (mut stream, _) = open(OutputFormat::Npy, Some(5), &Reader::new(usize::MAX));
        batches(&run).for_each(|batch| assert_eq!(stream.write(&batch).unwrap(), Flow::Continue));
        assert!(stream.finish().is_err());
        let (mut stream, _) = open(OutputFormat::Npy, Some(3), &Reader::new(usize::MAX));
        assert!(batches(&run).any(|batch| stream.write(&batch).is_err()));
    }

    #[test]
    fn a_full_device_is_an_error() {
        let mut options = options(Path::new("/dev/full"), OutputFormat::Npy);
        options.outputs[0].arrays = Arrays::IMAGE;
        options.total_rows = Some(4);
        let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
        let error = Run::new(4, 3).write(&mut writer, 2).unwrap_err();
        assert!(error.to_string().contains("/dev/full"), "{error}");
        options.resume = true;
        assert!(EmbeddingWriter::open(options).unwrap_err().to_string().contains("--resume needs files"));
    }
}
