//! A model that was found, in a folder or inside the program.

use crate::error::{DownloadCommand, Error, Hint, with_advice};
use crate::files::Folder;

/// A model, as far as it was downloaded.
#[derive(Debug)]
pub struct Model {
    /// Its folder.
    pub folder: Folder,
    /// The commit, for a model from the hub.
    pub commit: Option<String>,
    /// The files that a run needs, also those that are not on this machine.
    pub files: Vec<ModelFile>,
    /// What repairs it, for a model from the hub.
    pub(super) repair: Option<DownloadCommand>,
}

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Its path in the model's folder.
    pub path: String,
    /// Its size in bytes, if known.
    pub bytes: Option<u64>,
    /// Whether it is on this machine.
    pub is_here: bool,
}

impl ModelFile {
    /// A file of a model in `folder`. `listed_bytes` is its size on the hub, for a file that is not on this machine.
    pub(super) fn new(folder: &Folder, path: &str, listed_bytes: Option<u64>) -> Self {
        let bytes = folder.file_len(path).or(listed_bytes);
        Self { path: path.into(), bytes, is_here: folder.has_path(path) }
    }
}

impl Model {
    /// For a model from the hub, replaces the hint of an error about a broken file by the command that repairs it.
    pub fn advise(&self, mut error: anyhow::Error) -> anyhow::Error {
        let Some(command) = &self.repair else { return error };
        match error.downcast_mut::<Error>() {
            Some(typed) => {
                advise(typed, &self.folder, command);
                error
            }
            None => advise_untyped(error, &self.folder, command),
        }
    }
}

/// Replaces [`Hint::FetchAgain`] of an error about a file in `folder`.
pub(super) fn advise(error: &mut Error, folder: &Folder, command: &DownloadCommand) {
    match error {
        Error::Other(other) => {
            let untyped = std::mem::replace(other, anyhow::Error::msg(""));
            *other = advise_untyped(untyped, folder, command);
        }
        error => error.replace_fetch_again(&folder.to_string(), Hint::Download(Box::new(command.clone()))),
    }
}

/// Until every part of the library has typed errors.
fn advise_untyped(error: anyhow::Error, folder: &Folder, command: &DownloadCommand) -> anyhow::Error {
    with_advice(error, &folder.to_string(), &Hint::Download(Box::new(command.clone())).to_string())
}
