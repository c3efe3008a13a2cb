//! Output formats, one file each.

mod npy;
mod npz;

use crate::bad_input;
use anyhow::Result;
use ndarray::ArrayView2;
use std::io::Write;
use std::path::Path;

/// An array and the name that formats with names give it.
#[derive(Debug, Clone, Copy)]
pub struct NamedArray<'a> {
    /// `image_embeds` or `negative_image_embeds`, as decoders call them.
    pub name: &'a str,
    /// `(rows, dim)`.
    pub values: ArrayView2<'a, f32>,
}

/// A file format for embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// numpy's format for one array.
    Npy,
    /// numpy's archive of named arrays.
    Npz,
}

impl Format {
    /// The format that a file name asks for; `.npy` for standard output.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the extension is missing or unknown.
    pub fn of_path(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::Npy);
        }
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("npy") => Ok(Self::Npy),
            Some("npz") => Ok(Self::Npz),
            _ => {
                Err(bad_input!("{path:?} does not end in .npy or .npz; rename it, or say --format npy or --format npz"))
            }
        }
    }

    /// Whether one file holds several arrays by name.
    pub fn holds_several(self) -> bool {
        match self {
            Self::Npy => false,
            Self::Npz => true,
        }
    }

    /// Writes arrays; one alone unless [`Format::holds_several`].
    ///
    /// # Errors
    /// If writing fails.
    pub fn write(self, arrays: &[NamedArray], output: &mut dyn Write) -> Result<()> {
        match self {
            Self::Npy => npy::write(arrays, output),
            Self::Npz => npz::write(arrays, output),
        }
    }
}
