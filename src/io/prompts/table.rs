//! Which column of a table holds what.

use super::record::{Field, shorten};
use crate::bad_input;
use crate::error::some_of;
use anyhow::Result;

/// A column, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub name: String,
    /// Whether its values are texts.
    pub is_text: bool,
}

/// The columns to read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    /// The name of the column with the prompts.
    pub prompt_name: String,
    /// The place of a column in the table, and what it holds. The prompt is among them.
    pub columns: Vec<(usize, Field)>,
}

impl Layout {
    /// Finds the columns of the table `file`; the prompts are in the column `wanted`, if it is given.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there is no column of prompts, or two columns for one field.
    pub(super) fn find(file: &str, columns: &[Column], wanted: Option<&str>) -> Result<Self> {
        let Some(prompt_name) = prompt_name(columns, wanted) else {
            let missing = shorten(wanted.unwrap_or(Field::Prompt.name()));
            let names = list(columns);
            return Err(bad_input!("{file} has no column {missing:?}, only {names}; name one with --prompt-column"));
        };
        let mut found: Vec<(usize, Field)> = Vec::new();
        for (place, column) in columns.iter().enumerate() {
            let Some(field) = Field::of_name(&column.name, prompt_name) else { continue };
            if found.iter().any(|(_, other)| *other == field) {
                let name = shorten(&column.name);
                return Err(bad_input!("{file} has two columns {name:?}; rename one of them"));
            }
            found.push((place, field));
        }
        Ok(Self { prompt_name: prompt_name.into(), columns: found })
    }
}

/// The column that is asked for; or else `prompt`; or else the only one with texts that are nothing else.
fn prompt_name<'a>(columns: &'a [Column], wanted: Option<&str>) -> Option<&'a str> {
    let named = |name: &str| columns.iter().map(|column| column.name.as_str()).find(|other| *other == name);
    if let Some(wanted) = wanted {
        return named(wanted);
    }
    let is_free = |column: &&Column| column.is_text && Field::of_name(&column.name, Field::Prompt.name()).is_none();
    let mut free = columns.iter().filter(is_free);
    let only = free.next().filter(|_| free.next().is_none());
    named(Field::Prompt.name()).or(only.map(|column| column.name.as_str()))
}

/// The names of the columns, for a message.
fn list(columns: &[Column]) -> String {
    if columns.is_empty() {
        return "none at all".into();
    }
    let names: Vec<String> = columns.iter().map(|column| format!("{:?}", shorten(&column.name))).collect();
    some_of(&names)
}
