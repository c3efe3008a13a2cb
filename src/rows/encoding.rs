//! UTF-16 and UTF-32 as UTF-8, and how a text's encoding is found out.

use std::io::{self, BufRead, Read};

/// No byte of UTF-8, so that the line with it is found out as every line is that is no text.
const MALFORMED: u8 = 0xff;

/// How characters are written down.
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
    /// Byte order marks. The one of UTF-32 is looked for before that of UTF-16 which it begins with.
    const MARKS: [(&[u8], Self); 5] = [
        (b"\xef\xbb\xbf", Self::Utf8),
        (b"\xff\xfe\0\0", Self::Units { width: 4, is_big: false }),
        (b"\0\0\xfe\xff", Self::Units { width: 4, is_big: true }),
        (b"\xff\xfe", Self::Units { width: 2, is_big: false }),
        (b"\xfe\xff", Self::Units { width: 2, is_big: true }),
    ];

    /// The encoding of a text that starts like this, and the length of its byte order mark. Without one it is UTF-8
    /// unless that is hardly possible: units of 2 or 4 bytes show as NULs in every place but one.
    pub(super) fn detect(start: &[u8]) -> (Self, usize) {
        if let Some((mark, encoding)) = Self::MARKS.into_iter().find(|(mark, _)| start.starts_with(mark)) {
            return (encoding, mark.len());
        }
        if !start.contains(&0) {
            return (Self::Utf8, 0);
        }
        let orders = [false, true];
        if let Some(is_big) = orders.into_iter().find(|is_big| count(start, 4, *is_big).is_some()) {
            return (Self::Units { width: 4, is_big }, 0);
        }
        let is_likely = |is_big: &bool| {
            // In most languages nearly all units are below U+0100. Fewer will do if it cannot be UTF-8.
            count(start, 2, *is_big)
                .is_some_and(|Count { all, latin, blank }| latin * 4 >= all * 3 || blank > 0 && !is_likely_utf8(start))
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

/// What the characters of a text are.
struct Count {
    all: usize,
    /// Those below U+0100.
    latin: usize,
    /// Spaces and line breaks.
    blank: usize,
}

/// The characters of the start of a text in these units; `None` if it is no text, or nothing of it is whole.
fn count(start: &[u8], width: usize, is_big: bool) -> Option<Count> {
    // Spaces and line breaks whose bytes are the other way round.
    const SWAPPED: [u32; 3] = [0x2000, 0x0a00, 0x0d00];
    let rest = start.chunks_exact(width).remainder();
    // It may end in a line break, of which the other bytes are still to come.
    if !rest.is_empty() && (is_big || !matches!(rest, [b'\n' | b'\r'])) {
        return None;
    }
    let mut units = start.chunks_exact(width).map(|unit| value(unit, is_big)).peekable();
    let mut count = Count { all: 0, latin: 0, blank: 0 };
    while let Some(unit) = units.next() {
        let code = match (unit, units.peek()) {
            (0xd800..=0xdbff, None) if width == 2 => break,
            (0xd800..=0xdbff, Some(&low @ 0xdc00..=0xdfff)) if width == 2 => {
                units.next();
                pair(unit, low)
            }
            _ => unit,
        };
        // No characters are assigned in the planes 4 to 13, but two characters of UTF-16 read as one there.
        let is_likely = !SWAPPED.contains(&code) && !(0x4_0000..=0xd_ffff).contains(&code);
        let char = char::from_u32(code).filter(|char| is_likely && !is_odd(*char))?;
        count.all += 1;
        count.latin += usize::from(char < '\u{100}');
        count.blank += usize::from(matches!(char, ' ' | '\n' | '\r'));
    }
    (count.all > 0).then_some(count)
}

fn is_likely_utf8(start: &[u8]) -> bool {
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // Cut within a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.chars().any(|char| is_odd(char) && char != '\0')
}

/// Whether it is a control character that no text has.
fn is_odd(char: char) -> bool {
    char.is_control() && !matches!(char, '\t'..='\r' | '\u{1b}' | '\u{80}'..)
}

fn value(unit: &[u8], is_big: bool) -> u32 {
    let add = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
    if is_big { unit.iter().fold(0, add) } else { unit.iter().rev().fold(0, add) }
}

/// The code of a high and a low surrogate.
fn pair(high: u32, low: u32) -> u32 {
    0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00)
}

/// Text in UTF-16 or UTF-32, read as UTF-8. A surrogate without its pair, what is no character, and part of a unit at the
/// end become a byte that is not UTF-8.
pub(super) struct Decoder<R> {
    input: R,
    width: usize,
    is_big: bool,
    /// The start of a unit.
    part: Vec<u8>,
    /// A surrogate that waits for its pair.
    high: Option<u32>,
    decoded: Vec<u8>,
    start: usize,
    is_at_end: bool,
}

impl<R: BufRead> Decoder<R> {
    /// Reads `input`, which comes after its byte order mark, in units of `width` bytes.
    pub(super) fn new(input: R, width: usize, is_big: bool) -> Self {
        let (part, decoded) = (Vec::new(), Vec::new());
        Self { input, width, is_big, part, high: None, decoded, start: 0, is_at_end: false }
    }

    fn decode(&mut self) -> io::Result<()> {
        self.decoded.clear();
        self.start = 0;
        let available = self.input.fill_buf()?;
        let size = available.len();
        let (mut part, mut high) = (std::mem::take(&mut self.part), self.high.take());
        for byte in available {
            part.push(*byte);
            if part.len() == self.width {
                let unit = value(&part, self.is_big);
                part.clear();
                high = take_unit(high, unit, self.width, &mut self.decoded);
            }
        }
        self.input.consume(size);
        self.is_at_end = size == 0;
        if self.is_at_end && (!part.is_empty() || high.is_some()) {
            self.decoded.push(MALFORMED);
        } else {
            (self.part, self.high) = (part, high);
        }
        Ok(())
    }
}

/// Writes a unit as UTF-8, or gives it back if it is the first half of a pair.
fn take_unit(high: Option<u32>, unit: u32, width: usize, decoded: &mut Vec<u8>) -> Option<u32> {
    let code = match (high, unit) {
        (Some(high), 0xdc00..=0xdfff) => pair(high, unit),
        _ => {
            decoded.extend(high.map(|_| MALFORMED));
            unit
        }
    };
    match char::from_u32(code) {
        Some(char) => decoded.extend(char.encode_utf8(&mut [0; 4]).as_bytes()),
        None if width == 2 && unit < 0xdc00 => return Some(unit),
        None => decoded.push(MALFORMED),
    }
    None
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
        fn text_comes_back_whatever_pieces_it_arrives_in(text in "\\PC{0,200}", chunk in 1_usize..9) {
            for encoding in &ALL[1..] {
                let Encoding::Units { width, is_big } = *encoding else { unreachable!() };
                prop_assert_eq!(decode(&encode(&text, *encoding), width, is_big, chunk), text.as_bytes());
            }
        }

        #[test]
        fn a_text_with_a_mark_is_in_its_encoding(text in "\\PC{0,50}") {
            for encoding in ALL {
                let bytes = encode(&format!("\u{feff}{text}"), encoding);
                let mark = encode("\u{feff}", encoding).len();
                // A NUL behind the mark of UTF-16LE would be that of UTF-32LE.
                prop_assert_eq!(Encoding::detect(&bytes), (encoding, mark));
            }
        }

        #[test]
        fn a_text_in_latin_letters_needs_no_mark(text in "[a-zäöüé ,.!]{1,50}[\r\n]") {
            for encoding in ALL {
                prop_assert_eq!(Encoding::detect(&encode(&text, encoding)), (encoding, 0));
            }
        }

        #[test]
        fn utf8_is_never_mistaken(text in "[^\0]{0,50}", nul in 0_usize..50) {
            prop_assert_eq!(Encoding::detect(text.as_bytes()), (Encoding::Utf8, if text.starts_with('\u{feff}') { 3 } else { 0 }));
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
    fn what_is_in_doubt_is_not_decoded() {
        // U+4E00 in one order is an N in the other.
        let line = encode("一一一\n", ALL[1]);
        assert_eq!(Encoding::detect(&line), (Encoding::Utf8, 0), "each letter alone could be either");
        assert_eq!(Encoding::detect(&line[..7]), (Encoding::Utf8, 0), "as far as a stream is looked into");
        for bytes in [&b"\0"[..], b"\0\0\0\0", b"a\0b\0\0", b"cat\0dog\0\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"] {
            assert_eq!(Encoding::detect(bytes), (Encoding::Utf8, 0), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_malformed_is_not_utf8() {
        // A high surrogate alone between two letters, and half a unit at the end.
        assert_eq!(decode(b"a\0\0\xd8b\0", 2, false, 64), b"a\xffb");
        assert_eq!(decode(b"a\0\0\xdcb\0", 2, false, 64), b"a\xffb");
        assert_eq!(decode(b"a\0\0\xd8", 2, false, 64), b"a\xff");
        assert_eq!(decode(b"a\0b", 2, false, 64), b"a\xff");
        assert_eq!(decode(b"a\0\0\0\0\xd8\0\0b\0\0\0\0\0\x11\0c\0\0", 4, false, 64), b"a\xffb\xff\xff");
    }
}
