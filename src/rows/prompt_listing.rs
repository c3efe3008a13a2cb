//! Prompt files by their names, those of folders, and those that patterns match.

use super::format::PromptFormat;
use super::formats::{FORMATS, format_of_extension, format_of_path};
use super::listing::{self, Filter};
use super::prompt_file::PromptFile;
use crate::bad_input;
use crate::bad_input::OrBadInput;
use crate::files;
use anyhow::Result;
use glob::Pattern;
use std::fs;
use std::path::Path;

/// What stands for prompt files in folders: those of every format, or those of the one that is given.
#[derive(Debug, Clone, Copy)]
pub struct PromptListing {
    format: Option<&'static PromptFormat>,
}

impl PromptListing {
    /// That of `--format-in`.
    pub fn new(format: Option<&'static PromptFormat>) -> Self {
        Self { format }
    }

    /// The files that a path stands for: a file, those in a folder, or those that a pattern such as `captions/*.parquet`
    /// matches, which may match folders. What is found is sorted by the bytes of its path.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if a folder cannot be read or holds no prompt files, or a pattern matches none.
    pub fn files(self, path: &Path) -> Result<Vec<PromptFile>> {
        let pattern = path.to_str().filter(|text| listing::is_pattern(text));
        let mut found = Vec::new();
        match (fs::metadata(path), pattern) {
            (Ok(metadata), _) if metadata.is_dir() => {
                self.filter(&|path| self.has_extension(path)).walk(path, &mut found)?;
                if found.is_empty() {
                    return Err(self.holds_none(&path.display().to_string()));
                }
            }
            (Err(_), Some(pattern)) => {
                for path in listing::matches(pattern)? {
                    match path.is_dir() {
                        true => self.filter(&|path| self.has_extension(path)).walk(&path, &mut found)?,
                        false => found.push(path),
                    }
                }
                if found.is_empty() {
                    return Err(bad_input!("{pattern:?} matches no files"));
                }
            }
            // Opening it has the better message.
            _ => found.push(path.into()),
        }
        found.sort_unstable_by(|one, other| bytes(one).cmp(bytes(other)));
        found.dedup();
        Ok(found.into_iter().map(PromptFile::from).collect())
    }

    /// The same of the files of a repository, none if there are none: `path` is empty for its root.
    pub fn select(self, path: &str, files: &[&str]) -> Vec<String> {
        if files.contains(&path) {
            return vec![path.into()];
        }
        let folder = path.strip_suffix('/').unwrap_or(path);
        let pattern = Some(folder)
            .filter(|folder| listing::is_pattern(folder))
            .map(|pattern| Pattern::new(&listing::whole(pattern)));
        let is_match = |path: &str| match &pattern {
            Some(pattern) => pattern.as_ref().is_ok_and(|pattern| pattern.matches_with(path, listing::OPTIONS)),
            None => path == folder,
        };
        let is_taken = |file: &&&str| {
            let mut folders = file.match_indices('/').map(|(end, _)| (&file[..end], &file[end + 1..]));
            let is_in = |(folder, below): (&str, &str)| is_match(folder) && self.takes(below);
            pattern.is_some() && is_match(file) || folder.is_empty() && self.takes(file) || folders.any(is_in)
        };
        let mut found: Vec<String> = files.iter().filter(is_taken).map(|file| file.to_string()).collect();
        found.sort_unstable();
        found
    }

    /// Whether a folder gives the file at `path` once there is one, or of a folder at `path` the file `inner`.
    pub fn gives(self, folder: &Path, path: &Path, inner: Option<&str>) -> bool {
        let real = |path: &Path| fs::canonicalize(path).ok().filter(|path| path.is_dir());
        let (Some(folder), Some(name), Some(parent)) = (real(folder), path.file_name(), real(files::parent(path)))
        else {
            return false;
        };
        let path = inner.map_or_else(|| parent.join(name), |inner| parent.join(name).join(inner));
        path.strip_prefix(folder).is_ok_and(|below| self.takes(&below.to_string_lossy()))
    }

    /// Checks that the format of files of a repository is known.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it is not; it calls the file what `name` makes of its path.
    pub fn check_formats(self, files: &[String], name: impl Fn(&str) -> String) -> Result<()> {
        let mut files = files.iter().filter(|_| self.format.is_none());
        files.try_for_each(|file| format_of_path(Path::new(file), &name(file)).map(drop))
    }

