//! The report on rows that could not be used.

use crate::bad_input;
use crate::io::prompts::BadRow;
use anyhow::{Context, Result};
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use tempfile::TempPath;

/// What is added to an output's name.
const SUFFIX: &str = ".errors.jsonl";

/// A line a row, in a file beside the output. It appears when the run is done, and only if there is something in it.
#[derive(Debug)]
pub struct Report {
    path: PathBuf,
    overwrite: bool,
    part: Option<BufWriter<File>>,
    rows: u64,
    /// Whether nothing more is to be written.
    closed: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    /// The first of the rows that are zeros for it.
    row: u64,
    rows: u64,
    place: String,
    reason: &'a str,
}

impl Report {
    /// The report that goes with an output. One that is there already stays unless `overwrite` is set.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if one is there and must stay.
    pub fn beside(output: &Path, overwrite: bool) -> Result<Self> {
        let mut path = OsString::from(output);
        path.push(SUFFIX);
        let path = PathBuf::from(path);
        if !overwrite && fs::symlink_metadata(&path).is_ok() {
            return Err(bad_input!(
                "{:?} is there already; move it away, or --overwrite replaces it",
                path.display().to_string()
            ));
        }
        Ok(Self { path, overwrite, part: None, rows: 0, closed: false })
    }

    /// Adds a prompt that could not be used, whose rows begin with `row`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn add(&mut self, row: u64, rows: u64, bad: &BadRow) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        let failed = format!("cannot write the report {:?}", self.path.display().to_string());
        let part = match &mut self.part {
            Some(part) => part,
            part => part.insert(BufWriter::new(File::create(part_of(&self.path)).with_context(|| failed.clone())?)),
        };
        let line = Line { row, rows, place: bad.place.to_string(), reason: &bad.reason };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        part.write_all(&text).context(failed)?;
        self.rows = self.rows.saturating_add(rows);
        Ok(())
    }

    /// Puts the report into its place, and says how many rows it tells of.
    ///
    /// # Errors
    /// If it cannot be written, or one has appeared meanwhile.
    pub(super) fn finish(&mut self) -> Result<u64> {
        let Some(part) = self.part.take() else { return Ok(0) };
        let name = self.path.display().to_string();
        let failed = || format!("cannot write the report {name:?}");
        let file = part.into_inner().map_err(|error| error.into_error()).with_context(failed)?;
        file.sync_all().with_context(failed)?;
        let part = TempPath::try_from_path(part_of(&self.path)).with_context(failed)?;
        let moved = if self.overwrite { part.persist(&self.path) } else { part.persist_noclobber(&self.path) };
        match moved {
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
                Err(bad_input!("{name:?} appeared while the embeddings were computed; move it away, and --resume"))
            }
            moved => moved.map(|()| self.rows).with_context(failed),
        }
    }

    /// Gives up what is not whole: the run that goes on writes it again.
    pub(super) fn discard(&mut self) {
        self.closed = true;
        if self.part.take().is_some() {
            let _ = fs::remove_file(part_of(&self.path));
        }
    }

    /// Where the report is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.discard();
    }
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".part");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::prompts::Place;
    use tempfile::TempDir;

    #[test]
    fn a_report_appears_when_it_is_done_and_if_there_is_something_to_tell() {
        let folder = TempDir::new().unwrap();
        let output = folder.path().join("e.npy");
        let names = || folder.path().read_dir().unwrap().count();
        assert_eq!(Report::beside(&output, false).unwrap().finish().unwrap(), 0);
        assert_eq!(names(), 0);
        let bad = BadRow { place: Place::Line(3), reason: "no \"prompt\"".into() };
        let mut report = Report::beside(&output, false).unwrap();
        report.add(4, 2, &bad).unwrap();
        drop(report);
        assert_eq!(names(), 0, "an unfinished report goes");
        let mut report = Report::beside(&output, false).unwrap();
        report.add(4, 2, &bad).unwrap();
        assert_eq!(report.finish().unwrap(), 2);
        let text = fs::read_to_string(folder.path().join("e.npy.errors.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({"row": 4, "rows": 2, "place": "line 3", "reason": "no \"prompt\""});
        assert_eq!(line, expected);
        assert!(Report::beside(&output, false).is_err());
        assert!(Report::beside(&output, true).is_ok());
    }
}
