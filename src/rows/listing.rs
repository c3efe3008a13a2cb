//! Files by the names of folders, and by patterns.

use crate::bad_input::OrBadInput;
use anyhow::Result;
use glob::MatchOptions;
use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

/// As in a shell: hidden files need a pattern that begins with a dot, and `*` ends with a folder.
pub(super) const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// Whether a path has what makes it a pattern, unless it is that of a file.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// A pattern with what `**` at its end stands for in shells and in Python: files too.
pub(super) fn whole(pattern: &str) -> Cow<'_, str> {
    if pattern == "**" || pattern.ends_with("/**") { format!("{pattern}/*").into() } else { pattern.into() }
}

/// The files and folders that a pattern matches, each folder's in the order of their names.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if it is no valid pattern.
pub(super) fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let paths = glob::glob_with(&whole(pattern), OPTIONS)
        .or_bad_input(|| format!("{pattern:?} is neither a file nor a valid pattern"))?;
    Ok(paths.filter_map(Result::ok).collect())
}

/// Which files of a folder are listed.
pub(super) struct Filter<'a> {
    /// What the names of hidden files and folders begin with.
    pub hidden: &'a [u8],
    /// Whether a file is taken that is not hidden.
    pub takes: &'a dyn Fn(&Path) -> bool,
}

impl Filter<'_> {
    /// Whether a name is hidden.
    pub(super) fn hides(&self, name: &[u8]) -> bool {
        name.first().is_some_and(|first| self.hidden.contains(first))
    }

    /// Adds the files in a folder and in those below it, each folder's in the order of their names. Links to folders are
    /// not followed.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if a folder cannot be read.
    pub(super) fn walk(&self, folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
        let cannot = || format!("cannot read the folder {:?}", folder.display().to_string());
        let entries = fs::read_dir(folder).or_bad_input(cannot)?;
        let mut entries = entries.collect::<Result<Vec<_>, _>>().or_bad_input(cannot)?;
        entries.retain(|entry| !self.hides(entry.file_name().as_encoded_bytes()));
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if entry.file_type().or_bad_input(cannot)?.is_dir() {
                self.walk(&path, files)?;
            } else if (self.takes)(&path) && !path.is_dir() {
                files.push(path);
            }
        }
        Ok(())
    }
}
