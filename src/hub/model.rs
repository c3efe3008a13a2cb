//! A model that was found, with its components from elsewhere, in folders or inside the program.

use crate::error::{Component, DownloadCommand, Error, Hint};
use crate::files::Folder;
use crate::pipeline::layout::{ModelFile, Replacements};
use std::collections::BTreeMap;

/// A model, as far as it was downloaded.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its folder.
    pub folder: Folder,
    /// The commit, for a model from the hub.
    pub commit: Option<String>,
    /// The components that take the place of its own.
    pub components: BTreeMap<Component, ReplacedComponent>,
    /// The files that a run needs, also those that are not on this machine.
    pub files: Vec<ModelFile>,
    /// What repairs it, if any of it is from the hub.
    pub(super) repair: Option<DownloadCommand>,
    /// The folders in the cache that it is in.
    pub(super) snapshots: Vec<Folder>,
}

/// A component from elsewhere.
#[derive(Debug, Clone)]
pub struct ReplacedComponent {
    /// Its name, as it was given.
    pub name: String,
    /// Its folder.
    pub folder: Folder,
    /// The commit, for one from the hub.
    pub commit: Option<String>,
}

impl Model {
    /// The folders of the components that take the place of its own.
    pub fn replacements(&self) -> Replacements {
        self.components.iter().map(|(component, replaced)| (*component, replaced.folder.clone())).collect()
    }

    /// For files from the hub, replaces the hint of an error about a damaged one by the command that repairs it.
    pub fn advise(&self, mut error: anyhow::Error) -> anyhow::Error {
        if let (Some(command), Some(error)) = (&self.repair, error.downcast_mut::<Error>()) {
            self.snapshots.iter().for_each(|snapshot| advise(error, snapshot, command));
        }
        error
    }
}

/// Replaces [`Hint::FetchAgain`] of an error about a file in `folder`.
pub(super) fn advise(error: &mut Error, folder: &Folder, command: &DownloadCommand) {
    error.replace_fetch_again(&folder.to_string(), Hint::Download(Box::new(command.clone())));
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use super::*;
    use crate::cli::errors::one_line;

    #[test]
    fn broken_files_of_the_cache_are_repaired_by_a_download() {
        let model = |repair| Model {
            folder: Folder::from("/cache/x"),
            commit: None,
            components: BTreeMap::new(),
            files: Vec::new(),
            repair,
            snapshots: vec![Folder::from("/cache/y"), Folder::from("/cache/x")],
        };
        let command = DownloadCommand {
            model: "owner/name".into(),
            components: vec![(Component::Prior, "a/b@v1/prior".into())],
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
                        --image-encoder --dtype bf16 --prior a/b@v1/prior --cache-dir \"/cache\" --force`";
        assert_eq!(line(Some(&command), broken(path, Some(Hint::FetchAgain))), expected);
        // The user's own model, a file elsewhere, another hint, or none.
        let fetch_again = |line: String| assert!(line.ends_with("is not a safetensors file; fetch it again"), "{line}");
        fetch_again(line(None, broken(path, Some(Hint::FetchAgain))));
        fetch_again(line(Some(&command), broken("/home/lora.safetensors", Some(Hint::FetchAgain))));
        assert!(line(Some(&command), broken(path, Some(Hint::UseFloat32))).ends_with("; try --dtype f32"));
        assert!(line(Some(&command), broken(path, None)).ends_with("is not a safetensors file"));
    }
}
