//! Which column of a table holds what.

use super::record::{Field, shorten};
use crate::bad_input;
use crate::error::some_of;
use anyhow::Result;

/// A column, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub name: String,
    pub holds: Holds,
}

/// What a column's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Text,
    /// Numbers and the like.
    Other,
    /// Values with parts: what they are called.
    Nested(&'static str),
}

/// The columns to read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    /// What messages call the column with the prompts, and how.
    pub prompt_name: String,
    /// The place of a column in the table, and what it holds. The prompt is among them.
    pub columns: Vec<(usize, Field)>,
}

impl Layout {
    /// Finds the columns of the table `file`; the prompts are in the column `wanted`, if it is given. `advice` is what else
    /// may be done where there is none.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there is no column of prompts, two columns for one field, or one with values that
    /// have parts.
    pub(super) fn find(file: &str, columns: &[Column], wanted: Option<&str>, advice: &str) -> Result<Self> {
        let Some(prompt_name) = prompt_name(columns, wanted) else {
            let missing = shorten(wanted.unwrap_or(Field::Prompt.name()));
            let names = list(columns);
            return Err(bad_input!(
                "{file} has no column {missing:?}, only {names}; name one with --prompt-column{advice}"
            ));
        };
        let mut found: Vec<(usize, Field)> = Vec::new();
        for (place, column) in columns.iter().enumerate() {
            let Some(field) = Field::of_name(&column.name, prompt_name) else { continue };
            let name = shorten(&column.name);
            if found.iter().any(|(_, other)| *other == field) {
                return Err(bad_input!("{file} has two columns {name:?}; rename one of them"));
            }
            if let Holds::Nested(values) = column.holds {
                let advice = match field {
                    Field::Prompt => "give each prompt a row of its own, or name another column with --prompt-column",
                    _ => "rename or convert it",
                };
                return Err(bad_input!(
                    "{file}: column {name:?} holds {values} where single values are needed; {advice}"
                ));
            }
            found.push((place, field));
        }
        Ok(Self { prompt_name: prompt_name.into(), columns: found })
    }

    /// The columns of the table `file` whose columns have no names: of one column that, or else the one with the number
    /// `wanted`, counted from 1.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there is no such column.
    pub(super) fn without_names(file: &str, width: usize, wanted: Option<&str>) -> Result<Self> {
        let place = match wanted {
            None => Some(1).filter(|_| width == 1),
            Some(wanted) => wanted.parse().ok().filter(|place| (1..=width).contains(place)),
        };
        match place {
            Some(place) => {
                Ok(Self { prompt_name: format!("column {place}"), columns: vec![(place - 1, Field::Prompt)] })
            }
            None => Err(bad_input!(
                "{file} has {width} columns without names; give the number of the one with the prompts, --prompt-column 1 \
                 to {width}"
            )),
        }
    }
}

/// The column that is asked for; or else `prompt`; or else the only one with texts that are nothing else.
fn prompt_name<'a>(columns: &'a [Column], wanted: Option<&str>) -> Option<&'a str> {
    let named = |name: &str| columns.iter().map(|column| column.name.as_str()).find(|other| *other == name);
    if let Some(wanted) = wanted {
        return named(wanted);
    }
    let is_free =
        |column: &&Column| column.holds == Holds::Text && Field::of_name(&column.name, Field::Prompt.name()).is_none();
    let mut free = columns.iter().filter(is_free);
    let only = free.next().filter(|_| free.next().is_none());
    named(Field::Prompt.name()).or(only.map(|column| column.name.as_str()))
}

/// The names of the columns, for a message.
fn list(columns: &[Column]) -> String {
    if columns.is_empty() {
        return "none at all".into();
    }
    let name = |column: &Column| {
        let name = shorten(&column.name);
        if let Holds::Nested(values) = column.holds { format!("{name:?} ({values})") } else { format!("{name:?}") }
    };
    let names: Vec<String> = columns.iter().map(name).collect();
    some_of(&names)
}
