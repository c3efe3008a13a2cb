//! Items: what an embedding is made of, as commands take it.

use super::arrays::EmbeddingRows;
use anyhow::Result;
use ndarray::Array1;
use std::fmt;
use std::path::{Path, PathBuf};

/// A prompt, a picture, or a row of a file of embeddings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A text, in which the prior sees a picture.
    Prompt(String),
    /// A picture in a file.
    Picture(PathBuf),
    /// A row of a file; it may be left out where there is one.
    Row(PathBuf, Option<usize>),
}

impl std::str::FromStr for Item {
    type Err = String;

    /// `@FILE` is a picture, `@FILE[ROW]` a row of a `.npy`, `.npz` or `.safetensors` file, and anything else a prompt; one
    /// that begins with `@` has another before it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(file) = text.strip_prefix('@') else { return Ok(Self::Prompt(text.into())) };
        if file.starts_with('@') {
            return Ok(Self::Prompt(file.into()));
        }
        if file.is_empty() {
            return Err("a file goes after the @; a prompt that begins with @ has two of them".into());
        }
        // A file whose name has brackets comes first.
        let brackets = file.strip_suffix(']').and_then(|file| file.rsplit_once('['));
        match brackets.filter(|_| !Path::new(file).exists()) {
            Some((path, row)) => match row.parse() {
                Ok(row) if is_rows(Path::new(path)) => Ok(Self::Row(path.into(), Some(row))),
                Ok(_) => Err(format!("{path:?} does not end in .npy, .npz or .safetensors, and has no rows")),
                Err(_) => Err(format!("{row:?} is not the number of a row, counted from 0")),
            },
            None if is_rows(Path::new(file)) => Ok(Self::Row(file.into(), None)),
            None => Ok(Self::Picture(file.into())),
        }
    }
}

/// Whether a file holds rows, by its name.
fn is_rows(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| ["npy", "npz", "safetensors"].contains(&extension.as_str()))
}

impl fmt::Display for Item {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Prompt(text) => write!(formatter, "{text}"),
            Self::Picture(path) | Self::Row(path, None) => write!(formatter, "@{}", path.display()),
            Self::Row(path, Some(row)) => write!(formatter, "@{}[{row}]", path.display()),
        }
    }
}

impl Item {
    /// An item that is no prompt: the `@` may be left out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_image(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("it must be a picture or a row of a file".into()),
            text if text.starts_with('@') => text.parse(),
            text => format!("@{text}").parse(),
        }
    }

    /// The same in a folder, if its path is relative.
    pub fn within(&self, folder: &Path) -> Self {
        match self {
            Self::Prompt(text) => Self::Prompt(text.clone()),
            Self::Picture(path) => Self::Picture(folder.join(path)),
            Self::Row(path, row) => Self::Row(folder.join(path), *row),
        }
    }

    /// The file that it is read from.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Prompt(_) => None,
            Self::Picture(path) | Self::Row(path, _) => Some(path),
        }
    }

    /// The text of a prompt.
    pub fn prompt(&self) -> Option<&str> {
        match self {
            Self::Prompt(text) => Some(text),
            _ => None,
        }
    }

    /// The file of a picture.
    pub fn picture(&self) -> Option<&Path> {
        match self {
            Self::Picture(path) => Some(path),
            _ => None,
        }
    }

    /// The embedding of a row, `(dim)`; `None` if a model has to make one.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it cannot be read.
    pub fn embedding(&self) -> Result<Option<Array1<f32>>> {
        match self {
            Self::Row(path, row) => EmbeddingRows::read(path)?.row(*row).map(|embed| Some(embed.to_owned())),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_told_apart_by_how_they_begin_and_end() {
        let row = |path: &str, row| Item::Row(path.into(), row);
        for (text, item) in [
            ("a cat", Item::Prompt("a cat".into())),
            ("", Item::Prompt(String::new())),
            ("cat.png[3]", Item::Prompt("cat.png[3]".into())),
            ("@@home", Item::Prompt("@home".into())),
            ("@cat.png", Item::Picture("cat.png".into())),
            ("@embs.npy[3]", row("embs.npy", Some(3))),
            ("@a/b[1].NPZ[0]", row("a/b[1].NPZ", Some(0))),
            ("@embs.safetensors", row("embs.safetensors", None)),
        ] {
            assert_eq!(text.parse(), Ok(item), "{text}");
        }
        for (text, words) in [
            ("@", "a file goes after"),
            ("@cat.png[3]", "has no rows"),
            ("@embs.npy[-1]", "\"-1\" is not the number"),
            ("@embs.npy[x]", "\"x\" is not the number"),
        ] {
            assert!(text.parse::<Item>().unwrap_err().contains(words), "{text}");
        }
    }
}
