//! What --prompts names: files, folders and patterns on this machine, and data sets on the hub.

use crate::bad_input;
use crate::cli::context::Context;
use crate::cli::progress::FetchProgress;
use crate::hub::{DatasetFiles, DatasetPath, Datasets, Hub};
use crate::rows::{PromptFile, PromptFormat, PromptListing};
use anyhow::Result;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The prompt files, as far as they are on this machine.
pub(super) struct Inputs {
    parts: Vec<Part>,
    listing: PromptListing,
}

/// What one value of --prompts stands for.
enum Part {
    Local(PathBuf, Vec<PromptFile>),
    Hub(DatasetPath),
}

impl Inputs {
    /// Lists folders and patterns on this machine.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if one gives no files, a path on the hub cannot be one, or a pipe is named twice.
    pub(super) fn find(paths: &[PathBuf], format: Option<&'static PromptFormat>) -> Result<Self> {
        let listing = PromptListing::new(format);
        let part = |path: &PathBuf| match path.to_str().filter(|text| DatasetPath::is_one(text)) {
            Some(text) => {
                let dataset = DatasetPath::parse(text)?;
                listing.check(dataset.path())?;
                Ok(Part::Hub(dataset))
            }
            None => Ok(Part::Local(path.clone(), listing.files(path)?)),
        };
        let inputs = Self { parts: paths.iter().map(part).collect::<Result<_>>()?, listing };
        let mut streams: Vec<&PromptFile> = inputs.local().filter(|file| file.is_stream()).collect();
        while let Some(stream) = streams.pop() {
            if streams.contains(&stream) {
                return Err(bad_input!("--prompts: {} is named twice, and can be read only once", stream.name));
            }
        }
        Ok(inputs)
    }

    /// The files that are not on the hub.
    pub(super) fn local(&self) -> impl Iterator<Item = &PromptFile> {
        self.parts.iter().flat_map(|part| match part {
            Part::Local(_, files) => files.as_slice(),
            Part::Hub(_) => &[],
        })
    }

    /// Whether any of them is on the hub.
    pub(super) fn are_on_hub(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Hub(_)))
    }

    /// Refuses an output that the next run would read as prompts, because it lies in a folder of them. A folder of outputs
    /// has the file `inner`.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it does.
    pub(super) fn check_output(&self, output: &Path, inner: Option<&str>) -> Result<()> {
        let folders = self.parts.iter().filter_map(|part| match part {
            Part::Local(path, _) => Some(path),
            Part::Hub(_) => None,
        });
        match folders.into_iter().find(|folder| self.listing.gives(folder, output, inner)) {
            Some(folder) => Err(bad_input!(
                "{:?} would lie in the folder of prompts {:?}, and be read by the next run; write it elsewhere",
                output.display().to_string(),
                folder.display().to_string()
            )),
            None => Ok(()),
        }
    }

    /// All files, of which those on the hub are downloaded if need be, and the commits of their data sets.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if a data set has no such files, and whatever goes wrong with a download.
    pub(super) fn open(self, context: &Context) -> Result<(Vec<PromptFile>, BTreeMap<String, String>)> {
        let hub = Hub::new(context.hub.clone());
        let (mut datasets, listing) = (Datasets::new(&hub), self.listing);
        let (mut files, mut commits) = (Vec::new(), BTreeMap::<String, String>::new());
        for part in self.parts {
            let path = match part {
                Part::Local(_, found) => {
                    files.extend(found);
                    continue;
                }
                Part::Hub(path) => path,
            };
            let name = |inner: &str| path.with_path(inner).to_string();
            let refused = RefCell::new(None);
            let select = |files: &[&str]| {
                let found = listing.select(path.path(), files);
                // Before anything of it is downloaded.
                let checked = listing.check_formats(&found, name);
                let is_known = checked.is_ok();
                refused.replace(checked.err());
                if is_known { found } else { Vec::new() }
            };
            let found = datasets.open(&path, &select, &mut FetchProgress::new(&context.screen));
            if let Some(error) = refused.take() {
                return Err(error);
            }
            let DatasetFiles { commit, files: found } = found?;
            if found.is_empty() {
                return Err(listing.holds_none(&path.to_string()));
            }
            log::info!("{path} is at commit {commit}");
            files.extend(found.into_iter().map(|(inner, path)| PromptFile { name: name(&inner), path }));
            let known = commits.entry(path.repository()).or_default();
            if !known.contains(&commit) {
                let separator = if known.is_empty() { "" } else { ", " };
                *known += &format!("{separator}{commit}");
            }
        }
        Ok((files, commits))
    }
}
