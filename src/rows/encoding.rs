//! Detects a text's encoding, and decodes UTF-16 and UTF-32.
//!
//! `encoding_rs` has no UTF-32, and puts U+FFFD where the input is malformed, which would pass for part of a prompt.

use std::io::{self, BufRead, Read};

/// Stands for malformed input: a byte that UTF-8 never has, so that its line is refused as not UTF-8.
const MALFORMED: u8 = 0xff;

/// A character encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    /// UTF-16 or UTF-32: units of 2 or 4 bytes.
    Units {
        width: usize,
        is_big: bool,
    },
}

impl Encoding {
    /// Byte order marks. That of UTF-16LE is the start of that of UTF-32LE, and comes after it.
    const MARKS: [(&[u8], Self); 5] = [
        (b"\xef\xbb\xbf", Self::Utf8),
        (b"\xff\xfe\0\0", Self::Units { width: 4, is_big: false }),
        (b"\0\0\xfe\xff", Self::Units { width: 4, is_big: true }),
        (b"\xff\xfe", Self::Units { width: 2, is_big: false }),
        (b"\xfe\xff", Self::Units { width: 2, is_big: true }),
    ];

    /// The encoding of a text that starts with `sample`, and the length of its byte order mark. Without a mark it is
    /// UTF-8 unless that is all but ruled out by NULs at every second byte, or at three of four.
    pub(super) fn detect(sample: &[u8]) -> (Self, usize) {
        if let Some((mark, encoding)) = Self::MARKS.into_iter().find(|(mark, _)| sample.starts_with(mark)) {
            return (encoding, mark.len());
        }
        if !sample.contains(&0) {
            return (Self::Utf8, 0);
        }
        let orders = [false, true];
        if let Some(is_big) = orders.into_iter().find(|is_big| Census::of(sample, 4, *is_big).is_some()) {
            return (Self::Units { width: 4, is_big }, 0);
        }
        let is_likely = |is_big: &bool| {
            // In most languages nearly all units are below U+0100. Fewer will do if it cannot be UTF-8.
            Census::of(sample, 2, *is_big).is_some_and(|Census { all, latin, blank }| {
                latin * 4 >= all * 3 || blank > 0 && !is_likely_utf8(sample)
            })
        };
        let mut likely = orders.into_iter().filter(is_likely);
        match (likely.next(), likely.next()) {
            (Some(is_big), None) => (Self::Units { width: 2, is_big }, 0),
            _ => (Self::Utf8, 0),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "UTF-8",
            Self::Units { width: 2, is_big: false } => "UTF-16LE",
            Self::Units { width: 2, is_big: true } => "UTF-16BE",
            Self::Units { is_big: false, .. } => "UTF-32LE",
            Self::Units { is_big: true, .. } => "UTF-32BE",
        }
    }
}

/// Counts of a sample's characters.
struct Census {
    all: usize,
    /// Those below U+0100.
    latin: usize,
    /// Spaces and line breaks.
    blank: usize,
}

impl Census {
    /// `None` if the sample is not text in these units, or too short for one character.
    fn of(sample: &[u8], width: usize, is_big: bool) -> Option<Self> {
        // Spaces and line breaks in the other byte order.
        const SWAPPED: [u32; 3] = [0x2000, 0x0a00, 0x0d00];
        let rest = sample.chunks_exact(width).remainder();
        // It may end within a line break.
        if !rest.is_empty() && (is_big || !matches!(rest, [b'\n' | b'\r'])) {
            return None;
        }
        let mut census = Self { all: 0, latin: 0, blank: 0 };
        for char in chars(&sample[..whole(sample, width, is_big)], width, is_big) {
            let code = u32::from(char?);
            // No characters are assigned in planes 4 to 13, but two characters of UTF-16 read as one there.
            let is_likely = !SWAPPED.contains(&code) && !(0x4_0000..=0xd_ffff).contains(&code);
            let char = char.filter(|char| is_likely && !is_odd(*char))?;
            census.all += 1;
            census.latin += usize::from(char < '\u{100}');
            census.blank += usize::from(matches!(char, ' ' | '\n' | '\r'));
        }
        (census.all > 0).then_some(census)
    }
}

