//! Reads a component's JSON configuration: wrong types are named by key, unknown keys are reported.

use crate::bad_input;
use crate::error::{FETCH_AGAIN, OrBadInput, json_advice, some_of};
use crate::files::Folder;
use crate::json::Json;
use anyhow::Result;
use serde::de::DeserializeOwned;
use std::ops::RangeInclusive;

/// No dimension of a model that this tool was made for comes near this; a larger one is a broken file.
const MAX_SIZE: i64 = 1 << 20;

/// Likewise for the number of layers.
const MAX_LAYERS: i64 = 1 << 10;

/// A component's configuration.
pub trait Config: DeserializeOwned {
    /// Whether a key that is not listed may change the numbers, so that the user has to hear of it.
    ///
    /// Configurations of diffusers hold little else than what the model is built from. Those of transformers repeat
    /// dozens of keys that have nothing to do with inference.
    const WARNS_OF_UNKNOWN_KEYS: bool;

    /// The component's part of a configuration that may be that of a larger model.
    fn part(whole: Json) -> Json {
        whole
    }

    /// Checks the values against each other and against what is implemented.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] that names the key and the value. It does not name the file: [`read`] does.
    fn validate(&self) -> Result<()>;
}

/// Reads and checks the configuration in the file `name` of a component's folder.
///
/// # Errors
/// [`crate::error::BadInput`] if the file cannot be read, is not a JSON object, or has a key of the wrong type or value.
pub fn read<C: Config>(folder: &Folder, name: &str) -> Result<C> {
    let path = folder.path_of(name);
    let text = folder.read_text(name);
    let text = text.or_bad_input(|| format!("cannot read {path}: a component needs its configuration there"))?;
    parse(&text, &path)
}

/// Parses and checks a configuration; `origin` says in messages where the text comes from.
///
/// # Errors
/// As [`read`].
pub fn parse<C: Config>(text: &str, origin: &str) -> Result<C> {
    // serde would take an array for the fields in their order.
    if !text.trim_start().starts_with('{') {
        return Err(bad_input!("{origin} is not a JSON object; {FETCH_AGAIN}"));
    }
    let json = Json::parse(text).map_err(|error| bad_input!("{origin}: {error}{}", json_advice(&error)))?;
    from_json(json, origin)
}

/// The same of an object that is parsed already.
///
/// # Errors
/// As [`read`].
pub fn from_json<C: Config>(json: Json, origin: &str) -> Result<C> {
    let mut unknown = Vec::new();
    let mut note_unknown = |path: serde_ignored::Path| unknown.push(path.to_string());
    let watched = serde_ignored::Deserializer::new(C::part(json), &mut note_unknown);
    let config: C = serde_path_to_error::deserialize(watched).map_err(|error| {
        let key = error.path().to_string();
        let place = if key == "." { String::new() } else { format!(" at key {key:?}") };
        bad_input!("{origin}{place}: {}", error.inner())
    })?;
    unknown.retain(|key| !key.starts_with('_'));
    if C::WARNS_OF_UNKNOWN_KEYS && !unknown.is_empty() {
        log::warn!("{origin}: unknown keys are ignored: {}", some_of(&unknown));
    }
    let validated = config.validate();
    validated.map_err(|error| bad_input!("{origin}: {error}"))?;
    Ok(config)
}

/// Checks that sizes are positive and of a plausible magnitude.
///
/// # Errors
/// [`crate::error::BadInput`] that names the first key that is not.
pub fn check_sizes(sizes: &[(&str, i64)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
        Some((key, size)) => Err(bad_input!("{key} is {size}, it must be between 1 and {MAX_SIZE}")),
        None => Ok(()),
    }
}

/// Checks that a number of layers is positive and plausible.
///
/// # Errors
/// [`crate::error::BadInput`] that names the key.
pub fn check_layers(key: &str, layers: i64) -> Result<()> {
    if (1..=MAX_LAYERS).contains(&layers) {
        return Ok(());
    }
    Err(bad_input!("{key} is {layers}, it must be between 1 and {MAX_LAYERS}"))
}

/// Checks a number that is computed with in float32: in that type it is within a range, ends included.
///
/// # Errors
/// [`crate::error::BadInput`] that names the key.
pub fn check_float(key: &str, value: f64, range: RangeInclusive<f32>) -> Result<()> {
    if range.contains(&(value as f32)) {
        return Ok(());
    }
    let (least, most) = range.into_inner();
    Err(bad_input!("{key} is {value:?}, it must be between {least:?} and {most:?}"))
}
