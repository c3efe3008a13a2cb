//! Writes to standard output, a pipe or a device: rows go out as they come where the format can.
//!
//! JSON lines go out a batch at a time. `.npy` does so when the number of rows is known, since it begins with that; when
//! it is not, and for all other formats, rows wait in a temporary folder and the output follows at the end.

use super::dir::{Access, Dir};
use super::file::write_output;
use super::paths::shown;
use super::sink::{self, Sink};
use super::store::{self, Content, DataFile, Store};
use super::values::Encoding;
use super::{Batch, Flow, Interrupted, Output, OutputFormat, WriteOptions, jsonl, npy};
use crate::bad_input;
use anyhow::{Context, Result, bail};
use ndarray::{Array2, ArrayView2};
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

/// Writes rows to a stream.
pub(crate) struct StreamWriter {
    name: String,
    sink: Sink,
    interrupt: Arc<AtomicBool>,
    output: Output,
    encoding: Encoding,
    rows_per_file: u64,
    form: Form,
    dim: Option<usize>,
    rows: u64,
    reader_gone: bool,
}

#[derive(Debug)]
enum Form {
    Lines,
    /// So many rows, which the header says.
    Npy(u64),
    /// Kept until the end, in a folder that then goes.
    Kept {
        dir: Dir,
        data: Vec<DataFile>,
        _folder: TempDir,
    },
}

/// Whether `path` is written from its beginning to its end, and cannot be moved into place: standard output, a pipe or a
/// device.
pub fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-" || fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

impl StreamWriter {
    pub(crate) fn open(output: Output, options: &WriteOptions) -> Result<Self> {
        let path = output.path.clone();
        if path.as_os_str() != "-" {
            let file = sink::open(&path, &options.interrupt)?;
            return Self::new(Box::new(file), shown(&path), output, options);
        }
        if io::stdout().is_terminal() && output.format != OutputFormat::JsonLines {
            return Err(bad_input!(
                "standard output is a terminal, and embeddings are binary; give a file name or a pipe"
            ));
        }
        let stdout = sink::stdout().context("cannot write to standard output")?;
        Self::new(stdout, "standard output".into(), output, options)
    }

    /// Writes `output` to `sink`, which messages call `name`; its path is not looked at.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] for a folder; or if a temporary folder is needed and cannot be made.
    fn new(sink: Box<dyn Write + Send>, name: String, output: Output, options: &WriteOptions) -> Result<Self> {
        let form = match (output.format, options.total_rows) {
            (OutputFormat::Folder, _) => return Err(bad_input!("a folder cannot be written to {name}; give its name")),
            (OutputFormat::JsonLines, _) => Form::Lines,
            (OutputFormat::Npy, Some(rows)) => Form::Npy(rows),
            _ => {
                let folder = TempDir::with_prefix("prior-embed-").context("cannot make a temporary folder")?;
                let dir = Dir::open(folder.path()).context("cannot open a temporary folder")?;
                let contents = store::contents(output.arrays, output.format.holds_rows());
                let data = contents.into_iter().map(|content| DataFile::create(&dir, content));
                let data = data.collect::<io::Result<Vec<_>>>().context("cannot make a temporary file")?;
                Form::Kept { dir, data, _folder: folder }
            }
        };
        let encoding = Encoding { dtype: options.out_dtype, normalize: options.normalize };
        let (rows_per_file, dim, interrupt) = (options.rows_per_file, options.dim, Arc::clone(&options.interrupt));
        let sink = Sink::new(sink, Arc::clone(&interrupt))?;
        Ok(Self { name, sink, interrupt, output, encoding, rows_per_file, form, dim, rows: 0, reader_gone: false })
    }

    pub(crate) fn rows_done(&self) -> u64 {
        self.rows
    }

    /// Writes the next rows, which there are.
    ///
    /// # Errors
    /// If they cannot be written, other than because nobody reads them; [`Interrupted`] if nobody
    /// takes them until [`WriteOptions::interrupt`].
    pub(crate) fn write(&mut self, batch: &Batch) -> Result<Flow> {
        if self.reader_gone {
            return Ok(Flow::ReaderGone);
        }
        let dim = batch.dim(self.output.arrays)?;
        if let Some(before) = self.dim.filter(|before| *before != dim && self.rows > 0) {
            bail!("rows of {dim} numbers after rows of {before}");
        }
        self.dim = Some(dim);
        let bytes = match &mut self.form {
            Form::Lines => lines(batch, &self.output, self.encoding)?,
            Form::Npy(total) => {
                let array = self.output.arrays.names()[0];
                let values = store::encode(batch, Content::Values(array), self.encoding)?;
                let header = if self.rows == 0 { npy::header(*total, dim, self.encoding.dtype)? } else { Vec::new() };
                if self.rows + batch.rows.len() as u64 > *total {
                    bail!("more than the {total} rows that {} was to hold", self.name);
                }
                [header, values].concat()
            }
            Form::Kept { data, .. } => {
                for file in data {
                    let part = store::encode(batch, file.content, self.encoding)?;
                    let path = shown(&file.path);
                    file.file.write_all(&part).with_context(|| format!("cannot write {path}: is the disk full?"))?;
                    file.bytes += part.len() as u64;
                }
                Vec::new()
            }
        };
        self.rows += batch.rows.len() as u64;
        self.send(bytes)
    }