fn is_likely_utf8(sample: &[u8]) -> bool {
    let text = match std::str::from_utf8(sample) {
        Ok(text) => text,
        // Truncated within a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&sample[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.chars().any(|char| is_odd(char) && char != '\0')
}

/// Whether it is a control character that text does not have.
fn is_odd(char: char) -> bool {
    char.is_control() && !matches!(char, '\t'..='\r' | '\u{1b}' | '\u{80}'..)
}

/// The characters of text in UTF-16 or UTF-32, `None` for what is malformed.
fn chars(bytes: &[u8], width: usize, is_big: bool) -> Box<dyn Iterator<Item = Option<char>> + '_> {
    let units = bytes.chunks_exact(width).map(move |bytes| unit(bytes, is_big));
    if width == 2 {
        Box::new(char::decode_utf16(units.map(|unit| unit as u16)).map(Result::ok))
    } else {
        Box::new(units.map(char::from_u32))
    }
}

fn unit(bytes: &[u8], is_big: bool) -> u32 {
    let add = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
    if is_big { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) }
}

/// The length of `bytes` without an incomplete character at the end: part of a unit, or a surrogate whose pair is
/// missing.
fn whole(bytes: &[u8], width: usize, is_big: bool) -> usize {
    let last = bytes.chunks_exact(width).last().filter(|_| width == 2);
    let is_high = last.is_some_and(|bytes| matches!(unit(bytes, is_big), 0xd800..=0xdbff));
    (bytes.len() / width - usize::from(is_high)) * width
}

/// Decodes UTF-16 or UTF-32 to UTF-8, as far as the input has arrived. [`MALFORMED`] stands for what cannot be decoded.
pub(super) struct Decoder<R> {
    input: R,
    width: usize,
    is_big: bool,
    /// The start of a character.
    pending: Vec<u8>,
    decoded: Vec<u8>,
    /// How many of `decoded` were read.
    start: usize,
    is_at_end: bool,
}

impl<R: BufRead> Decoder<R> {
    /// Reads `input`, without its byte order mark, in units of `width` bytes.
    pub(super) fn new(input: R, width: usize, is_big: bool) -> Self {
        Self { input, width, is_big, pending: Vec::new(), decoded: Vec::new(), start: 0, is_at_end: false }
    }

    fn decode(&mut self) -> io::Result<()> {
        let Self { input, width, is_big, pending, decoded, .. } = self;
        decoded.clear();
        self.start = 0;
        let available = input.fill_buf()?;
        let size = available.len();
        pending.extend(available);
        input.consume(size);
        self.is_at_end = size == 0;
        let whole = if self.is_at_end { pending.len() } else { whole(pending, *width, *is_big) };
        for char in chars(&pending[..whole], *width, *is_big) {
            match char {
                Some(char) => decoded.extend(char.encode_utf8(&mut [0; 4]).as_bytes()),
                None => decoded.push(MALFORMED),
            }
        }
        if whole % *width > 0 {
            decoded.push(MALFORMED);
        }
        pending.drain(..whole);
        Ok(())
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Decoder<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.start == self.decoded.len() && !self.is_at_end {
            self.decode()?;
        }
        Ok(&self.decoded[self.start..])
    }

