//! Opens a prompt file or standard input, decompresses and decodes it.

use super::compression::{Compression, Refused};
use super::encoding::{Decoder, Encoding};
use super::interruptible::Interruptible;
use super::peek::Peek;
use super::prompt_file::PromptFile;
use super::record::{Notices, Place};
use crate::bad_input;
use crate::bad_input::{BadInput, OrBadInput};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const BUFFER_BYTES: usize = 64 * 1024;

/// The sample of a text from which its encoding and line ends are detected. Of a stream it ends with the first line
/// that is not blank: more may never arrive.
const SAMPLE_BYTES: usize = 64 * 1024;

/// A prompt file or standard input, opened and not read yet.
pub(super) struct Input {
    /// Its name in messages.
    pub name: String,
    /// Whether reading may block until somebody writes.
    pub blocks: bool,
    compression: Option<Compression>,
    handle: Handle,
}

enum Handle {
    File(File),
    Stream(Box<dyn Read + Send>),
}

impl Input {
    /// Opens a file, or standard input.
    pub(super) fn open(file: &PromptFile, interrupt: &Arc<AtomicBool>) -> Result<Self> {
        let PromptFile { path, name } = file.clone();
        if path.as_os_str() == "-" {
            let stdin = Interruptible::stdin(Arc::clone(interrupt)).context("cannot read standard input")?;
            return Ok(Self::of_stream(&name, stdin));
        }
        let path = path.as_path();
        let cannot = || format!("cannot read the prompts file {name:?}");
        let file = File::open(path).or_bad_input(cannot)?;
        let metadata = file.metadata().or_bad_input(cannot)?;
        if metadata.is_dir() {
            return Err(bad_input!("prompts file {name:?} is a folder; give a file in it"));
        }
        let handle = if metadata.is_file() {
            Handle::File(file)
        } else {
            Handle::Stream(Box::new(Interruptible::new(file, Arc::clone(interrupt))))
        };
        let blocks = matches!(handle, Handle::Stream(_));
        Ok(Self { name, blocks, compression: Compression::of_path(path), handle })
    }

    /// A list of paths in the file `path`, or on standard input if it is `-`: its name, and its bytes as they are.
    pub(super) fn open_list(path: &Path, interrupt: &Arc<AtomicBool>) -> Result<(String, Box<dyn BufRead + Send>)> {
        let is_stdin = path.as_os_str() == "-";
        let name = if is_stdin { "standard input".to_string() } else { path.display().to_string() };
        let cannot = || format!("cannot read the list of paths {name:?}");
        let stream = match is_stdin {
            true => Interruptible::stdin(Arc::clone(interrupt)).or_bad_input(cannot)?,
            false => Interruptible::new(File::open(path).or_bad_input(cannot)?, Arc::clone(interrupt)),
        };
        Ok((name, Box::new(BufReader::with_capacity(BUFFER_BYTES, stream))))
    }

    /// A stream, read once and perhaps written to meanwhile.
    pub(super) fn of_stream(name: &str, stream: impl Read + Send + 'static) -> Self {
        Self { name: name.into(), blocks: true, compression: None, handle: Handle::Stream(Box::new(stream)) }
    }

    /// Its text, decompressed and in UTF-8 without a byte order mark. It may hold bytes that are not valid UTF-8.
    pub(super) fn text(self, notices: &Notices) -> Result<Text> {
        let stream: Box<dyn Read + Send> = match self.handle {
            Handle::File(file) => Box::new(file),
            Handle::Stream(stream) => stream,
        };
        let (reader, notices): (Box<dyn BufRead + Send>, _) = (Box::new(io::empty()), notices.clone());
        let mut text = Text { name: self.name, compression: self.compression, reader: Peek::new(reader), notices };
        match text.decode(BufReader::with_capacity(BUFFER_BYTES, stream), self.blocks) {
            Ok(()) => Ok(text),
            Err(cause) => Err(text.unreadable(Place::Line(1), cause)),
        }
    }

