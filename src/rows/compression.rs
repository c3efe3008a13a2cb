//! gzip and zstd, decompressed as they are read.

use super::peek::Peek;
use flate2::bufread::GzDecoder;
use std::fmt;
use std::io::{self, BufRead, Read};
use std::path::Path;

/// A compression format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    pub(super) const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    /// That of a file name's extension.
    pub(super) fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_string_lossy().to_lowercase().as_str() {
            "gz" => Some(Self::Gzip),
            "zst" => Some(Self::Zstd),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The magic number: RFC 1952, section 2.3.1, and RFC 8878, section 3.1.1.
    pub(super) fn magic(self) -> &'static [u8] {
        match self {
            Self::Gzip => b"\x1f\x8b",
            Self::Zstd => b"\x28\xb5\x2f\xfd",
        }
    }

    /// Decompresses `input` as it is read.
    ///
    /// # Errors
    /// If its start cannot be read. Reading may fail with [`Refused`].
    pub(super) fn decompress(self, input: impl BufRead + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Gzip => Box::new(Gzip { member: Some(GzDecoder::new(input)) }),
            Self::Zstd => Box::new(Zstd::new(Peek::new(input))?),
        })
    }
}

/// Sound data that would take too much memory. Displays as a clause about the file.
#[derive(Debug)]
pub(super) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

impl std::error::Error for Refused {}

/// The members of a gzip file. NULs between and after them are padding, which the gzip program and Python's gzip skip
/// too.
struct Gzip<R> {
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let mut input = self.member.take().map(GzDecoder::into_inner);
            if let Some(input) = input.take_if(|input| !matches!(skip_padding(input), Ok(false))) {
                self.member = Some(GzDecoder::new(input));
            }
        }
        Ok(0)
    }
}

/// Skips NULs; false at the end of the input.
fn skip_padding(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let available = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            available => available?,
        };
        let padding = available.iter().take_while(|byte| **byte == 0).count();
        let (has_more, is_at_end) = (padding < available.len(), available.is_empty());
        input.consume(padding);
        if has_more || is_at_end {
            return Ok(has_more);
        }
    }
}

/// The largest window that zstd decompresses, that of `zstd --long=31`.
const MAX_WINDOW_LOG: u32 = 31;

/// Window memory that any zstd file may take: the limit of other programs.
const MAX_WINDOW_BYTES: u64 = 128 << 20;

/// Window memory that a larger zstd file may take, as a multiple of the compressed bytes read so far.
const MAX_RATIO: u64 = 10;

/// The frames of a zstd file. A frame of a few bytes may declare a window of 2 GiB. Memory is taken only as the window
/// fills, and that is bounded here.
struct Zstd<R: BufRead> {
    frame: Option<zstd::Decoder<'static, Peek<R>>>,
    /// How far the window of the current frame can fill.
    window: u64,
    /// Bytes decompressed from the current frame.
    decompressed: u64,
}

impl<R: BufRead> Zstd<R> {
    fn new(input: Peek<R>) -> io::Result<Self> {
        let mut decoder = Self { frame: None, window: 0, decompressed: 0 };
        if !decoder.begin(input)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(decoder)
    }

    /// Begins the next frame; false at the end of the input.
    fn begin(&mut self, mut input: Peek<R>) -> io::Result<bool> {
        let start = input.peek_bytes(5)?;
        let Some(first) = start.first() else { return Ok(false) };
        // The fifth byte determines the length of a frame's header.
        let length = if *first == Compression::Zstd.magic()[0] {
            start.get(4).map_or(0, |byte| header_length(*byte))
        } else {
            0
        };
        self.window = window(input.peek_bytes(length)?).unwrap_or_default();
        if self.window > 1 << MAX_WINDOW_LOG {
            return Err(self.refused("more than zstd decompresses"));
        }
        self.decompressed = 0;
        let mut frame = zstd::Decoder::with_buffer(input)?.single_frame();
        frame.window_log_max(MAX_WINDOW_LOG)?;
        self.frame = Some(frame);
        Ok(true)
    }

    fn refused(&self, reason: &str) -> io::Error {
        let window = self.window.div_ceil(1 << 20);
        let line = format!("its zstd window of {window} MiB is {reason}; compress it again without --long or --ultra");
        io::Error::other(Refused(line))
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(frame) = &mut self.frame {
            let read = frame.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                self.decompressed += read as u64;
                let max = MAX_WINDOW_BYTES.max(frame.get_ref().count().saturating_mul(MAX_RATIO));
                if self.decompressed.min(self.window) > max {
                    return Err(self.refused(&format!(
                        "filled with more than {} MiB and {MAX_RATIO} times the data so far",
                        MAX_WINDOW_BYTES >> 20
                    )));
                }
                return Ok(read);
            }
            if let Some(frame) = self.frame.take() {
                self.begin(frame.finish())?;
            }
        }
        Ok(0)
    }
}

/// The length of a zstd frame's header, by its descriptor: RFC 8878, section 3.1.1.1.
fn header_length(descriptor: u8) -> usize {
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    5 + usize::from(!is_single_segment(descriptor)) + dictionary + content_size_length(descriptor)
}

/// Whether the whole content is the window, whose size the header then lacks.
fn is_single_segment(descriptor: u8) -> bool {
    descriptor >> 5 & 1 == 1
}

/// The length of the field with the content's size.
fn content_size_length(descriptor: u8) -> usize {
    match descriptor >> 6 {
        0 => usize::from(is_single_segment(descriptor)),
        flag => 1 << flag,
    }
}

/// How much of its output the decoder of a zstd frame keeps in memory: the window, or the content if that is known to
/// be smaller. `None` for a skippable frame.
fn window(header: &[u8]) -> Option<u64> {
    let descriptor = *header.get(4).filter(|_| header.starts_with(Compression::Zstd.magic()))?;
    let size_bytes = content_size_length(descriptor);
    let size = header.get(header_length(descriptor) - size_bytes..header_length(descriptor))?;
    let size =
        size.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte)) + if size_bytes == 2 { 256 } else { 0 };
    let size = (size_bytes > 0).then_some(size);
    if is_single_segment(descriptor) {
        return size;
    }
    let (exponent, mantissa) = (header.get(5)? >> 3, u64::from(header.get(5)? & 7));
    let base = 1_u64 << (10 + exponent);
    let window = base + base / 8 * mantissa;
    // One that is too large is refused whatever the content.
    Some(if window > 1 << MAX_WINDOW_LOG { window } else { size.map_or(window, |size| size.min(window)) })
}
