//! Where prompts come from: a file or standard input, decompressed and decoded.

use super::compression::{Compression, Refused};
use super::encoding::{Decoder, Encoding};
use super::interruptible::Interruptible;
use super::peek::Peek;
use super::{Notices, Place};
use crate::bad_input;
use crate::error::{BadInput, OrBadInput};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What is read ahead of need, where it has arrived.
const BUFFER_BYTES: usize = 64 * 1024;

/// How far a text is looked into where its form is not plain: a file so far, of a stream the first line that is not blank.
const SAMPLE_BYTES: usize = 64 * 1024;

/// A file or standard input, open and not read yet.
pub(super) struct Source {
    /// What messages call it.
    pub name: String,
    /// Whether to read may mean to wait for whoever writes.
    pub waits: bool,
    compression: Option<Compression>,
    input: Input,
}

enum Input {
    File(File),
    Stream(Box<dyn Read + Send>),
}

impl Source {
    /// Opens the file `path`, or standard input if it is `-`.
    pub(super) fn open(path: &Path, interrupt: &Arc<AtomicBool>) -> Result<Self> {
        if path.as_os_str() == "-" {
            let stdin = Interruptible::stdin(Arc::clone(interrupt)).context("cannot read standard input")?;
            return Ok(Self::of_stream("standard input", stdin));
        }
        let name = path.display().to_string();
        let cannot = || format!("cannot read the prompts file {name:?}");
        let file = File::open(path).or_bad_input(cannot)?;
        let metadata = file.metadata().or_bad_input(cannot)?;
        if metadata.is_dir() {
            return Err(bad_input!("prompts file {name:?} is a folder; give a file in it"));
        }
        let input = if metadata.is_file() {
            Input::File(file)
        } else {
            Input::Stream(Box::new(Interruptible::new(file, Arc::clone(interrupt))))
        };
        let waits = matches!(input, Input::Stream(_));
        Ok(Self { name, waits, compression: Compression::of_path(path), input })
    }

    /// A source that cannot be read twice and may have to be waited for.
    pub(super) fn of_stream(name: &str, stream: impl Read + Send + 'static) -> Self {
        Self { name: name.into(), waits: true, compression: None, input: Input::Stream(Box::new(stream)) }
    }

    /// Its text, decompressed and in UTF-8 without a byte order mark; not every byte of it need be valid. What is odd about
    /// it goes to `notices`.
    pub(super) fn text(self, notices: &Notices) -> Result<Text> {
        let stream: Box<dyn Read + Send> = match self.input {
            Input::File(file) => Box::new(file),
            Input::Stream(stream) => stream,
        };
        let (reader, notices): (Box<dyn BufRead + Send>, _) = (Box::new(io::empty()), notices.clone());
        let mut text = Text { name: self.name, compression: self.compression, reader: Peek::new(reader), notices };
        match text.decode(BufReader::with_capacity(BUFFER_BYTES, stream), self.waits) {
            Ok(()) => Ok(text),
            Err(cause) => Err(text.broken(Place::Line(1), cause)),
        }
    }

    /// A file with what it holds, and its name. A stream is copied to a temporary file.
    pub(super) fn file(self) -> Result<(File, String)> {
        let name = self.name;
        if let Some(compression) = self.compression {
            let compression = compression.name();
            return Err(bad_input!(
                "{name}: Parquet is compressed inside, and this file is compressed with {compression} again; unpack it"
            ));
        }
        match self.input {
            Input::File(file) => Ok((file, name)),
            Input::Stream(mut stream) => {
                let failed =
                    || format!("cannot copy {name} to a temporary file, which Parquet needs; is the disk full?");
                let mut file = tempfile::tempfile().with_context(failed)?;
                io::copy(&mut stream, &mut file).with_context(failed)?;
                file.rewind().with_context(failed)?;
                Ok((file, name))
            }
        }
    }
}

/// A source's text, to be read.
pub(super) struct Text {
    /// What messages call it.
    pub name: String,
    /// The text.
    pub reader: Peek<Box<dyn BufRead + Send>>,
    /// Where what is odd about it goes.
    pub notices: Notices,
    compression: Option<Compression>,
}

impl Text {
    fn decode(&mut self, input: impl BufRead + Send + 'static, waits: bool) -> io::Result<()> {
        let mut input = Peek::new(input);
        let mut start = Vec::new();
        // No further than it takes to tell: more may never arrive.
        input.peek(|byte| {
            start.push(byte);
            !Compression::ALL.iter().any(|one| one.mark().len() > start.len() && one.mark().starts_with(&start))
        })?;
        let found = Compression::ALL.into_iter().find(|compression| compression.mark() == start);
        self.compression = self.compression.or(found);
        self.reader = match self.compression {
            None => Peek::new(Box::new(input)),
            Some(compression) => {
                Peek::new(Box::new(BufReader::with_capacity(BUFFER_BYTES, compression.unpack(input)?)))
            }
        };
        let (mut length, mut is_blank) = (0, true);
        let sample = self.reader.peek(|byte| {
            length += 1;
            is_blank &= matches!(byte, b'\0' | b'\t' | b'\n' | b'\r' | b' ');
            length == SAMPLE_BYTES || waits && !is_blank && matches!(byte, b'\n' | b'\r')
        })?;
        let (encoding, mark) = Encoding::detect(sample);
        self.reader.consume(mark);
        if let Encoding::Units { width, is_big } = encoding {
            if mark == 0 {
                self.notices.note(format!("{} is {} without a byte order mark", self.name, encoding.name()));
            }
            let reader = std::mem::replace(&mut self.reader, Peek::new(Box::new(io::empty())));
            self.reader = Peek::new(Box::new(Decoder::new(reader, width, is_big)));
        }
        Ok(())
    }

    /// The byte that lines end in: a line feed, perhaps behind a carriage return, unless there are carriage returns and
    /// not one line feed.
    pub(super) fn line_ending(&mut self) -> io::Result<u8> {
        let mut length = 0;
        let sample = self.reader.peek(|byte| {
            length += 1;
            length == SAMPLE_BYTES || byte == b'\n'
        })?;
        // A line feed may follow on the last byte.
        let known = if sample.len() == SAMPLE_BYTES { &sample[..SAMPLE_BYTES - 1] } else { sample };
        if sample.contains(&b'\n') || !known.contains(&b'\r') {
            return Ok(b'\n');
        }
        self.notices.note(format!("the lines of {} end in carriage returns", self.name));
        Ok(b'\r')
    }

    /// The start of the text, up to the end of the first line that is not blank.
    pub(super) fn first_line(&mut self) -> io::Result<&[u8]> {
        let (mut length, mut is_blank) = (0, true);
        self.reader.peek(|byte| {
            length += 1;
            let ends = matches!(byte, b'\n' | b'\r');
            is_blank &= ends;
            length == SAMPLE_BYTES || ends && !is_blank
        })
    }

    /// The error that reading on at `place` ended in.
    pub(super) fn broken(&self, place: Place, cause: io::Error) -> anyhow::Error {
        let name = &self.name;
        let refused = cause.get_ref().and_then(|cause| cause.downcast_ref::<Refused>());
        // What the system reports is no fault of the data.
        let line = match (self.compression, refused) {
            (_, Some(reason)) => format!("{name}: {place}: {reason}"),
            (Some(compression), None) if cause.raw_os_error().is_none() => {
                let compression = compression.name();
                format!(
                    "{name}: {place}: the {compression} data are damaged or end too early; get the whole file again"
                )
            }
            _ => format!("{name}: {place}: cannot read on"),
        };
        anyhow::Error::new(cause).context(BadInput(line))
    }
}
