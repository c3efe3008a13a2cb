//! A prompt file, before it is opened.

use std::fs;
use std::path::{Path, PathBuf};

/// A prompt file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptFile {
    /// Where it is; `-` is standard input.
    pub path: PathBuf,
    /// What messages call it.
    pub name: String,
}

impl From<PathBuf> for PromptFile {
    fn from(path: PathBuf) -> Self {
        let name = if is_stdin(&path) { "standard input".into() } else { path.display().to_string() };
        Self { path, name }
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

impl PromptFile {
    /// Whether it can be read only once, and may arrive slowly: a pipe, a terminal or a device.
    pub fn is_stream(&self) -> bool {
        is_stdin(&self.path) || fs::metadata(&self.path).is_ok_and(|metadata| !metadata.is_file())
    }

    /// The folder that it is in.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}