    /// Checks a pattern for files of a repository.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it is not valid.
    pub fn check(self, path: &str) -> Result<()> {
        match listing::is_pattern(path) {
            true => Pattern::new(path).map(drop).or_bad_input(|| format!("{path:?} is not a valid pattern")),
            false => Ok(()),
        }
    }

    /// The error for a folder without prompt files.
    pub fn holds_none(self, name: &str) -> anyhow::Error {
        let formats = FORMATS.into_iter().filter(|format| self.format.is_none_or(|only| only == *format));
        let extensions: Vec<&str> = formats.flat_map(|format| format.extensions).copied().collect();
        bad_input!(
            "{name:?} holds no prompt files (.{}); name the files, or a pattern in quotes that they match",
            extensions.join(", .")
        )
    }

    /// Whether a folder gives the file at a path below it.
    fn takes(self, below: &str) -> bool {
        let takes = |path: &Path| self.has_extension(path);
        let filter = self.filter(&takes);
        !below.split('/').any(|name| filter.hides(name.as_bytes())) && self.has_extension(Path::new(below))
    }

    /// Spark, Ray and pandas leave out the same names.
    fn filter<'a>(self, takes: &'a dyn Fn(&Path) -> bool) -> Filter<'a> {
        Filter { hidden: b"._", takes }
    }

    fn has_extension(self, path: &Path) -> bool {
        format_of_extension(path).is_some_and(|format| self.format.is_none_or(|only| only == format))
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 14] = [
        "README.md",
        "a.txt",
        "a/.git/x.txt",
        "a/_x/y.csv",
        "a/b/c.jsonl.zst",
        "a/b/d.parquet",
        "a/b.csv",
        "a/notes",
        "b[1].txt",
        "b1.txt",
        "c/.hidden.txt",
        "c/_meta.csv",
        "é/ü.tsv",
        "z.gz",
    ];

    /// What a path stands for in a repository and, which must be the same, in a folder.
    fn found(path: &str, format: Option<&'static PromptFormat>) -> Vec<String> {
        let folder = tempfile::TempDir::new().unwrap();
        for file in FILES {
            let place = folder.path().join(file);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, "").unwrap();
        }
        let listing = PromptListing::new(format);
        let selected = listing.select(path, &FILES);
        let root = folder.path().to_str().unwrap();
        let local = listing.files(&folder.path().join(path)).map_or_else(
            |_| Vec::new(),
            |files| files.into_iter().map(|file| file.name[root.len() + 1..].to_string()).collect(),
        );
        // Of a file that is not there, opening it tells.
        let is_missing = selected.is_empty() && local == [path];
        assert!(selected == local || is_missing, "{path}: {selected:?} in a repository, {local:?} in a folder");
        selected
    }

    #[test]
    fn paths_stand_for_the_same_in_a_repository_and_in_a_folder() {
        let all = ["a.txt", "a/b.csv", "a/b/c.jsonl.zst", "a/b/d.parquet", "b1.txt", "b[1].txt", "é/ü.tsv"];
        for (path, expected) in [
            ("", &all[..]),
            ("a", &all[1..4]),
            ("a/", &all[1..4]),
            ("a/b", &all[2..4]),
            ("a/notes", &["a/notes"]),
            ("z.gz", &["z.gz"]),
            ("b[1].txt", &["b[1].txt"]),
            ("b[0-9].txt", &["b1.txt"]),
            ("*.txt", &["a.txt", "b1.txt", "b[1].txt"]),
            ("?/*.csv", &["a/b.csv", "c/_meta.csv"]),
            // Folders that a pattern matches give what they would by name.
            ("[aé]", &["a/b.csv", "a/b/c.jsonl.zst", "a/b/d.parquet", "é/ü.tsv"]),
            ("a/b*", &all[1..4]),
            ("**/*.parquet", &["a/b/d.parquet"]),
            ("a/**/b*", &all[1..4]),
            ("é/**", &["é/ü.tsv"]),
            ("a/b/**", &all[2..4]),
            ("none", &[]),
            ("none/*", &[]),
            ("a.tx", &[]),
            ("c", &[]),
        ] {
            assert_eq!(found(path, None), expected, "{path}");
        }
        assert_eq!(found("", Some(FORMATS[2])), ["a/b.csv"]);
        assert_eq!(
            found("a/b*", Some(FORMATS[1])),
            ["a/b.csv", "a/b/c.jsonl.zst"],
            "what is named counts whatever it is"
        );
    }
}
