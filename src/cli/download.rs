//! `prior-embed download NAME`: brings a model into the cache, so that later runs need no network.

use super::args::DownloadArgs;
use super::print;
use super::progress::{FetchProgress, Screen, size};
use crate::bad_input;
use crate::hub::{Hub, ModelName, Needs};
use crate::model::precision::Precision;
use anyhow::Result;

/// Downloads what the options ask for, and prints the model's folder.
///
/// # Errors
/// Whatever goes wrong on the way.
pub fn run(args: &DownloadArgs, screen: &Screen) -> Result<()> {
    let name = args.hub.model(&args.model)?;
    if !matches!(name, ModelName::Hub(_)) {
        return Err(bad_input!("{:?} is on this machine already; there is nothing to download", args.model));
    }
    let sixteen_bit = args.dtype.wanted() != Precision::F32;
    let needs = Needs { weights: true, sixteen_bit, image_encoder: args.image_encoder };
    let hub = Hub::new(args.hub.cache.options());
    let model = hub.download(&name, needs, &mut FetchProgress::new(screen))?;
    let bytes = model.files.iter().filter_map(|file| file.bytes).sum();
    let commit = model.commit.unwrap_or_default();
    screen.note(&format!("{} is here: {} files, {} (commit {commit})", args.model, model.files.len(), size(bytes)));
    print(&model.folder.to_string())
}
