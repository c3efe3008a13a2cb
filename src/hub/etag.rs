//! ETags: the names of blobs in the cache and, for most files, the hashes of their content.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Seek};
use std::path::is_separator;

/// The metadata of a file.
#[derive(Debug, Clone)]
pub struct FileMetadata {
    /// The name of its blob: SHA-256 for large files, Git's SHA-1 for small ones.
    pub etag: String,
    /// Its size in bytes.
    pub size: Option<u64>,
}

/// The longest name of a blob, so that it still fits a file name's 255 bytes with the suffix of an unfinished download.
const MAX_BLOB_NAME: usize = 255 - ".01234567.incomplete".len();

/// The name of the blob with this ETag, if it can be the name of a file and of its lock.
///
/// Source: `_normalize_etag` in huggingface_hub, which does not check for paths.
pub fn blob_name(etag: &str) -> Option<String> {
    let name = etag.trim_start_matches(['W', '/']).trim_matches('"');
    let has_length = (1..=MAX_BLOB_NAME).contains(&name.len());
    let is_name = ![".", ".."].contains(&name) && !name.contains(|char| char == '\0' || is_separator(char));
    (has_length && is_name).then(|| name.to_string())
}

/// Whether the ETag is a hash of the content: SHA-256 for large files, Git's SHA-1 of a blob for small ones. Mirrors
/// may send others.
pub fn is_hash(etag: &str) -> bool {
    [40, 64].contains(&etag.len()) && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a file has the content that the ETag is the hash of; `true` if it is no hash.
///
/// # Errors
/// If the file cannot be read.
pub fn matches(etag: &str, mut file: &File) -> io::Result<bool> {
    if !is_hash(etag) {
        return Ok(true);
    }
    file.rewind()?;
    let hash = if etag.len() == 64 {
        let mut hash = Sha256::new();
        io::copy(&mut file, &mut hash)?;
        format!("{:x}", hash.finalize())
    } else {
        // Source: `git hash-object`.
        let mut hash = Sha1::new_with_prefix(format!("blob {}\0", file.metadata()?.len()));
        io::copy(&mut file, &mut hash)?;
        format!("{:x}", hash.finalize())
    };
    Ok(hash.eq_ignore_ascii_case(etag))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn etags_are_checked_by_their_kind() {
        // Published values: `git hash-object` and `sha256sum` of "hello\n".
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let is = |etag: &str, content: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(content.as_bytes()).unwrap();
            matches(etag, &file).unwrap()
        };
        for etag in [git, sha256] {
            assert!(is_hash(etag));
            assert!(is(etag, "hello\n") && is(&etag.to_uppercase(), "hello\n"), "{etag}");
            assert!(!is(etag, "hallo\n"), "{etag}");
        }
        assert!(!is_hash("weak-1") && is("weak-1", "hello\n"));
    }

    #[test]
    fn blobs_have_the_names_that_python_gives_them() {
        // Each pair as `_normalize_etag` of huggingface_hub 2.4 has it.
        for (etag, name) in [
            ("\"abc-1\"", "abc-1"),
            ("W/\"abc\"", "abc"),
            ("abc", "abc"),
            ("Wabc", "abc"),
            ("/abc", "abc"),
            ("\"Wabc\"", "Wabc"),
            ("\"\"abc\"\"", "abc"),
            ("\"abc\"x", "abc\"x"),
            ("\"CJ+9/q@==\"", ""),
            ("\"CJ+q@==\"", "CJ+q@=="),
            ("\".x\"", ".x"),
            ("\"...\"", "..."),
            ("\"a b:*?<>|~$&;!#%2F\u{e9}\"", "a b:*?<>|~$&;!#%2F\u{e9}"),
        ] {
            assert_eq!(blob_name(etag).unwrap_or_default(), name, "{etag}");
        }
        for etag in ["", "\"\"", "W/\"\"", "\"../x\"", "\"a/b\"", "\"..\"", "\".\"", "\"/etc/passwd\"", "a\0"] {
            assert_eq!(blob_name(etag), None, "{etag:?}");
        }
        assert!(blob_name(&"x".repeat(235)).is_some() && blob_name(&"x".repeat(236)).is_none());
    }
}
