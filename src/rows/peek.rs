//! A reader with lookahead.

use std::io::{self, BufRead, Read};

/// A reader that can be looked ahead in as far as a condition on the bytes says, which `BufRead` cannot.
pub(super) struct Peek<R> {
    input: R,
    seen: Vec<u8>,
    /// How many of `seen` were read.
    start: usize,
    /// Bytes read so far.
    count: u64,
}

impl<R: BufRead> Peek<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, seen: Vec::new(), start: 0, count: 0 }
    }

    /// The next bytes up to and including the first for which `is_last` is true, or to the end of the input. Reads no
    /// further: more may never arrive.
    pub(super) fn peek(&mut self, mut is_last: impl FnMut(u8) -> bool) -> io::Result<&[u8]> {
        self.seen.drain(..std::mem::take(&mut self.start));
        let mut enough = self.seen.iter().position(|byte| is_last(*byte)).map(|place| place + 1);
        while enough.is_none() {
            let available = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                available => available?,
            };
            if available.is_empty() {
                break;
            }
            let end = available.iter().position(|byte| is_last(*byte)).map(|place| place + 1);
            let taken = end.unwrap_or(available.len());
            self.seen.extend(&available[..taken]);
            self.input.consume(taken);
            enough = end.map(|_| self.seen.len());
        }
        Ok(&self.seen[..enough.unwrap_or(self.seen.len())])
    }

    /// The next `count` bytes, or fewer at the end of the input.
    pub(super) fn peek_bytes(&mut self, count: usize) -> io::Result<&[u8]> {
        let mut left = count;
        self.peek(|_| {
            left = left.saturating_sub(1);
            left == 0
        })
    }

    /// Bytes read so far, not counting the lookahead.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

impl<R: BufRead> Read for Peek<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Peek<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start < self.seen.len() { Ok(&self.seen[self.start..]) } else { self.input.fill_buf() }
    }

    fn consume(&mut self, amount: usize) {
        self.count += amount as u64;
        if self.start < self.seen.len() {
            self.start += amount;
        } else {
            self.input.consume(amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peeked_bytes_are_still_read() {
        let mut reader = Peek::new(io::BufReader::with_capacity(3, &b"one\ntwo\nthree"[..]));
        let line = |reader: &mut Peek<_>| reader.peek(|byte| byte == b'\n').unwrap().to_vec();
        assert_eq!([line(&mut reader), line(&mut reader)], [b"one\n", b"one\n"]);
        reader.consume(2);
        assert_eq!(line(&mut reader), b"e\n");
        assert_eq!(reader.peek(|byte| byte == b'w').unwrap(), b"e\ntw");
        assert_eq!(line(&mut reader), b"e\n");
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), reader.count()), ("e\ntwo\nthree", 13));
        assert_eq!(line(&mut reader), b"");
    }
}
