//! The provenance of a run: what only the job knows of it, and its file, which is written once the outputs are in place.

use super::first_pass::FirstPass;
use super::options::RowOptions;
use super::prompts::Prompts;
use crate::bad_input;
use crate::kernels::process::libtorch_version;
use crate::output::destination::Destination;
use crate::output::provenance::{SHARD_KEY, pretty};
use crate::output::shard::Shard;
use crate::pipeline::Pipeline;
use crate::rows::PromptRow;
use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

/// A provenance to write.
#[derive(Debug)]
pub struct Provenance {
    /// The file, open for a resumed run to replace.
    pub destination: Destination,
    /// The same file, if what is in it must stay unless it is what this run writes.
    pub keeps: Option<PathBuf>,
    /// The model's name, and its commit on the hub.
    pub model: (String, Option<String>),
    /// The settings of the run, as JSON.
    pub settings: Value,
}

impl Provenance {
    /// The provenance, in one line of JSON.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if a file cannot be read, or another provenance is in the way.
    pub(super) fn text(
        &self,
        pipeline: &Pipeline,
        options: &RowOptions,
        prompts: &Prompts,
        first_pass: &FirstPass,
        shard: Option<Shard>,
    ) -> Result<Arc<str>> {
        let files = pipeline.file_hashes(options.needs_zero_embed())?;
        // What `sha256sum` prints of them.
        let sums: String = files.iter().map(|(path, hash)| format!("{hash}  {path}\n")).collect();
        let (loras, inversions) = pipeline.addition_hashes()?;
        let (name, commit) = &self.model;
        let hash = if prompts.conditions.is_none() { Some(hash_of(prompts)?) } else { None };
        let mut text = json!({
            "prior_embed": env!("CARGO_PKG_VERSION"),
            "libtorch": libtorch_version(),
            "model": {
                "name": name,
                "commit": commit,
                "sha256": format!("{:x}", Sha256::digest(sums)),
                "files": files,
                "loras": loras,
                "textual_inversions": inversions,
            },
            "prompts": {
                "rows": first_pass.rows,
                "sha256": hash,
                "with_their_settings": first_pass.hash,
                "conditions": options.conditions.as_ref().map(|given| &given.hash),
                "latents": options.latents.as_ref().map(|given| &given.hash),
            },
            "settings": self.settings,
            SHARD_KEY: shard.map(|shard| shard.to_string()),
        });
        if !prompts.datasets.is_empty() {
            text["prompts"]["datasets"] = json!(prompts.datasets);
        }
        let text: Arc<str> = text.to_string().into();
        if let Some(path) = &self.keeps
            && let Ok(found) = fs::read_to_string(path)
            && found != pretty(&text)?
        {
            let name = path.display().to_string();
            return Err(bad_input!(
                "{name:?} is there already, and not as this run writes it; give another name, or --overwrite to replace it"
            ));
        }
        Ok(text)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(self, text: &str) -> Result<()> {
        let text = pretty(text)?;
        self.destination.write(|output| Ok(output.write_all(text.as_bytes())?))
    }
}

/// The SHA-256 of all prompts, each followed by a line feed: that of a `.txt` file of them.
fn hash_of(prompts: &Prompts) -> Result<String> {
    let mut hasher = Sha256::new();
    for entry in prompts.open()? {
        if let PromptRow::Prompt { record, .. } = entry?.row {
            hasher.update(&*record.prompt);
        }
        hasher.update("\n");
    }
    Ok(format!("{:x}", hasher.finalize()))
}
