//! `prior-embed convert SRC DST`: rewrites a model as a folder.

use super::args::ConvertArgs;
use super::progress::{FetchProgress, Screen};
use crate::bad_input;
use crate::convert::{ConvertOptions, Input, convert};
use crate::hub::{Hub, Model, Needs, Wish};
use crate::job::{Stop, exit_code};
use anyhow::Result;
use std::path::Path;

/// The user asked to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; nothing was written")]
struct Interrupted;

/// Runs the conversion and gives the exit code; Ctrl-C and SIGTERM end it with nothing left behind.
///
/// # Errors
/// [`crate::error::BadInput`] for what the user can mend, and whatever goes wrong on the way.
pub fn run(args: &ConvertArgs, screen: &Screen) -> Result<u8> {
    let (source, model) = source(args, screen)?;
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
            Ok(exit_code(signal))
        }
        (done, _) => done.map(|()| 0).map_err(|error| model.advise(error)),
    }
}

/// What is rewritten, and the model that all or the rest of it is.
fn source(args: &ConvertArgs, screen: &Screen) -> Result<(Input, Model)> {
    let path = Path::new(&args.source);
    let is_component = path.join("config.json").is_file() && !path.join("model_index.json").is_file();
    match (path.is_file() || is_component, &args.config) {
        (true, Some(rest)) => {
            let model = model(rest, args, screen)?;
            Ok((Input::Prior { path: path.to_path_buf(), rest: model.folder.clone() }, model))
        }
        (true, None) => Err(bad_input!(
            "{:?} is a prior alone; give --config FOLDER, a model of the same kind that the text encoder, the tokenizer and the rest are taken from",
            args.source
        )),
        (false, None) => {
            let model = model(&args.source, args, screen)?;
            Ok((Input::Model(model.folder.clone()), model))
        }
        (false, Some(_)) => Err(bad_input!(
            "--config goes with a prior alone, in a file or a folder, and {:?} is none; leave it out, or give the prior",
            args.source
        )),
    }
}

/// Everything of a model, as exact as there is.
fn model(name: &str, args: &ConvertArgs, screen: &Screen) -> Result<Model> {
    let needs = Needs { weights: true, sixteen_bit: false, image_encoder: Wish::Needed };
    let hub = Hub::new(args.hub.cache.options());
    Ok(hub.open(&args.hub.model(name)?, needs, &mut FetchProgress::new(screen))?)
}
