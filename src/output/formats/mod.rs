//! The formats, one file each.

mod folder;
mod ipadpt;
mod jsonl;
mod jsonl_base64;
pub(crate) mod npy;
mod npz;
pub(crate) mod parquet;
mod picture;
mod safetensors;

use super::sink::Sink;
use crate::bad_input;
use anyhow::Result;
use std::path::Path;

macro_rules! registry {
    ($($(#[$doc:meta])* $name:ident: $sink:path,)*) => {
        /// A format of outputs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum OutputFormat {
            $($(#[$doc])* $name,)*
        }

        impl OutputFormat {
            /// All formats.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            pub(crate) fn sink(self) -> &'static dyn Sink {
                match self {
                    $(Self::$name => &$sink,)*
                }
            }
        }
    };
}

// A new format is a file in this folder and a line here.
registry! {
    /// numpy's format for one array.
    Npy: npy::Npy,
    /// numpy's archive of named arrays.
    Npz: npz::Npz,
    /// Named arrays, as model libraries store them.
    Safetensors: safetensors::Safetensors,
    /// JSON lines, an object a row.
    JsonLines: jsonl::JsonLines,
    /// JSON lines whose numbers are base64 of their bytes.
    Base64Lines: jsonl_base64::Base64Lines,
    /// A Parquet table, one Parquet row per embedding.
    Parquet: parquet::Parquet,
    /// A file of torch with a list of one tensor, which diffusers' IP-Adapters take.
    IpAdapter: ipadpt::IpAdapter,
    /// A folder of numbered `.npy` files of embeddings and `.parquet` files of what they belong to, as clip-retrieval
    /// writes and embedding-reader reads it.
    Folder: folder::Folder,
    /// A contact sheet of the embeddings' pictures, by the built-in decoder.
    Picture: picture::Picture,
}

impl OutputFormat {
    /// All formats that hold embeddings.
    pub fn of_embeddings() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|format| format.sink().holds_numbers())
    }

    /// The format of a file of embeddings by its name on the command line, which is its extension too.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::of_embeddings().find(|format| *format != Self::Folder && format.name() == name)
    }

    /// The format that a file name asks for; `.npy` for standard output.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the extension is missing or unknown.
    pub fn of_path(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::Npy);
        }
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let format = extension.as_deref().and_then(Self::from_name);
        format.ok_or_else(|| match extension.as_deref() {
            Some("png") => {
                bad_input!("{path:?} names a picture, and pictures hold no embeddings; --picture draws one")
            }
            _ => bad_input!(
                "{path:?} does not end in .npy, .npz, .safetensors, .jsonl, .parquet or .ipadpt; rename it, or say \
                 --format"
            ),
        })
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        self.sink().name()
    }

    /// Whether one output holds several arrays by name.
    pub fn holds_several(self) -> bool {
        self.sink().holds_several()
    }

    /// Whether it holds ids, prompts and seeds.
    pub fn holds_rows(self) -> bool {
        self.sink().holds_rows()
    }

    /// Whether it holds the negative embeddings too, unless a file of their own is named.
    pub fn prefers_both(self) -> bool {
        self.sink().prefers_both()
    }
}
