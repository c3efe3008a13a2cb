//! UTF-16 as UTF-8.

use encoding_rs::{Decoder, DecoderResult, Encoding};
use std::io::{self, BufRead, Read};

/// What is decoded at a time, with room for one more byte.
const BUFFER_BYTES: usize = 16 * 1024;

/// No byte of UTF-8, so that the line with it is found out as every line is that is no text.
const MALFORMED: u8 = 0xff;

/// Text in UTF-16, read as UTF-8. A surrogate without its pair, or half a unit at the end, becomes a byte that is not
/// UTF-8.
pub(super) struct Utf16<R> {
    input: R,
    decoder: Decoder,
    decoded: Vec<u8>,
    start: usize,
    end: usize,
    finished: bool,
}

impl<R: BufRead> Utf16<R> {
    /// Reads `input`, which comes after its byte order mark, in one of the two encodings.
    pub(super) fn new(input: R, encoding: &'static Encoding) -> Self {
        let decoder = encoding.new_decoder_without_bom_handling();
        Self { input, decoder, decoded: vec![0; BUFFER_BYTES + 1], start: 0, end: 0, finished: false }
    }

    fn decode(&mut self) -> io::Result<()> {
        let input = self.input.fill_buf()?;
        let is_last = input.is_empty();
        let output = &mut self.decoded[..BUFFER_BYTES];
        let (result, read, written) = self.decoder.decode_to_utf8_without_replacement(input, output, is_last);
        self.input.consume(read);
        (self.start, self.end) = (0, written);
        match result {
            DecoderResult::InputEmpty => self.finished = is_last,
            DecoderResult::OutputFull => {}
            DecoderResult::Malformed(..) => {
                self.decoded[written] = MALFORMED;
                self.end += 1;
            }
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Utf16<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.start == self.end && !self.finished {
            self.decode()?;
        }
        Ok(&self.decoded[self.start..self.end])
    }

    fn consume(&mut self, amount: usize) {
        self.start += amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8], encoding: &'static Encoding, chunk: usize) -> Vec<u8> {
        let mut decoded = Vec::new();
        Utf16::new(io::BufReader::with_capacity(chunk, bytes), encoding).read_to_end(&mut decoded).unwrap();
        decoded
    }

    proptest! {
        #[test]
        fn text_comes_back_whatever_pieces_it_arrives_in(text in "\\PC{0,200}", chunk in 1_usize..9) {
            let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
            prop_assert_eq!(decode(&little, encoding_rs::UTF_16LE, chunk), text.as_bytes());
            prop_assert_eq!(decode(&big, encoding_rs::UTF_16BE, chunk), text.as_bytes());
        }
    }

    #[test]
    fn more_than_a_buffer_is_decoded() {
        let text = "é€😀".repeat(BUFFER_BYTES / 4);
        let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(decode(&bytes, encoding_rs::UTF_16LE, 1000), text.as_bytes());
    }

    #[test]
    fn what_is_malformed_is_not_utf8() {
        // A high surrogate alone between two letters, and half a unit at the end.
        assert_eq!(decode(b"a\0\0\xd8b\0", encoding_rs::UTF_16LE, 64), b"a\xffb");
        assert_eq!(decode(b"a\0b", encoding_rs::UTF_16LE, 64), b"a\xff");
    }
}
