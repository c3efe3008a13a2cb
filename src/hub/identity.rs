//! What a model is, whatever it is called and wherever it lies: a fingerprint of the files that a run reads.

use super::digest::hexadecimal;
use super::fetch::Model;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Files up to this size are read whole.
const WHOLE: usize = 16 << 20;

/// Of larger ones, so many pieces are read.
const PIECES: usize = 256;

/// Bytes in a piece.
const PIECE: usize = 64 << 10;

/// The fingerprint, 16 hexadecimal digits.
///
/// Of weights beyond 16 MiB it reads the size, the beginning with the names and places of tensors, the end, and pieces all
/// over: training changes all of them. Names, commits and times do not count, nor do files that the run does not read.
///
/// # Errors
/// If a file cannot be read.
pub fn fingerprint(model: &Model) -> Result<String> {
    let mut paths: Vec<&str> = model.files.iter().map(|file| file.path.as_str()).collect();
    paths.sort_unstable();
    let mut hash = Sha256::new();
    for path in paths {
        let bytes = model.folder.open(path).with_context(|| format!("cannot read {}", model.folder.path_of(path)))?;
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path);
        hash.update((bytes.len() as u64).to_le_bytes());
        if bytes.len() <= WHOLE {
            hash.update(&*bytes);
        } else {
            for start in piece_starts(bytes.len()) {
                hash.update(&bytes[start..start + PIECE]);
            }
        }
    }
    Ok(hexadecimal(&hash.finalize()[..8]))
}

/// Where the pieces of a large file begin: evenly over it, the first at the beginning and the last at the end.
fn piece_starts(len: usize) -> impl Iterator<Item = usize> {
    let last = len - PIECE;
    (0..PIECES).map(move |piece| (last as u128 * piece as u128 / (PIECES - 1) as u128) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Folder;
    use crate::hub::fetch::ModelFile;
    use std::fs;

    fn of(folder: &std::path::Path, paths: &[&str]) -> String {
        let file = |path: &&str| ModelFile { path: path.to_string(), bytes: None, is_here: true };
        let files = paths.iter().map(file).collect();
        fingerprint(&Model { folder: Folder::from(folder), commit: None, files }).unwrap()
    }

    #[test]
    fn it_is_of_the_files_that_are_read_alone() {
        let folder = tempfile::TempDir::new().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        let mut weights = vec![1; WHOLE + 12_345];
        write("a.json", b"{}");
        write("b.bin", &weights);
        let first = of(folder.path(), &["a.json", "b.bin"]);
        assert_eq!(first.len(), 16);
        write("c.json", b"other");
        assert_eq!(of(folder.path(), &["b.bin", "a.json"]), first);
        assert_ne!(of(folder.path(), &["a.json", "b.bin", "c.json"]), first);
        for place in [0, WHOLE + 12_344] {
            weights[place] = 2;
            write("b.bin", &weights);
            assert_ne!(of(folder.path(), &["a.json", "b.bin"]), first, "byte {place}");
            weights[place] = 1;
        }
        write("b.bin", &weights);
        assert_eq!(of(folder.path(), &["a.json", "b.bin"]), first);
        write("a.json", b"[]");
        assert_ne!(of(folder.path(), &["a.json", "b.bin"]), first);
    }
}
