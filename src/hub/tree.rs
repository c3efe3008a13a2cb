//! The files of a commit with what is needed to download them, as the hub lists them page by page and as the cache keeps
//! them.

use super::etag::{FileMetadata, blob_name};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The format of the cache's file.
const FORMAT_VERSION: u64 = 1;

/// The files of a commit by their paths.
pub type Files = BTreeMap<String, TreeFile>;

/// A file of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeFile {
    /// Its size in bytes, or that of what stands for it in Git.
    size: u64,
    /// Git's SHA-1.
    blob_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
    /// Kept for huggingface_hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    xet_hash: Option<String>,
}

impl TreeFile {
    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.lfs_size.unwrap_or(self.size)
    }

    /// What a request for the file's metadata would give; `None` if its hash cannot be the name of a blob.
    pub fn metadata(&self) -> Option<FileMetadata> {
        let etag = blob_name(self.lfs_sha256.as_ref().unwrap_or(&self.blob_id))?;
        Some(FileMetadata { etag, size: Some(self.len()) })
    }
}

/// The files in a page of the hub's listing.
///
/// # Errors
/// If it is no such page.
pub fn parse_page(text: &[u8]) -> serde_json::Result<Files> {
    #[derive(Deserialize)]
    struct Entry {
        r#type: String,
        path: String,
        #[serde(default)]
        size: u64,
        #[serde(default)]
        oid: String,
        lfs: Option<Lfs>,
        #[serde(rename = "xetHash")]
        xet_hash: Option<String>,
    }
    #[derive(Deserialize)]
    struct Lfs {
        oid: String,
        size: u64,
    }
    let entries: Vec<Entry> = serde_json::from_slice(text)?;
    let file = |entry: Entry| {
        let Entry { path, size, oid: blob_id, lfs, xet_hash, .. } = entry;
        let (lfs_sha256, lfs_size) = lfs.map(|lfs| (lfs.oid, lfs.size)).unzip();
        (path, TreeFile { size, blob_id, lfs_sha256, lfs_size, xet_hash })
    };
    Ok(entries.into_iter().filter(|entry| entry.r#type == "file").map(file).collect())
}

/// The file of the cache: `{"format_version": 1, "files": {PATH: {"size": …, "blob_id": …}}}`.
#[derive(Serialize, Deserialize)]
struct Cached<F> {
    format_version: u64,
    files: F,
}

/// The files in a file of the cache; `None` if it is of another version, or damaged.
pub fn parse_cached(text: &[u8]) -> Option<Files> {
    let Cached { format_version, files } = serde_json::from_slice(text).ok()?;
    (format_version == FORMAT_VERSION).then_some(files)
}

/// The file of the cache.
pub fn to_cached(files: &Files) -> Vec<u8> {
    serde_json::to_vec(&Cached { format_version: FORMAT_VERSION, files }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_becomes_a_file_of_the_cache_and_comes_back() {
        let page = br#"[
            {"type": "directory", "oid": "d", "size": 0, "path": "data"},
            {"type": "file", "oid": "a1", "size": 12, "path": "data/a.csv"},
            {"type": "file", "oid": "b1", "size": 134, "path": "data/b.parquet", "xetHash": "x",
             "lfs": {"oid": "b2", "size": 5000, "pointerSize": 134}}]"#;
        let files = parse_page(page).unwrap();
        let metadata = |path: &str| files[path].metadata().map(|file| (file.etag, file.size));
        assert_eq!(metadata("data/a.csv"), Some(("a1".into(), Some(12))));
        assert_eq!(metadata("data/b.parquet"), Some(("b2".into(), Some(5000))));
        assert_eq!(files.len(), 2, "a folder is no file");
        assert_eq!(parse_cached(&to_cached(&files)), Some(files));
        for other in
            ["", "{}", "{\"format_version\": 2, \"files\": {}}", "{\"format_version\": 1, \"files\": {\"a\": 1}}"]
        {
            assert_eq!(parse_cached(other.as_bytes()), None, "{other}");
        }
        assert!(parse_page(b"{\"error\": \"no\"}").is_err());
    }
}
