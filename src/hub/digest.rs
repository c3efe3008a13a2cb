//! What a file's etag says of its content.

use anyhow::{Context, Result};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::io::{ErrorKind, Read};

/// Computes what the hub calls a content, as far as its name is a hash.
#[derive(Clone)]
pub enum Digest {
    /// Large files go by their SHA-256.
    Sha256(Sha256),
    /// Small files go by Git's hash of a blob, which begins with the size.
    Git(Sha1),
    /// A name that is no hash, as a mirror may give.
    Opaque,
}

impl Digest {
    /// Gets ready for a content of `size` bytes that is called `etag`.
    pub fn new(etag: &str, size: Option<u64>) -> Self {
        let is_hash = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (etag.len(), size) {
            (64, _) if is_hash => Self::Sha256(Sha256::new()),
            (40, Some(size)) if is_hash => Self::Git(Sha1::new_with_prefix(format!("blob {size}\0"))),
            _ => Self::Opaque,
        }
    }

    /// Whether the etag fixes the content, so that a part of it that is here already is a part of what will come.
    pub fn is_hash(&self) -> bool {
        !matches!(self, Self::Opaque)
    }

    /// Takes more of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
            Self::Opaque => {}
        }
    }

    /// Takes all that a reader gives, and says how much that was.
    ///
    /// # Errors
    /// If reading fails.
    pub fn update_from(&mut self, mut reader: impl Read) -> Result<u64> {
        let mut buffer = vec![0; 1 << 20];
        let mut len = 0;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(len),
                Ok(count) => {
                    self.update(&buffer[..count]);
                    len += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read it again"),
            }
        }
    }

    /// Whether what was taken is what `etag` names.
    pub fn matches(self, etag: &str) -> bool {
        let hash = match self {
            Self::Sha256(hash) => format!("{:x}", hash.finalize()),
            Self::Git(hash) => format!("{:x}", hash.finalize()),
            Self::Opaque => return true,
        };
        hash.eq_ignore_ascii_case(etag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_checked_by_their_kind() {
        // Published values: `git hash-object` and `sha256sum` of "hello\n".
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for etag in [git, sha256] {
            let digest_of = |text: &str| {
                let mut digest = Digest::new(etag, Some(text.len() as u64));
                assert!(digest.is_hash());
                assert_eq!(digest.update_from(text.as_bytes()).unwrap(), text.len() as u64);
                digest
            };
            assert!(digest_of("hello\n").matches(etag), "{etag}");
            assert!(!digest_of("hallo\n").matches(etag), "{etag}");
        }
        assert!(!Digest::new("weak-1", Some(6)).is_hash());
        assert!(Digest::new("weak-1", Some(6)).matches("weak-1"));
    }
}
