//! Reads the operands of a pickle's opcodes.

use super::error::PickleError;

/// The bytes of a pickle and the position of the next opcode.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], PickleError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let taken = rest.get(..len).ok_or_else(|| PickleError::corrupt("its pickle is truncated"))?;
        self.position += len;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, PickleError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, PickleError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Bytes after their count, which is `width` bytes wide: 1, 4 or 8.
    pub(super) fn counted(&mut self, width: u8) -> Result<&'a [u8], PickleError> {
        let len = match width {
            1 => self.u8()?.into(),
            4 => self.u32()?.into(),
            _ => u64::from_le_bytes(self.array()?),
        };
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// As [`Reader::counted`], as a string.
    pub(super) fn text(&mut self, width: u8) -> Result<&'a str, PickleError> {
        utf8(self.counted(width)?)
    }

    /// A line, without the line break.
    pub(super) fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let len = rest.iter().position(|&byte| byte == b'\n');
        let len = len.ok_or_else(|| PickleError::corrupt("its pickle is truncated"))?;
        self.position += len + 1;
        utf8(&rest[..len])
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, PickleError> {
    std::str::from_utf8(bytes).map_err(|_| PickleError::corrupt("a string in it is not UTF-8"))
}
