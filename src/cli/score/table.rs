//! Scores as they are printed: a table on a terminal, lines with tabs elsewhere, or JSON.

use crate::cli::stdout;
use crate::rows::{Bank, Label};
use crate::text::{printable, shorten};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal};
use std::ops::Range;
use std::path::Path;

/// Characters of a text in a table, at most.
const MAX_CHARS: usize = 60;

/// A row and what it was compared with.
pub(super) struct Scored<'a> {
    pub(super) row: u64,
    pub(super) label: Option<&'a Label>,
    /// Each with the cosine.
    pub(super) targets: Vec<(Target<'a>, f64)>,
}

/// What a row is compared with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'a> {
    Prompt(&'a str),
    Picture(&'a Path),
    /// A row of a bank.
    Row(u64, Option<&'a Label>),
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Prompt(text) => write!(formatter, "{text:?}"),
            Self::Picture(path) => write!(formatter, "{:?}", path.display().to_string()),
            Self::Row(row, _) => write!(formatter, "row {row}"),
        }
    }
}

/// Prints scores as they come.
pub(super) struct Printer {
    as_json: bool,
    is_terminal: bool,
    /// The names of the columns.
    header: Vec<&'static str>,
    is_begun: bool,
}

impl Printer {
    /// Prints JSON, or columns.
    pub(super) fn new(as_json: bool, columns: Columns) -> Self {
        let header = match columns {
            Columns::Prompts => vec!["row", "prompt", "cosine"],
            Columns::Pictures => vec!["row", "image", "cosine"],
            Columns::Rows { has_labels: false } => vec!["row", "nearest", "cosine"],
            Columns::Rows { has_labels: true } => vec!["row", "nearest", "id", "caption", "cosine"],
        };
        Self { as_json, is_terminal: io::stdout().is_terminal(), header, is_begun: false }
    }

    /// The labels of rows to score, if they are printed.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if they cannot be read.
    pub(super) fn labels(&self, embeds: &Bank, rows: Range<u64>) -> Result<BTreeMap<u64, Label>> {
        if self.as_json { embeds.labels(&rows.collect()) } else { Ok(BTreeMap::new()) }
    }

    /// Prints rows.
    ///
    /// # Errors
    /// If standard output is closed or full.
    pub(super) fn print(&mut self, rows: &[Scored]) -> Result<()> {
        let lines: Vec<String> = match (self.as_json, self.is_terminal) {
            (true, _) => rows.iter().map(|row| json_line(row).to_string()).collect(),
            (false, false) => cells(rows, usize::MAX, self.header.len()).map(|cells| cells.join("\t")).collect(),
            (false, true) => {
                let header = (!self.is_begun).then(|| self.header.iter().map(|name| name.to_string()).collect());
                aligned(&header.into_iter().chain(cells(rows, MAX_CHARS, self.header.len())).collect::<Vec<_>>())
            }
        };
        self.is_begun = true;
        if lines.is_empty() { Ok(()) } else { stdout::print(&lines.join("\n")) }
    }
}

/// What the columns of a table are of.
pub(super) enum Columns {
    Prompts,
    Pictures,
    Rows { has_labels: bool },
}

/// The cells of each line.
fn cells<'a>(rows: &'a [Scored<'a>], max: usize, columns: usize) -> impl Iterator<Item = Vec<String>> + 'a {
    let text = move |text: &str| printable(&if max < usize::MAX { shorten(text, max) } else { text.to_string() });
    rows.iter().flat_map(move |Scored { row, targets, .. }| {
        targets.iter().map(move |(target, cosine)| {
            let mut cells = vec![row.to_string()];
            match target {
                Target::Prompt(prompt) => cells.push(text(prompt)),
                Target::Picture(path) => cells.push(text(&path.display().to_string())),
                Target::Row(row, label) => {
                    cells.push(row.to_string());
                    let id = label.and_then(|label| label.id.as_deref());
                    let caption = label.and_then(|label| label.caption.as_deref());
                    let parts = [id, caption].map(|part| part.map(text).unwrap_or_default());
                    cells.extend(parts.into_iter().take(columns - 3));
                }
            }
            cells.push(format!("{:.4}", rounded(*cosine, 1e4)));
            cells
        })
    })
}

/// Lines with cells as wide as the widest below each other; numbers are at the right.
fn aligned(lines: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
    let is_number = |column: usize| lines.iter().skip(1).all(|line| line[column].parse::<f64>().is_ok());
    let line = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match is_number(column) {
            true => format!("{cell:>width$}"),
            false => format!("{cell:width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    lines.iter().map(line).collect()
}

fn json_line(Scored { row, label, targets }: &Scored) -> Value {
    let mut object = Map::from_iter([("row".to_string(), json!(row))]);
    add_label(&mut object, *label);
    let scores = targets.iter().map(|(target, cosine)| {
        let mut object = Map::new();
        match target {
            Target::Prompt(prompt) => drop(object.insert("prompt".into(), json!(prompt))),
            Target::Picture(path) => drop(object.insert("image".into(), json!(path.display().to_string()))),
            Target::Row(row, label) => {
                object.insert("row".into(), json!(row));
                add_label(&mut object, *label);
            }
        }
        object.insert("cosine".into(), json!(rounded(*cosine, 1e6)));
        Value::Object(object)
    });
    object.insert("scores".into(), scores.collect());
    Value::Object(object)
}

fn add_label(object: &mut Map<String, Value>, label: Option<&Label>) {
    let Some(Label { id, caption }) = label else { return };
    for (key, text) in [("id", id), ("caption", caption)] {
        if let Some(text) = text {
            object.insert(key.into(), json!(text));
        }
    }
}

/// A number of so many parts of one, and no negative zero.
fn rounded(number: f64, parts: f64) -> f64 {
    (number * parts).round() / parts + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_a_cell_is_a_cell() {
        let label = Label { id: Some("a\tb".into()), caption: Some("line\nbreak".into()) };
        let rows = [
            Scored {
                row: 9,
                label: None,
                targets: vec![(Target::Row(1000, Some(&label)), 0.5), (Target::Row(7, None), -1e-9)],
            },
            Scored { row: 10, label: Some(&label), targets: vec![] },
        ];
        let lines: Vec<String> = cells(&rows, usize::MAX, 5).map(|cells| cells.join("\t")).collect();
        assert_eq!(lines, ["9\t1000\ta\\tb\tline\\nbreak\t0.5000", "9\t7\t\t\t0.0000"]);
        let header = ["row", "nearest", "id", "caption", "cosine"].map(String::from).to_vec();
        let table = aligned(&std::iter::once(header).chain(cells(&rows, 4, 5)).collect::<Vec<_>>());
        assert_eq!(
            table,
            [
                "row  nearest  id    caption  cosine",
                "  9     1000  a\\tb  line…    0.5000",
                "  9        7                 0.0000",
            ]
        );
        let json: Vec<String> = rows.iter().map(|row| json_line(row).to_string()).collect();
        assert_eq!(
            json,
            [
                r#"{"row":9,"scores":[{"caption":"line\nbreak","cosine":0.5,"id":"a\tb","row":1000},{"cosine":0.0,"row":7}]}"#,
                r#"{"caption":"line\nbreak","id":"a\tb","row":10,"scores":[]}"#,
            ]
        );
    }
}