    fn consume(&mut self, amount: usize) {
        self.start += amount;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub const ALL: [Encoding; 5] = [
        Encoding::Utf8,
        Encoding::Units { width: 2, is_big: false },
        Encoding::Units { width: 2, is_big: true },
        Encoding::Units { width: 4, is_big: false },
        Encoding::Units { width: 4, is_big: true },
    ];

    /// A text's bytes in an encoding.
    pub fn encode(text: &str, encoding: Encoding) -> Vec<u8> {
        let (units, width, is_big): (Vec<u32>, _, _) = match encoding {
            Encoding::Utf8 => return text.as_bytes().to_vec(),
            Encoding::Units { width: 2, is_big } => (text.encode_utf16().map(u32::from).collect(), 2, is_big),
            Encoding::Units { width, is_big } => (text.chars().map(u32::from).collect(), width, is_big),
        };
        let bytes = units.into_iter().flat_map(|unit| {
            let bytes = if is_big { unit.to_be_bytes() } else { unit.to_le_bytes() };
            if is_big { bytes[4 - width..].to_vec() } else { bytes[..width].to_vec() }
        });
        bytes.collect()
    }

    fn decode(bytes: &[u8], width: usize, is_big: bool, chunk: usize) -> Vec<u8> {
        let mut decoded = Vec::new();
        let input = io::BufReader::with_capacity(chunk, bytes);
        Decoder::new(input, width, is_big).read_to_end(&mut decoded).unwrap();
        decoded
    }

    proptest! {
        #[test]
        fn text_is_decoded_in_pieces_of_any_size(text in "\\PC{0,200}", chunk in 1_usize..9) {
            for encoding in &ALL[1..] {
                let Encoding::Units { width, is_big } = *encoding else { unreachable!() };
                prop_assert_eq!(decode(&encode(&text, *encoding), width, is_big, chunk), text.as_bytes());
            }
        }

        #[test]
        fn a_byte_order_mark_decides_the_encoding(text in "\\PC{0,50}") {
            for encoding in ALL {
                let bytes = encode(&format!("\u{feff}{text}"), encoding);
                let mark = encode("\u{feff}", encoding).len();
                // A NUL behind the mark of UTF-16LE would be that of UTF-32LE.
                prop_assert_eq!(Encoding::detect(&bytes), (encoding, mark));
            }
        }

        #[test]
        fn text_in_latin_letters_needs_no_mark(text in "[a-zäöüé ,.!]{1,50}[\r\n]") {
            for encoding in ALL {
                prop_assert_eq!(Encoding::detect(&encode(&text, encoding)), (encoding, 0));
            }
        }

        #[test]
        fn utf8_is_never_taken_for_another_encoding(text in "[^\0]{0,50}", nul in 0_usize..50) {
            let mark = if text.starts_with('\u{feff}') { 3 } else { 0 };
            prop_assert_eq!(Encoding::detect(text.as_bytes()), (Encoding::Utf8, mark));
            let mut with_nul: Vec<char> = "a red apple and two cats, and more".chars().collect();
            with_nul.insert(nul % with_nul.len(), '\0');
            let with_nul: String = with_nul.into_iter().collect();
            prop_assert_eq!(Encoding::detect(with_nul.as_bytes()), (Encoding::Utf8, 0));
        }
    }

    #[test]
    fn other_scripts_need_no_mark_where_utf8_is_ruled_out() {
        let texts =
            ["красное яблоко\nдве кошки\n", "一个红苹果\n两只猫\n", "一一一果\n", "κόκκινο μήλο\n", "a 红苹果\r\n"];
        for text in texts {
            for encoding in ALL {
                assert_eq!(Encoding::detect(&encode(text, encoding)), (encoding, 0), "{text} {encoding:?}");
            }
        }
    }

    #[test]
    fn ambiguous_text_is_not_decoded() {
        // U+4E00 in one order is an N in the other.
        let line = encode("一一一\n", ALL[1]);
        assert_eq!(Encoding::detect(&line), (Encoding::Utf8, 0), "each letter alone could be either");
        assert_eq!(Encoding::detect(&line[..7]), (Encoding::Utf8, 0), "as far as a stream is looked into");
        for bytes in [&b"\0"[..], b"\0\0\0\0", b"a\0b\0\0", b"cat\0dog\0\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"] {
            assert_eq!(Encoding::detect(bytes), (Encoding::Utf8, 0), "{bytes:?}");
        }
    }

    #[test]
    fn malformed_input_is_not_utf8() {
        // A high surrogate alone between two letters, and half a unit at the end.
        assert_eq!(decode(b"a\0\0\xd8b\0", 2, false, 64), b"a\xffb");
        assert_eq!(decode(b"a\0\0\xdcb\0", 2, false, 64), b"a\xffb");
        assert_eq!(decode(b"a\0\0\xd8", 2, false, 64), b"a\xff");
        assert_eq!(decode(b"a\0b", 2, false, 64), b"a\xff");
        assert_eq!(decode(b"a\0\0\0\0\xd8\0\0b\0\0\0\0\0\x11\0c\0\0", 4, false, 64), b"a\xffb\xff\xff");
    }
}
