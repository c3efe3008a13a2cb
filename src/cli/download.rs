//! `prior-embed download NAME`: brings a model into the cache, so that later runs need no network.

use super::args::{DeviceName, DownloadArgs};
use super::print;
use super::progress::{FetchProgress, Screen, size};
use crate::bad_input;
use crate::hub::{Hub, ModelName, Needs, Wish};
use crate::nn::precision::Precision;
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
    // As a run would choose: a type that this machine is slow in gives way to float32 there too.
    let sixteen_bit = args.dtype.precision(DeviceName::Auto.device()?)? != Precision::F32;
    let image_encoder = if args.image_encoder { Wish::Needed } else { Wish::No };
    let needs = Needs { weights: true, sixteen_bit, image_encoder };
    let hub = Hub::new(args.hub.cache.options());
    let model = hub.download(&name, needs, args.force, &mut FetchProgress::new(screen))?;
    let bytes = model.files.iter().filter_map(|file| file.bytes).fold(0, u64::saturating_add);
    let commit = model.commit.unwrap_or_default();
    screen.note(&format!("{} is here: {} files, {} (commit {commit})", args.model, model.files.len(), size(bytes)));
    print(&model.folder.to_string())
}
