//! gzip and zstd, unpacked as they are read.

use super::peek::Peek;
use flate2::bufread::GzDecoder;
use std::fmt;
use std::io::{self, BufRead, Read};
use std::path::Path;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    pub(super) const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    /// The compression that a file name tells of.
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

    /// The bytes that such a file starts with: RFC 1952, section 2.3.1, and RFC 8878, section 3.1.1.
    pub(super) fn mark(self) -> &'static [u8] {
        match self {
            Self::Gzip => b"\x1f\x8b",
            Self::Zstd => b"\x28\xb5\x2f\xfd",
        }
    }

    /// What `input` unpacks to.
    ///
    /// # Errors
    /// If its start cannot be read. [`Refused`] is among the errors of reading it.
    pub(super) fn unpack(self, input: impl BufRead + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Gzip => Box::new(Gzip { member: Some(GzDecoder::new(input)) }),
            Self::Zstd => Box::new(Zstd::new(Peek::new(input))?),
        })
    }
}

/// Why data that are sound are not unpacked. Printed, it goes on after the name of the file.
#[derive(Debug)]
pub(super) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

impl std::error::Error for Refused {}

/// The members of a gzip file. NULs between and behind them are padding, which the gzip program and Python's gzip pass
/// over as well.
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

/// Passes over NULs; whether anything comes behind them.
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

/// The largest window of zstd, that of `zstd --long=31`.
const LARGEST_WINDOW_LOG: u32 = 31;

/// Memory that any zstd file may take. It is also the window up to which other programs ask no questions.
const WINDOW_BYTES: u64 = 128 << 20;

/// Memory that a larger zstd file may take, in sizes of what was read of it.
const MOST_TIMES: u64 = 10;

/// The frames of a zstd file. The window, which a frame asks for and which may be 2 GiB for a few bytes, takes memory only
/// as far as it is filled; that is bounded.
struct Zstd<R: BufRead> {
    frame: Option<zstd::Decoder<'static, Peek<R>>>,
    /// What the window of the current frame may grow to.
    window: u64,
    /// What came out of the current frame.
    unpacked: u64,
}

impl<R: BufRead> Zstd<R> {
    fn new(input: Peek<R>) -> io::Result<Self> {
        let mut decoder = Self { frame: None, window: 0, unpacked: 0 };
        if !decoder.begin(input)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(decoder)
    }

    /// Begins the next frame; whether there is one.
    fn begin(&mut self, mut input: Peek<R>) -> io::Result<bool> {
        let start = input.peek_bytes(5)?;
        let Some(first) = start.first() else { return Ok(false) };
        // The fifth byte tells the length of a frame's header.
        let length =
            if *first == Compression::Zstd.mark()[0] { start.get(4).map_or(0, |byte| header_length(*byte)) } else { 0 };
        self.window = window(input.peek_bytes(length)?).unwrap_or_default();
        if self.window > 1 << LARGEST_WINDOW_LOG {
            return Err(self.refused("more than zstd unpacks"));
        }
        self.unpacked = 0;
        let mut frame = zstd::Decoder::with_buffer(input)?.single_frame();
        frame.window_log_max(LARGEST_WINDOW_LOG)?;
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
                self.unpacked += read as u64;
                let most = WINDOW_BYTES.max(frame.get_ref().count().saturating_mul(MOST_TIMES));
                if self.unpacked.min(self.window) > most {
                    return Err(self.refused(&format!(
                        "filled with more than {} MiB and ten times the data so far",
                        WINDOW_BYTES >> 20
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

/// The length of the header of a zstd frame, by its descriptor: RFC 8878, section 3.1.1.1.
fn header_length(descriptor: u8) -> usize {
    let is_single = descriptor >> 5 & 1 == 1;
    let size = match descriptor >> 6 {
        0 => usize::from(is_single),
        flag => 1 << flag,
    };
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    5 + usize::from(!is_single) + dictionary + size
}

/// How much of its output a zstd frame keeps in memory: its window, or its contents if these are less and of known size.
/// `None` for a frame of another kind.
fn window(header: &[u8]) -> Option<u64> {
    let descriptor = *header.get(4).filter(|_| header.starts_with(Compression::Zstd.mark()))?;
    let is_single = descriptor >> 5 & 1 == 1;
    let size_bytes = match descriptor >> 6 {
        0 => usize::from(is_single),
        flag => 1 << flag,
    };
    let size = header.get(header_length(descriptor) - size_bytes..header_length(descriptor))?;
    let size =
        size.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte)) + if size_bytes == 2 { 256 } else { 0 };
    let size = (size_bytes > 0).then_some(size);
    if is_single {
        return size;
    }
    let (exponent, mantissa) = (header.get(5)? >> 3, u64::from(header.get(5)? & 7));
    let base = 1_u64 << (10 + exponent);
    let window = base + base / 8 * mantissa;
    // One that is too large is refused whatever is in it.
    Some(if window > 1 << LARGEST_WINDOW_LOG { window } else { size.map_or(window, |size| size.min(window)) })
}
