//! Assigns the columns of a table to fields.

use super::field::{Extras, Field, FieldNames, shorten};
use super::format::ReadOptions;
use crate::bad_input;
use crate::text::list;
use anyhow::Result;

/// A column of a table.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub name: String,
    pub kind: ColumnKind,
}

/// The type of a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColumnKind {
    Text,
    /// Numbers and the like.
    Other,
    /// Lists, structs or maps: the plural.
    Nested(&'static str),
}

/// The columns to read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FieldColumns {
    /// The name of the prompt column in messages.
    pub prompt_name: String,
    /// Columns that count beside those that always do.
    pub extras: Extras,
    /// Indices of columns with their fields, ascending; the prompt is among them.
    pub columns: Vec<(usize, Field)>,
}

impl FieldColumns {
    /// Finds the columns by their names. `advice` is added to the error of a table without a prompt column.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there is no prompt column, two columns for a field, or a nested column for one.
    pub(super) fn find(file: &str, columns: &[Column], options: &ReadOptions, advice: &str) -> Result<Self> {
        let (wanted, extras) = (options.prompt_column.as_deref(), options.extras);
        let Some(prompt_name) = prompt_name(columns, wanted, extras) else {
            let missing = shorten(wanted.unwrap_or(Field::Prompt.name()));
            let names = listed(columns);
            return Err(bad_input!(
                "{file} has no column {missing:?}, only {names}; name one with --prompt-column{advice}"
            ));
        };
        let mut found: Vec<(usize, Field)> = Vec::new();
        for (index, column) in columns.iter().enumerate() {
            let Some(field) = FieldNames { prompt: prompt_name, extras }.field(&column.name) else { continue };
            let name = shorten(&column.name);
            if found.iter().any(|(_, other)| *other == field) {
                return Err(bad_input!("{file} has two columns {name:?}; rename one of them"));
            }
            if let ColumnKind::Nested(values) = column.kind {
                let advice = match field {
                    Field::Prompt => "give each prompt a row of its own, or name another column with --prompt-column",
                    _ => "rename or convert it",
                };
                return Err(bad_input!(
                    "{file}: column {name:?} holds {values} where single values are needed; {advice}"
                ));
            }
            found.push((index, field));
        }
        Ok(Self { prompt_name: prompt_name.into(), extras, columns: found })
    }

    /// What the columns are called.
    pub(super) fn names(&self) -> FieldNames<'_> {
        FieldNames { prompt: &self.prompt_name, extras: self.extras }
    }

    /// The prompt column of a table without a header: the one with the number `wanted`, counted from 1, or the only
    /// one.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there is no such column.
    pub(super) fn numbered(file: &str, width: usize, wanted: Option<&str>) -> Result<Self> {
        let number = match wanted {
            None => Some(1).filter(|_| width == 1),
            Some(wanted) => wanted.parse().ok().filter(|number| (1..=width).contains(number)),
        };
        match number {
            Some(number) => {
                let columns = vec![(number - 1, Field::Prompt)];
                Ok(Self { prompt_name: format!("column {number}"), extras: Extras::default(), columns })
            }
            None => Err(bad_input!(
                "{file} has {width} columns without names; give the number of the one with the prompts, \
                 --prompt-column 1 to {width}"
            )),
        }
    }
}

/// The column `wanted`; without it `prompt`, or else the only text column that is not a setting.
fn prompt_name<'a>(columns: &'a [Column], wanted: Option<&str>, extras: Extras) -> Option<&'a str> {
    let named = |name: &str| columns.iter().map(|column| column.name.as_str()).find(|other| *other == name);
    if let Some(wanted) = wanted {
        return named(wanted);
    }
    let is_free = |column: &&Column| column.kind == ColumnKind::Text && Field::setting(&column.name, extras).is_none();
    let mut free = columns.iter().filter(is_free);
    let only = free.next().filter(|_| free.next().is_none());
    named(Field::Prompt.name()).or(only.map(|column| column.name.as_str()))
}

/// The names of the columns, for a message.
fn listed(columns: &[Column]) -> String {
    if columns.is_empty() {
        return "none at all".into();
    }
    let name = |column: &Column| {
        let name = shorten(&column.name);
        if let ColumnKind::Nested(values) = column.kind { format!("{name:?} ({values})") } else { format!("{name:?}") }
    };
    let names: Vec<String> = columns.iter().map(name).collect();
    list(&names)
}
