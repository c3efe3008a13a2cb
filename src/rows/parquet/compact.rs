//! Thrift's compact protocol, as far as it takes to know how much memory a file asks for before the decoder gives it. The
//! decoder reads the same bytes, and says what is wrong with them.

/// Structs that nest deeper are in no file.
const MOST_NESTED: usize = 64;

/// Bytes to read.
pub(super) struct Compact<'a>(pub &'a [u8]);

/// A field of a struct.
#[derive(Debug, Clone, Copy)]
pub(super) struct FieldHead {
    pub id: i64,
    pub kind: u8,
}

pub(super) const BOOL_TRUE: u8 = 1;
pub(super) const BINARY: u8 = 8;
pub(super) const LIST: u8 = 9;
pub(super) const STRUCT: u8 = 12;

impl<'a> Compact<'a> {
    pub(super) fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn signed(&mut self) -> Option<i64> {
        let value = self.unsigned()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    pub(super) fn binary(&mut self) -> Option<&'a [u8]> {
        let length = self.unsigned()?;
        self.take(length)
    }

    /// The number of elements of a list, and their kind.
    pub(super) fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.unsigned()? } else { u64::from(head >> 4) };
        Some((count, head & 15))
    }

    /// Reads a struct field by field: `on_field` reads the field's value, or leaves it to be skipped with `Some(false)`.
    pub(super) fn fields(&mut self, mut on_field: impl FnMut(&mut Self, FieldHead) -> Option<bool>) -> Option<()> {
        self.each_field(&mut on_field, MOST_NESTED)
    }

    fn each_field(
        &mut self,
        on_field: &mut dyn FnMut(&mut Self, FieldHead) -> Option<bool>,
        depth: usize,
    ) -> Option<()> {
        let mut id = 0;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(());
            }
            let step = i64::from(head >> 4);
            id = if step == 0 { self.signed()? } else { id + step };
            let kind = head & 15;
            if !on_field(self, FieldHead { id, kind })? {
                self.skip(kind, depth)?;
            }
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            BOOL_TRUE | 2 => {}
            3 => drop(self.byte()?),
            4..=6 => drop(self.unsigned()?),
            7 => drop(self.take(8)?),
            BINARY => drop(self.binary()?),
            LIST | 10 => {
                let (count, kind) = self.list()?;
                for _ in 0..count {
                    match kind {
                        BOOL_TRUE | 2 => drop(self.byte()?),
                        kind => self.skip(kind, depth.checked_sub(1)?)?,
                    }
                }
            }
            STRUCT => self.each_field(&mut |_, _| Some(false), depth.checked_sub(1)?)?,
            _ => return None,
        }
        Some(())
    }
}