    /// Writes the end of the output.
    ///
    /// # Errors
    /// If it cannot be written, other than because nobody reads it, or there are fewer rows than its header says;
    /// [`Interrupted`] at [`WriteOptions::interrupt`].
    pub(crate) fn finish(mut self) -> Result<()> {
        if self.reader_gone {
            return Ok(());
        }
        let Some(dim) = self.dim else { return Err(bad_input!("{}: there are no rows to write", self.name)) };
        match &self.form {
            Form::Lines => {}
            Form::Npy(0) => {
                let _ = self.send(npy::header(0, dim, self.encoding.dtype)?)?;
            }
            Form::Npy(total) if *total != self.rows => {
                bail!("{} rows in {}, which was to hold {total}", self.rows, self.name);
            }
            Form::Npy(_) => {}
            Form::Kept { dir, data, .. } => {
                let rows_bytes = data.iter().find(|file| file.content == Content::Rows).map_or(0, |file| file.bytes);
                let interrupt = Arc::clone(&self.interrupt);
                let store = Store { dir, rows: self.rows, rows_bytes, dim, dtype: self.encoding.dtype, interrupt };
                let part = match self.output.format {
                    OutputFormat::Npy => self.output.arrays.names()[0].name(),
                    _ => "output",
                };
                let made = write_output(&store, &self.output, None, self.rows_per_file, part);
                if made.is_err() && self.interrupt.load(Ordering::Relaxed) {
                    return Err(Interrupted.into());
                }
                let failed = || format!("cannot write {}: is the disk full?", shown(&dir.path().join(part)));
                made.with_context(failed)?;
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
                read if self.send(buffer[..read].to_vec())? == Flow::ReaderGone => return Ok(()),
                _ => {}
            }
        }
    }

    /// Hands bytes to whoever reads them, at once.
    fn send(&mut self, bytes: Vec<u8>) -> Result<Flow> {
        match self.sink.write(bytes)? {
            Ok(()) => Ok(Flow::GoOn),
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

/// The lines of a batch, with numbers as the output holds them.
fn lines(batch: &Batch, output: &Output, encoding: Encoding) -> Result<Vec<u8>> {
    let as_written = |values: Option<ArrayView2<f32>>| -> Result<Option<Array2<f32>>> {
        let Some(values) = values else { return Ok(None) };
        let mut numbers = Vec::with_capacity(values.len());
        encoding.dtype.decode(&encoding.encode(values, batch.rows)?, &mut numbers);
        Ok(Some(Array2::from_shape_vec(values.dim(), numbers)?))
    };
    let (image, negative) = (as_written(batch.image)?, as_written(batch.negative)?);
    let batch = Batch {
        rows: batch.rows,
        image: image.as_ref().map(|values| values.view()),
        negative: negative.as_ref().map(|values| values.view()),
    };
    let mut lines = Vec::new();
    jsonl::write_batch(&batch, output.arrays, &mut lines)?;
    Ok(lines)
}

impl fmt::Debug for StreamWriter {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter
            .debug_struct("StreamWriter")
            .field("name", &self.name)
            .field("form", &self.form)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Run, contents, options};
    use super::super::{Arrays, EmbeddingWriter, OutputDtype};
    use super::*;
    use std::sync::{Arc, Mutex};

    /// What reads a stream: it closes after so many bytes.
    #[derive(Clone)]
    struct Reader {
        got: Arc<Mutex<Vec<u8>>>,
        flushes: Arc<Mutex<Vec<usize>>>,
        most: usize,
    }

    impl Reader {
        fn new(most: usize) -> Self {
            Self { got: Arc::default(), flushes: Arc::default(), most }
        }
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut got = self.got.lock().unwrap();
            if got.len() >= self.most {
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
            (OutputFormat::Parquet, None),
        ] {
            let reader = Reader::new(usize::MAX);
            let (mut stream, mut options) = open(format, total, &reader);
            batches(&run).for_each(|batch| assert_eq!(stream.write(&batch).unwrap(), Flow::GoOn));
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
                let mut writer = EmbeddingWriter { file: None, streams: vec![stream] };
                let empty = run.select(&[]);
                let empty = Batch { rows: &[], image: Some(empty.image.view()), negative: Some(empty.negative.view()) };
                for batch in batches(&run) {
                    if is_empty_too {
                        assert_eq!(writer.write(&empty).unwrap(), Flow::GoOn);
                    }
                    assert_eq!(writer.write(&batch).unwrap(), Flow::GoOn);
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
            assert_eq!(flows, [Flow::GoOn, Flow::ReaderGone, Flow::ReaderGone, Flow::ReaderGone]);
            stream.finish().unwrap();
        }
        let (mut stream, _) = open(OutputFormat::Npz, None, &Reader::new(0));
        batches(&run).for_each(|batch| assert_eq!(stream.write(&batch).unwrap(), Flow::GoOn));
        stream.finish().unwrap();
    }

    #[test]
    fn an_npy_stream_holds_as_many_rows_as_it_says() {
        let run = Run::new(4, 3);
        let (mut stream, _) = open(OutputFormat::Npy, Some(5), &Reader::new(usize::MAX));
        batches(&run).for_each(|batch| assert_eq!(stream.write(&batch).unwrap(), Flow::GoOn));
        assert!(stream.finish().is_err());
        let (mut stream, _) = open(OutputFormat::Npy, Some(3), &Reader::new(usize::MAX));
        assert!(batches(&run).any(|batch| stream.write(&batch).is_err()));
    }

    #[test]
    fn a_full_device_is_an_error() {
        let mut options = options(Path::new("/dev/full"), OutputFormat::Npy);
        options.outputs[0].arrays = Arrays::Image;
        options.total_rows = Some(4);
        let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
        let error = Run::new(4, 3).write(&mut writer, 2).unwrap_err();
        assert!(error.to_string().contains("/dev/full"), "{error}");
        options.resume = true;
        assert!(EmbeddingWriter::open(options).unwrap_err().to_string().contains("--resume needs files"));
    }
}
