//! Components that are not a model's own.

use std::path::{Path, PathBuf};

/// Where a component comes from that takes the place of a model's own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ComponentSource {
    /// A folder that holds the component or a whole model, or a file of weights with its `config.json` beside it. A text
    /// or image encoder may be a whole `CLIPModel`.
    Path(PathBuf),
    /// The same by name: `owner/name[@revision][/subfolder]` on the Hugging Face hub, a model's short name, or a path.
    #[cfg(feature = "hub")]
    Name(String),
}

impl From<&Path> for ComponentSource {
    fn from(path: &Path) -> Self {
        Self::Path(path.into())
    }
}

impl From<PathBuf> for ComponentSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

#[cfg(feature = "hub")]
impl From<&str> for ComponentSource {
    fn from(name: &str) -> Self {
        Self::Name(name.into())
    }
}
