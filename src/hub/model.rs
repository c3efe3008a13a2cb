//! A model that was found, in a folder or inside the program.

use crate::error::{DownloadCommand, Error, Hint};
use crate::files::Folder;
use crate::pipeline::layout::ModelFile;

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

/// A file of a model in `folder`. `listed_bytes` is its size on the hub, for a file that is not on this machine.
pub(super) fn file_of(folder: &Folder, path: &str, listed_bytes: Option<u64>) -> ModelFile {
    let bytes = folder.file_len(path).or(listed_bytes);
    ModelFile { path: path.into(), bytes, is_here: folder.has_path(path) }
}

impl Model {
    /// For a model from the hub, replaces the hint of an error about a damaged file by the command that repairs it.
    pub fn advise(&self, mut error: anyhow::Error) -> anyhow::Error {
        if let (Some(command), Some(error)) = (&self.repair, error.downcast_mut()) {
            advise(error, &self.folder, command);
        }
        error
    }
}

/// Replaces [`Hint::FetchAgain`] of an error about a file in `folder`.
pub(super) fn advise(error: &mut Error, folder: &Folder, command: &DownloadCommand) {
    error.replace_fetch_again(&folder.to_string(), Hint::Download(Box::new(command.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::errors::one_line;

    #[test]
    fn broken_files_of_the_cache_are_repaired_by_a_download() {
        let model = |repair| Model { folder: Folder::from("/cache/x"), commit: None, files: Vec::new(), repair };
        let command = DownloadCommand {
            model: "owner/name".into(),
            image_encoder: true,
            sixteen_bit: true,
            cache_dir: Some("/cache".into()),
            force: true,
        };
        let broken = |path: &str, hint| {
            let reason = "is not a safetensors file".into();
            anyhow::Error::from(Error::File { path: path.into(), reason, hint, source: None })
        };
        let line = |repair: Option<&DownloadCommand>, error| one_line(&model(repair.cloned()).advise(error), false);
        let path = "/cache/x/prior/model.safetensors";
        let expected = "/cache/x/prior/model.safetensors is not a safetensors file; run `prior-embed download owner/name \
                        --image-encoder --dtype bf16 --cache-dir \"/cache\" --force`";
        assert_eq!(line(Some(&command), broken(path, Some(Hint::FetchAgain))), expected);
        // The user's own model, a file elsewhere, another hint, or none.
        let fetch_again = |line: String| assert!(line.ends_with("is not a safetensors file; fetch it again"), "{line}");
        fetch_again(line(None, broken(path, Some(Hint::FetchAgain))));
        fetch_again(line(Some(&command), broken("/home/lora.safetensors", Some(Hint::FetchAgain))));
        assert!(line(Some(&command), broken(path, Some(Hint::UseFloat32))).ends_with("; try --dtype f32"));
        assert!(line(Some(&command), broken(path, None)).ends_with("is not a safetensors file"));
    }
}
