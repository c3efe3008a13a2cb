//! The report on rows that could not be used.

use crate::atomic::{self, same_bytes};
use crate::bad_input;
use crate::dir::{Access, Dir};
use crate::files::parent;
use crate::output::MAX_NAME;
use crate::rows::BadRow;
use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Its name in the hidden folder of the rows, until it is moved into its place.
const PART: &str = "errors.jsonl";

/// What is added to an output's name.
const SUFFIX: &str = ".errors.jsonl";

/// A line a row, in a file beside the output. It appears when the run is done, and only if there is something in it.
#[derive(Debug)]
pub struct Report {
    path: PathBuf,
    old: Old,
    /// Where it is written until it is whole.
    dir: Option<Dir>,
    part: Option<BufWriter<File>>,
    rows: u64,
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
    /// [`crate::bad_input::BadInput`] if one is there and has to stay.
    pub fn beside(output: &Path, old: Old) -> Result<Self> {
        let path = path_beside(output);
        let name = path.file_name().unwrap_or_default();
        if name.len() > MAX_NAME {
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
        Ok(Self { path, old, dir: None, part: None, rows: 0 })
    }

    /// Has it made in the hidden folder of the output's rows.
    pub(super) fn make_in(&mut self, dir: Dir) {
        self.dir = Some(dir);
    }

    /// Adds a prompt that could not be used, whose rows begin with `row`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn add(&mut self, row: u64, rows: u64, bad: &BadRow) -> Result<()> {
        let failed = format!("cannot write the report {:?}", self.path.display().to_string());
        let part = match &mut self.part {
            Some(part) => part,
            part => {
                let dir = self.dir.as_ref().ok_or_else(|| anyhow!("a report without a folder"))?;
                part.insert(BufWriter::new(dir.create_anew(PART).with_context(|| failed.clone())?))
            }
        };
        let line = Line { row, rows, place: bad.place.to_string(), reason: &bad.reason };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        part.write_all(&text).context(failed)?;
        self.rows = self.rows.saturating_add(rows);
        Ok(())
    }

    /// Completes the report, and checks that it can go to its place.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if another one is there and has to stay; or if it cannot be written.
    pub(super) fn check(&mut self) -> Result<()> {
        let name = self.path.display().to_string();
        let failed = || format!("cannot write the report {name:?}");
        if let Some(part) = &mut self.part {
            part.flush().and_then(|()| atomic::sync_all(part.get_ref())).with_context(failed)?;
        }
        match self.old {
            Old::Compared if !self.is_same().with_context(failed)? => {
                Err(bad_input!("{name:?} is of another run; move it away and --resume, or --overwrite replaces it"))
            }
            Old::Refused if self.part.is_some() && fs::symlink_metadata(&self.path).is_ok() => Err(self.appeared()),
            _ => Ok(()),
        }
    }

    /// Puts the report into its place, once the output is in its own, and says of how many rows it tells. Where there
    /// is nothing to report, what an earlier run reported of an output that is replaced goes.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if another one is there and has to stay; or if it cannot be moved.
    pub(super) fn publish(&mut self) -> Result<u64> {
        let name = self.path.display().to_string();
        let Some(dir) = self.dir.as_ref().filter(|_| self.part.is_some()) else {
            if self.old == Old::Replaced && self.path.is_file() {
                fs::remove_file(&self.path)
                    .with_context(|| format!("cannot remove the report {name:?} of an earlier run"))?;
            }
            return Ok(0);
        };
        match atomic::move_file(dir, OsStr::new(PART), &self.path, self.old != Old::Refused) {
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
        bad_input!("{name:?} appeared while the embeddings were computed; move it away, and --resume")
    }

    /// Whether the report that is there, if one is, holds what this one does, or nothing if there is none.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Place;
    use tempfile::TempDir;

    /// A folder for an output, and a report on it with so many rows, made in a folder inside.
    fn report(folder: &TempDir, old: Old, rows: u64) -> Result<Report> {
        let hidden = folder.path().join("hidden");
        fs::create_dir_all(&hidden).unwrap();
        let mut report = Report::beside(&folder.path().join("e.npy"), old)?;
        report.make_in(Dir::open(&hidden).unwrap());
        let bad = BadRow { place: Place::Line(3), reason: "no \"prompt\"".into() };
        (0..rows).try_for_each(|row| report.add(row, 1, &bad))?;
        Ok(report)
    }

    fn finish(folder: &TempDir, old: Old, rows: u64) -> Result<u64> {
        let mut report = report(folder, old, rows)?;
        report.check()?;
        report.publish()
    }

    #[test]
    fn a_report_appears_when_it_is_done_and_if_there_is_something_to_tell() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("e.npy.errors.jsonl");
        assert_eq!(finish(&folder, Old::Refused, 0).unwrap(), 0);
        assert!(!path.exists());
        drop(report(&folder, Old::Refused, 2).unwrap());
        assert!(!path.exists(), "an unfinished report goes");
        assert_eq!(finish(&folder, Old::Refused, 2).unwrap(), 2);
        let text = fs::read_to_string(&path).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let expected = serde_json::json!({"row": 1, "rows": 1, "place": "line 3", "reason": "no \"prompt\""});
        assert_eq!((text.lines().count(), line), (2, expected));
        assert!(report(&folder, Old::Refused, 0).is_err());
        assert!(report(&folder, Old::Replaced, 0).is_ok());
    }

    #[test]
    fn a_report_of_another_run_stays_unless_it_may_be_replaced() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("e.npy.errors.jsonl");
        assert_eq!(finish(&folder, Old::Compared, 2).unwrap(), 2);
        let own = fs::read(&path).unwrap();
        assert_eq!(finish(&folder, Old::Compared, 2).unwrap(), 2, "a run that goes on finds its own");
        for rows in [0, 1, 3] {
            let error = finish(&folder, Old::Compared, rows).unwrap_err();
            assert!(error.to_string().contains("of another run"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), own);
        }
        assert_eq!(finish(&folder, Old::Replaced, 1).unwrap(), 1);
        assert_ne!(fs::read(&path).unwrap(), own);
        assert_eq!(finish(&folder, Old::Replaced, 0).unwrap(), 0);
        assert!(!path.exists(), "there is nothing to report");
        let mut late = report(&folder, Old::Refused, 1).unwrap();
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
        assert_eq!(finish(&folder, Old::Refused, 2).unwrap(), 2);
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
