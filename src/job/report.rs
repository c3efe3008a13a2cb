//! The report on rows that could not be used.

use crate::bad_input;
use crate::io::prompts::BadRow;
use crate::io::writer::{LONGEST_NAME, hidden_name};
use anyhow::{Context, Result};
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempPath};

/// What is added to an output's name.
const SUFFIX: &str = ".errors.jsonl";

/// A line a row, in a file beside the output. It appears when the run is done, and only if there is something in it.
#[derive(Debug)]
pub struct Report {
    path: PathBuf,
    old: Old,
    part: Option<BufWriter<NamedTempFile>>,
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

/// What becomes of a report that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old {
    /// It stays, and the run is refused.
    Refused,
    /// It may be this run's own, from before it was stopped; with anything else in it, it stays.
    Compared,
    /// It is replaced or, if there is nothing to report, removed.
    Replaced,
}

impl Report {
    /// The report that goes with an output, a file or a folder.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if one is there and has to stay.
    pub fn beside(output: &Path, old: Old) -> Result<Self> {
        let path = path_beside(output);
        let name = path.file_name().unwrap_or_default();
        if name.len() > LONGEST_NAME {
            return Err(bad_input!(
                "{name:?}, the report on rows that are skipped, has too long a name; give the output a shorter one"
            ));
        }
        if old == Old::Refused && fs::symlink_metadata(&path).is_ok() {
            return Err(bad_input!(
                "{:?} is there already; move it away, or --overwrite replaces it",
                path.display().to_string()
            ));
        }
        Ok(Self { path, old, part: None, rows: 0, closed: false })
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
            part => part.insert(BufWriter::new(create(part_of(&self.path)).with_context(|| failed.clone())?)),
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
    /// [`crate::error::BadInput`] if another one is there and has to stay; or if it cannot be written.
    pub(super) fn finish(&mut self) -> Result<u64> {
        let name = self.path.display().to_string();
        let failed = || format!("cannot write the report {name:?}");
        let part = self.part.take().map(BufWriter::into_inner).transpose();
        let part = part.map_err(|error| error.into_error()).with_context(failed)?;
        if let Some(part) = &part {
            part.as_file().sync_all().with_context(failed)?;
        }
        let new = part.as_ref().map(NamedTempFile::path);
        if self.old == Old::Compared && !self.is_same(new).with_context(failed)? {
            return Err(bad_input!(
                "{name:?} is of another run; move it away and --resume, or --overwrite replaces it"
            ));
        }
        let Some(part) = part.map(NamedTempFile::into_temp_path) else { return Ok(0) };
        let moved = match self.old {
            Old::Refused => part.persist_noclobber(&self.path),
            Old::Compared | Old::Replaced => part.persist(&self.path),
        };
        match moved {
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
                Err(bad_input!("{name:?} appeared while the embeddings were computed; move it away, and --resume"))
            }
            moved => moved.map(|()| self.rows).with_context(failed),
        }
    }

    /// Whether the report that is there, if one is, holds what `part` does, or nothing if there is none.
    fn is_same(&self, part: Option<&Path>) -> io::Result<bool> {
        let old = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            old => BufReader::new(old?),
        };
        let Some(part) = part else { return Ok(false) };
        let mut new = BufReader::new(File::open(part)?).bytes();
        for byte in old.bytes() {
            if new.next().transpose()? != Some(byte?) {
                return Ok(false);
            }
        }
        Ok(new.next().is_none())
    }

    /// Removes what an earlier run reported, if it may be: once the output that it was about is replaced by one about
    /// which there is nothing to report.
    ///
    /// # Errors
    /// If it is there and cannot be removed.
    pub(super) fn remove_old(&self) -> Result<()> {
        if self.old == Old::Replaced && self.rows == 0 && self.path.is_file() {
            let name = self.path.display().to_string();
            fs::remove_file(&self.path)
                .with_context(|| format!("cannot remove the report {name:?} of an earlier run"))?;
        }
        Ok(())
    }

    /// Gives up what is not whole: the run that goes on writes it again.
    pub(super) fn discard(&mut self) {
        self.closed = true;
        self.part = None;
    }

    /// Where the report is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Where the report on an output is.
fn path_beside(output: &Path) -> PathBuf {
    // Of a path like `.` only the whole one has a name to add to.
    let whole = if output.file_name().is_none() { fs::canonicalize(output).ok() } else { None };
    let output = whole.as_deref().unwrap_or(output);
    // Without the slash that a folder's name may end with.
    let mut path = OsString::from(output.components().as_path());
    path.push(SUFFIX);
    path.into()
}

/// A file that is removed unless it gets another name.
fn create(path: PathBuf) -> io::Result<NamedTempFile> {
    Ok(NamedTempFile::from_parts(File::create(&path)?, TempPath::try_from_path(path)?))
}

/// Where it is written until it is whole.
fn part_of(path: &Path) -> PathBuf {
    path.with_file_name(hidden_name(path, ".part"))
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
        assert_eq!(Report::beside(&output, Old::Refused).unwrap().finish().unwrap(), 0);
        assert_eq!(names(), 0);
        let bad = BadRow { place: Place::Line(3), reason: "no \"prompt\"".into() };
        let mut report = Report::beside(&output, Old::Refused).unwrap();
        report.add(4, 2, &bad).unwrap();
        drop(report);
        assert_eq!(names(), 0, "an unfinished report goes");
        let mut report = Report::beside(&output, Old::Refused).unwrap();
        report.add(4, 2, &bad).unwrap();
        assert_eq!(report.finish().unwrap(), 2);
        let text = fs::read_to_string(folder.path().join("e.npy.errors.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({"row": 4, "rows": 2, "place": "line 3", "reason": "no \"prompt\""});
        assert_eq!(line, expected);
        assert!(Report::beside(&output, Old::Refused).is_err());
        assert!(Report::beside(&output, Old::Replaced).is_ok());
    }

    #[test]
    fn a_report_of_another_run_stays_unless_it_may_be_replaced() {
        let folder = TempDir::new().unwrap();
        let output = folder.path().join("e.npy");
        let path = folder.path().join("e.npy.errors.jsonl");
        let bad = BadRow { place: Place::Line(3), reason: "no".into() };
        let finish = |old, rows: u64| {
            let mut report = Report::beside(&output, old)?;
            (0..rows).try_for_each(|row| report.add(row, 1, &bad))?;
            let finished = report.finish()?;
            report.remove_old()?;
            anyhow::Ok(finished)
        };
        assert_eq!(finish(Old::Compared, 2).unwrap(), 2);
        let own = fs::read(&path).unwrap();
        assert_eq!(finish(Old::Compared, 2).unwrap(), 2, "a run that goes on finds its own");
        for rows in [0, 1, 3] {
            let error = finish(Old::Compared, rows).unwrap_err();
            assert!(error.to_string().contains("of another run"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), own);
            assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        }
        assert_eq!(finish(Old::Replaced, 1).unwrap(), 1);
        assert_ne!(fs::read(&path).unwrap(), own);
        assert_eq!(finish(Old::Replaced, 0).unwrap(), 0);
        assert!(!path.exists(), "there is nothing to report");
    }

    #[test]
    fn the_report_on_a_folder_is_beside_it() {
        let beside = |output: &str| path_beside(Path::new(output)).display().to_string();
        for (output, path) in [("dd", "dd.errors.jsonl"), ("dd/", "dd.errors.jsonl"), ("a/dd//", "a/dd.errors.jsonl")] {
            assert_eq!(beside(output), path);
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(beside("."), format!("{}.errors.jsonl", here.display()));
    }
}
