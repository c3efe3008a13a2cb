//! The report on rows that cannot be used: `OUT.errors.jsonl`.

use crate::atomic::{self, same_bytes};
use crate::bad_input;
use crate::dir::{Access, Dir};
use crate::files::parent;
use crate::output::MAX_NAME;
use crate::rows::BadRow;
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Its name in the output's hidden folder, until it is published.
const PART: &str = "errors.jsonl";

/// Added to the output's name.
const SUFFIX: &str = ".errors.jsonl";

/// One JSON line per prompt, in a file beside the output. It appears when the run is done, and only if it is not empty.
#[derive(Debug)]
pub struct Report {
    path: PathBuf,
    if_exists: IfExists,
    /// The hidden folder, where it is written until it is complete.
    dir: Option<Dir>,
    part: Option<BufWriter<File>>,
    rows: u64,
    /// The first rows of what an earlier run reported.
    known: HashSet<u64>,
}

/// A report that the reader of prompts and the writer of embeddings add to.
pub(super) type SharedReport = Arc<Mutex<Report>>;

/// The report, also after a panic of another thread.
pub(super) fn lock(report: &SharedReport) -> MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    /// The first of its rows, which are zeros.
    row: u64,
    rows: u64,
    /// Where there are several.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    file: Option<Cow<'a, str>>,
    place: String,
    reason: Cow<'a, str>,
}

/// What to do if there is a report already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// Refuse to run.
    Fail,
    /// Replace it if it is the same: this run's own, published before it was interrupted. Else fail.
    Compare,
    /// Replace it or, if there is nothing to report, remove it.
    Replace,
}

impl IfExists {
    /// That of a run which replaces its output, or continues one.
    pub fn of(overwrites: bool, resumes: bool) -> Self {
        match (overwrites, resumes) {
            (true, _) => Self::Replace,
            (false, true) => Self::Compare,
            (false, false) => Self::Fail,
        }
    }
}

impl Report {
    /// The report beside an output, a file or a folder.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there is one and that is an error, or its name would be too long.
    pub fn beside(output: &Path, if_exists: IfExists) -> Result<Self> {
        let path = path_beside(output);
        let name = path.file_name().unwrap_or_default();
        if name.len() > MAX_NAME {
            return Err(bad_input!(
                "{name:?}, the report on skipped rows, has too long a name; give the output a shorter one"
            ));
        }
        if if_exists == IfExists::Fail && fs::symlink_metadata(&path).is_ok() {
            return Err(bad_input!(
                "{:?} is there already; move it away, or give --overwrite to replace it",
                path.display().to_string()
            ));
        }
        Ok(Self { path, if_exists, dir: None, part: None, rows: 0, known: HashSet::new() })
    }

    /// Sets the hidden folder to write in.
    pub(super) fn make_in(&mut self, dir: Dir) {
        self.dir = Some(dir);
    }

    /// Keeps what an earlier run reported in the hidden folder, since this one does not look at its rows again.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub(super) fn keep_lines(&mut self) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let mut text = String::new();
        if dir.kind(PART)?.is_some() {
            dir.open_file(PART, Access::Read)?.read_to_string(&mut text)?;
        }
        // The last line of a run that was killed may be incomplete.
        for line in text.lines().map_while(|line| serde_json::from_str::<Line>(line).ok()) {
            self.write(&line)?;
            self.known.insert(line.row);
        }
        self.flush()
    }

    /// Writes what was added so far to the hidden folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn flush(&mut self) -> Result<()> {
        let name = self.path.display().to_string();
        self.part.as_mut().map_or(Ok(()), Write::flush).with_context(|| format!("cannot write the report {name:?}"))
    }

    /// Adds a prompt that cannot be used and has `rows` rows from `row` on; with its file, if there are several.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn add(&mut self, row: u64, rows: u64, file: Option<&str>, bad: &BadRow) -> Result<()> {
        if self.known.contains(&row) {
            return Ok(());
        }
        let (file, reason) = (file.map(Cow::from), bad.reason.as_str().into());
        self.write(&Line { row, rows, file, place: bad.place.to_string(), reason })
    }

    fn write(&mut self, line: &Line) -> Result<()> {
        let failed = format!("cannot write the report {:?}", self.path.display().to_string());
        let part = match &mut self.part {
            Some(part) => part,
            part => {
                let dir = self.dir.as_ref().ok_or_else(|| anyhow!("internal error: a report without a folder"))?;
                part.insert(BufWriter::new(dir.create_anew(PART).with_context(|| failed.clone())?))
            }
        };
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        part.write_all(&text).context(failed)?;
        self.rows = self.rows.saturating_add(line.rows);
        Ok(())
    }

    /// Syncs the report, and checks that it can be published.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there is another one that must not be replaced; or if it cannot be written.
    pub(super) fn check(&mut self) -> Result<()> {
        let name = self.path.display().to_string();
        let failed = || format!("cannot write the report {name:?}");
        if let Some(part) = &mut self.part {
            part.flush().and_then(|()| atomic::sync_all(part.get_ref())).with_context(failed)?;
        }
        match self.if_exists {
            IfExists::Compare if !self.is_same().with_context(failed)? => Err(bad_input!(
                "{name:?} is of another run; move it away and --resume, or give --overwrite to replace it"
            )),
            IfExists::Fail if self.part.is_some() && fs::symlink_metadata(&self.path).is_ok() => Err(self.appeared()),
            _ => Ok(()),
        }
    }

    /// Publishes the report, once the output is published, and returns the number of rows in it. If there is nothing to
    /// report, the report on a replaced output is removed.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there is another one that must not be replaced; or if it cannot be moved.
    pub(super) fn publish(&mut self) -> Result<u64> {
        let name = self.path.display().to_string();
        let Some(dir) = self.dir.as_ref().filter(|_| self.part.is_some()) else {
            if self.if_exists == IfExists::Replace && self.path.is_file() {
                fs::remove_file(&self.path)
                    .with_context(|| format!("cannot remove the report {name:?} of an earlier run"))?;
            }
            return Ok(0);
        };
        match atomic::move_file(dir, OsStr::new(PART), &self.path, self.if_exists != IfExists::Fail) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(self.appeared()),
            moved => {
                let moved = moved.and_then(|()| atomic::sync_path(parent(&self.path)));
                moved.with_context(|| format!("cannot write the report {name:?}"))?;
                Ok(self.rows)
            }
        }
    }

    fn appeared(&self) -> anyhow::Error {
        let name = self.path.display().to_string();
        bad_input!("{name:?} appeared while the embeddings were computed; move it away and --resume")
    }

    /// Whether an existing report is equal to this one. If there is none, it is; if this one is empty, it is not.
    fn is_same(&self) -> io::Result<bool> {
        let Ok(old) = fs::symlink_metadata(&self.path) else { return Ok(true) };
        match self.dir.as_ref().filter(|_| self.part.is_some()) {
            Some(dir) if old.is_file() => same_bytes(dir.open_file(PART, Access::Read)?, File::open(&self.path)?),
            _ => Ok(false),
        }
    }

    /// Where the report is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The path of the report on an output.
