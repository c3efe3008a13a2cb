//! Where prompts come from: a file or standard input, decompressed and decoded.

use super::Place;
use super::utf16::Utf16;
use crate::bad_input;
use crate::error::{BadInput, OrBadInput};
use anyhow::{Context, Result};
use flate2::bufread::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;

/// What is read ahead of need, where it has arrived.
const BUFFER_BYTES: usize = 64 * 1024;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The bytes that such a file starts with: RFC 1952, section 2.3.1, and RFC 8878, section 3.1.1.
    fn mark(self) -> &'static [u8] {
        match self {
            Self::Gzip => b"\x1f\x8b",
            Self::Zstd => b"\x28\xb5\x2f\xfd",
        }
    }
}

/// The compression that a file name tells of.
pub(super) fn compression_of(path: &Path) -> Option<Compression> {
    match path.extension()?.to_string_lossy().to_lowercase().as_str() {
        "gz" => Some(Compression::Gzip),
        "zst" => Some(Compression::Zstd),
        _ => None,
    }
}

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
    pub(super) fn open(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::of_stream("standard input", std::io::stdin()));
        }
        let name = path.display().to_string();
        let cannot = || format!("cannot read the prompts file {name:?}");
        let file = File::open(path).or_bad_input(cannot)?;
        let metadata = file.metadata().or_bad_input(cannot)?;
        if metadata.is_dir() {
            return Err(bad_input!("prompts file {name:?} is a folder; give a file in it"));
        }
        let input = if metadata.is_file() { Input::File(file) } else { Input::Stream(Box::new(file)) };
        let waits = matches!(input, Input::Stream(_));
        Ok(Self { name, waits, compression: compression_of(path), input })
    }

    /// A source that cannot be read twice and may have to be waited for.
    pub(super) fn of_stream(name: &str, stream: impl Read + Send + 'static) -> Self {
        Self { name: name.into(), waits: true, compression: None, input: Input::Stream(Box::new(stream)) }
    }

    /// Its text, decompressed and in UTF-8 without a byte order mark; not every byte of it need be valid.
    pub(super) fn text(self) -> Result<Text> {
        let stream: Box<dyn Read + Send> = match self.input {
            Input::File(file) => Box::new(file),
            Input::Stream(stream) => stream,
        };
        let mut text = Text { name: self.name, compression: self.compression, reader: Box::new(io::empty()) };
        match text.decode(BufReader::with_capacity(BUFFER_BYTES, stream)) {
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
    pub reader: Box<dyn BufRead + Send>,
    compression: Option<Compression>,
}

impl Text {
    fn decode(&mut self, mut input: impl BufRead + Send + 'static) -> io::Result<()> {
        let start = read_mark(&mut input, &Compression::ALL.map(Compression::mark))?;
        let found = Compression::ALL.into_iter().find(|compression| compression.mark() == start);
        self.compression = self.compression.or(found);
        let input = Cursor::new(start).chain(input);
        match self.compression {
            None => self.reader = Box::new(input),
            Some(compression) => {
                let decoder: Box<dyn Read + Send> = match compression {
                    Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
                    Compression::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
                };
                self.reader = Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder));
            }
        }
        self.decode_utf16()
    }

    fn decode_utf16(&mut self) -> io::Result<()> {
        const MARKS: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"];
        let start = read_mark(&mut self.reader, &MARKS)?;
        let reader = std::mem::replace(&mut self.reader, Box::new(io::empty()));
        self.reader = match start.as_slice() {
            b"\xef\xbb\xbf" => reader,
            b"\xff\xfe" => Box::new(Utf16::new(reader, encoding_rs::UTF_16LE)),
            b"\xfe\xff" => Box::new(Utf16::new(reader, encoding_rs::UTF_16BE)),
            _ => Box::new(Cursor::new(start).chain(reader)),
        };
        Ok(())
    }

    /// The error that reading on at `place` ended in.
    pub(super) fn broken(&self, place: Place, cause: io::Error) -> anyhow::Error {
        let name = &self.name;
        // What the system reports is no fault of the data.
        let line = match self.compression {
            Some(compression) if cause.raw_os_error().is_none() => {
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

/// Reads the start of `input`: as many bytes as it takes to tell whether it is one of `marks`, and no more, since more
/// may never arrive.
fn read_mark(input: &mut impl BufRead, marks: &[&[u8]]) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    let mut bytes = input.by_ref().bytes();
    while marks.iter().any(|mark| mark.len() > start.len() && mark.starts_with(&start)) {
        let Some(byte) = bytes.next().transpose()? else { break };
        start.push(byte);
    }
    Ok(start)
}
