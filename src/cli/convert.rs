//! `prior-embed convert SRC DST`: rewrites a model as a folder.

use super::args::{ComponentArgs, RevisionArgs, text};
use super::context::Context;
use super::progress::FetchProgress;
use crate::bad_input;
use crate::convert::{ConvertOptions, Input, check_prior, convert};
use crate::error::Component;
use crate::hub::{Hub, Model, Needs, Wish};
use crate::job::{Stop, signal_exit_code};
use anyhow::Result;
use clap::ValueEnum;
use safetensors::tensor::Dtype as StoredDtype;
use std::path::{Path, PathBuf};

/// Rewrite a model as a folder in diffusers' layout, with safetensors
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A model, or only a prior: a .ckpt of Karlo's or Kandinsky 2.1's authors, .pt, .bin, .safetensors, or its folder
    #[arg(value_name = "SRC", value_parser = text())]
    source: String,

    /// The folder to make
    #[arg(value_name = "DST")]
    target: PathBuf,

    /// Number type of the weights: f32, f16 or bf16 [default: that of SRC]
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    dtype: Option<WeightDtype>,

    /// For a prior alone: the model to take everything else from, and its configuration if SRC has none beside it
    #[arg(long, value_name = "FOLDER", value_parser = text())]
    config: Option<String>,

    /// Replace an existing model
    #[arg(long)]
    overwrite: bool,

    #[command(flatten)]
    components: ComponentArgs,

    /// Image encoder from elsewhere, which may be a whole CLIPModel
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    image_encoder: Option<String>,

    #[command(flatten)]
    revision: RevisionArgs,
}

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WeightDtype {
    /// Float32.
    F32,
    /// Float16.
    F16,
    /// Bfloat16.
    Bf16,
}

impl From<WeightDtype> for StoredDtype {
    fn from(dtype: WeightDtype) -> Self {
        match dtype {
            WeightDtype::F32 => Self::F32,
            WeightDtype::F16 => Self::F16,
            WeightDtype::Bf16 => Self::BF16,
        }
    }
}

/// A signal came.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; nothing was written")]
struct Interrupted;

/// Runs the conversion and returns the exit code. Ctrl-C and SIGTERM end it and leave nothing behind.
///
/// # Errors
/// [`crate::bad_input::BadInput`] for what the user can fix, and whatever goes wrong on the way.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let screen = &context.screen;
    let (source, model) = source(args, context)?;
    let stop = Stop::listen()?;
    let keep_going = || match stop.signal() {
        Some(_) => Err(Interrupted.into()),
        None => Ok(()),
    };
    let spinner = screen.spinner();
    spinner.set_message(format!("converting {}", args.source));
    let options = ConvertOptions { dtype: args.dtype.map(Into::into), overwrite: args.overwrite };
    let done = convert(&source, &args.target, options, &keep_going);
    spinner.finish_and_clear();
    match (done, stop.signal()) {
        (Err(error), Some(signal)) if error.is::<Interrupted>() => {
            screen.error(&error.to_string());
            Ok(signal_exit_code(signal))
        }
        (done, _) => done.map(|()| 0).map_err(|error| model.advise(error)),
    }
}

/// What to convert, and the model that it is, or that the components beside the prior come from.
fn source(args: &Args, context: &Context) -> Result<(Input, Model)> {
    let path = Path::new(&args.source);
    let is_component = path.join("config.json").is_file() && !path.join("model_index.json").is_file();
    if path.is_file() {
        check_prior(path)?;
    }
    if (path.is_file() || is_component) && args.components.given(None).iter().any(|(name, _)| *name == Component::Prior)
    {
        return Err(bad_input!("{:?} is a prior alone, and so is that of --prior; leave one out", args.source));
    }
    match (path.is_file() || is_component, &args.config) {
        (true, Some(rest)) => {
            let model = model(rest, args, context)?;
            let (rest, replacements) = (model.folder.clone(), model.replacements());
            Ok((Input::Prior { path: path.to_path_buf(), rest, replacements }, model))
        }
        (true, None) => Err(bad_input!(
            "{:?} is a prior alone; give --config FOLDER, a model of the same kind to take \
             the text encoder, the tokenizer and the rest from",
            args.source
        )),
        (false, None) => {
            let model = model(&args.source, args, context)?;
            Ok((Input::Model(model.folder.clone(), model.replacements()), model))
        }
        (false, Some(_)) => Err(bad_input!(
            "--config goes with a prior alone, a file or a folder, and {:?} is a whole model; \
             leave it out, or give the prior",
            args.source
        )),
    }
}

/// A model with all components, in its most precise files.
fn model(name: &str, args: &Args, context: &Context) -> Result<Model> {
    let needs = Needs { image_encoder: Wish::Needed, ..Needs::ALL };
    let hub = Hub::new(context.hub.clone());
    let components = args.components.given(args.image_encoder.as_deref());
    let source = args.revision.model(name, &components, &context.hub)?;
    Ok(hub.open(&source, needs, &mut FetchProgress::new(&context.screen))?)
}