fn path_beside(output: &Path) -> PathBuf {
    // A path like `.` has a name only when it is resolved.
    let whole = if output.file_name().is_none() { fs::canonicalize(output).ok() } else { None };
    let output = whole.as_deref().unwrap_or(output);
    // Without a trailing slash.
    let mut path = OsString::from(output.components().as_path());
    path.push(SUFFIX);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Place;
    use tempfile::TempDir;

    /// A report with `rows` rows on an output in `folder`, not published yet.
    fn report(folder: &TempDir, if_exists: IfExists, rows: u64) -> Result<Report> {
        let hidden = folder.path().join("hidden");
        fs::create_dir_all(&hidden).unwrap();
        let mut report = Report::beside(&folder.path().join("e.npy"), if_exists)?;
        report.make_in(Dir::open(&hidden).unwrap());
        let bad = BadRow { place: Place::Line(3), reason: "no \"prompt\"".into() };
        (0..rows).try_for_each(|row| report.add(row, 1, None, &bad))?;
        Ok(report)
    }

    fn finish(folder: &TempDir, if_exists: IfExists, rows: u64) -> Result<u64> {
        let mut report = report(folder, if_exists, rows)?;
        report.check()?;
        report.publish()
    }

    #[test]
    fn a_report_appears_when_it_is_done_and_if_there_is_something_to_tell() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("e.npy.errors.jsonl");
        assert_eq!(finish(&folder, IfExists::Fail, 0).unwrap(), 0);
        assert!(!path.exists());
        drop(report(&folder, IfExists::Fail, 2).unwrap());
        assert!(!path.exists(), "an unfinished report goes");
        assert_eq!(finish(&folder, IfExists::Fail, 2).unwrap(), 2);
        let text = fs::read_to_string(&path).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let expected = serde_json::json!({"row": 1, "rows": 1, "place": "line 3", "reason": "no \"prompt\""});
        assert_eq!((text.lines().count(), line), (2, expected));
        assert!(report(&folder, IfExists::Fail, 0).is_err());
        assert!(report(&folder, IfExists::Replace, 0).is_ok());
    }

    #[test]
    fn a_report_of_another_run_stays_unless_it_may_be_replaced() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("e.npy.errors.jsonl");
        assert_eq!(finish(&folder, IfExists::Compare, 2).unwrap(), 2);
        let own = fs::read(&path).unwrap();
        assert_eq!(finish(&folder, IfExists::Compare, 2).unwrap(), 2, "a run that goes on finds its own");
        for rows in [0, 1, 3] {
            let error = finish(&folder, IfExists::Compare, rows).unwrap_err();
            assert!(error.to_string().contains("of another run"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), own);
        }
        assert_eq!(finish(&folder, IfExists::Replace, 1).unwrap(), 1);
        assert_ne!(fs::read(&path).unwrap(), own);
        assert_eq!(finish(&folder, IfExists::Replace, 0).unwrap(), 0);
        assert!(!path.exists(), "there is nothing to report");
        let mut late = report(&folder, IfExists::Fail, 1).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(late.check().is_err() && late.publish().is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_report_is_not_written_through_a_link() {
        let folder = TempDir::new().unwrap();
        let precious = folder.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        fs::create_dir(folder.path().join("hidden")).unwrap();
        let places = ["hidden/errors.jsonl", ".e.npy.errors.jsonl.part"].map(|name| folder.path().join(name));
        places.iter().for_each(|place| std::os::unix::fs::symlink(&precious, place).unwrap());
        assert_eq!(finish(&folder, IfExists::Fail, 2).unwrap(), 2);
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        assert!(folder.path().join("e.npy.errors.jsonl").is_file());
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