    /// It as a file that can be sought in, and its name. A stream is copied to a temporary file.
    pub(super) fn file(self) -> Result<(File, String)> {
        let name = self.name;
        if let Some(compression) = self.compression {
            let compression = compression.name();
            return Err(bad_input!(
                "{name}: Parquet is compressed inside, and this file is compressed with {compression} again; unpack it"
            ));
        }
        match self.handle {
            Handle::File(file) => Ok((file, name)),
            Handle::Stream(mut stream) => {
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

/// The text of an input.
pub(super) struct Text {
    /// Its name in messages.
    pub name: String,
    pub reader: Peek<Box<dyn BufRead + Send>>,
    pub notices: Notices,
    compression: Option<Compression>,
}

impl Text {
    fn decode(&mut self, input: impl BufRead + Send + 'static, blocks: bool) -> io::Result<()> {
        let mut input = Peek::new(input);
        let mut start = Vec::new();
        // Read no further than necessary: more may never arrive.
        input.peek(|byte| {
            start.push(byte);
            !Compression::ALL.iter().any(|one| one.magic().len() > start.len() && one.magic().starts_with(&start))
        })?;
        let found = Compression::ALL.into_iter().find(|compression| compression.magic() == start);
        self.compression = self.compression.or(found);
        self.reader = match self.compression {
            None => Peek::new(Box::new(input)),
            Some(compression) => {
                Peek::new(Box::new(BufReader::with_capacity(BUFFER_BYTES, compression.decompress(input)?)))
            }
        };
        let (mut length, mut is_blank) = (0, true);
        let sample = self.reader.peek(|byte| {
            length += 1;
            is_blank &= matches!(byte, b'\0' | b'\t' | b'\n' | b'\r' | b' ');
            length == SAMPLE_BYTES || blocks && !is_blank && matches!(byte, b'\n' | b'\r')
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

    /// The last byte of each line: a line feed, unless the sample has carriage returns and no line feed.
    pub(super) fn line_ending(&mut self) -> io::Result<u8> {
        let mut length = 0;
        let sample = self.reader.peek(|byte| {
            length += 1;
            length == SAMPLE_BYTES || byte == b'\n'
        })?;
        // A line feed may follow the last byte of the sample.
        let known = if sample.len() == SAMPLE_BYTES { &sample[..SAMPLE_BYTES - 1] } else { sample };
        if sample.contains(&b'\n') || !known.contains(&b'\r') {
            return Ok(b'\n');
        }
        self.notices.note(format!("the lines of {} end in carriage returns", self.name));
        Ok(b'\r')
    }

    /// The text up to the end of the first line that is not blank, or the sample of it.
    pub(super) fn first_line(&mut self) -> io::Result<&[u8]> {
        let (mut length, mut is_blank) = (0, true);
        self.reader.peek(|byte| {
            length += 1;
            let ends = matches!(byte, b'\n' | b'\r');
            is_blank &= ends;
            length == SAMPLE_BYTES || ends && !is_blank
        })
    }

    /// The error for a text that cannot be read at `place`.
    pub(super) fn unreadable(&self, place: Place, cause: io::Error) -> anyhow::Error {
        let name = &self.name;
        let refused = cause.get_ref().and_then(|cause| cause.downcast_ref::<Refused>());
        // An error of the system does not mean that the data are damaged.
        let line = match (self.compression, refused) {
            (_, Some(reason)) => format!("{name}: {place}: {reason}"),
            (Some(compression), None) if cause.raw_os_error().is_none() => {
                let compression = compression.name();
                format!(
                    "{name}: {place}: the {compression} data are damaged or end too early; get the whole file again"
                )
            }
            _ => format!("{name}: {place}: read error"),
        };
        anyhow::Error::new(cause).context(BadInput(line))
    }
}
