//! `prior-embed download NAME`: brings a model into the cache, so that later runs need no network.

use super::args::{ComponentArgs, RevisionArgs, text};
use super::context::Context;
use super::progress::{FetchProgress, size};
use super::stdout::print;
use super::values::{DeviceName, Dtype};
use crate::bad_input;
use crate::hub::{Hub, Needs, Wish};
use crate::weights::precision::Precision;
use anyhow::Result;

/// Download a model in advance, or update it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A name from `prior-embed models`, or owner/name[@revision] on the hub
    #[arg(value_name = "NAME", value_parser = text())]
    model: String,

    /// Number type to compute in later: f32, bf16, f16 or int8; all but f32 take the smaller fp16 files, if there are
    /// any
    #[arg(long, value_name = "NAME", default_value = "auto", hide_possible_values = true)]
    dtype: Dtype,

    /// Include the image encoder, which makes negative embeddings without a negative prompt; with =M one from elsewhere
    #[arg(long, value_name = "M", num_args = 0..=1, require_equals = true, value_parser = text())]
    image_encoder: Option<Option<String>>,

    #[command(flatten)]
    components: ComponentArgs,

    /// Verify the hashes of files that are already here, and download damaged ones again
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    revision: RevisionArgs,
}

/// Downloads the model and prints its folder.
///
/// # Errors
/// Whatever goes wrong on the way.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let screen = &context.screen;
    let components = args.components.given(args.image_encoder.as_ref().and_then(Option::as_deref));
    let source = args.revision.model(&args.model, &components, &context.hub)?;
    if !source.is_on_hub() {
        return Err(bad_input!("{:?} is on this machine already; there is nothing to download", args.model));
    }
    // The precision that a run on this machine would use.
    let sixteen_bit = args.dtype.precision(DeviceName::Auto.device()?)? != Precision::F32;
    let image_encoder = if args.image_encoder.is_some() { Wish::Needed } else { Wish::No };
    let needs = Needs { sixteen_bit, image_encoder, image_processor: image_encoder == Wish::Needed, ..Needs::ALL };
    let hub = Hub::new(context.hub.clone());
    let model = hub.download(&source, needs, args.force, &mut FetchProgress::new(screen))?;
    let bytes = model.files.iter().filter_map(|file| file.bytes).fold(0, u64::saturating_add);
    let commit = model.commit.map_or_else(String::new, |commit| format!(" (commit {commit})"));
    screen.note(&format!("{} is here: {} files, {}{commit}", args.model, model.files.len(), size(bytes)));
    print(&model.folder.to_string())?;
    Ok(0)
}
