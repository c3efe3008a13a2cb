//! Reads a component's JSON configuration: values of the wrong type are errors that name the key, unknown keys
//! warnings.

use crate::error::{Error, Hint, Result, quoting};
use crate::files::Folder;
use crate::json::{self, Json};
use crate::text;
use serde::de::DeserializeOwned;
use std::ops::RangeInclusive;

/// No dimension of a supported model comes near this; a larger one is a damaged file.
const MAX_SIZE: i64 = 1 << 20;

/// Likewise for the number of layers.
const MAX_LAYERS: i64 = 1 << 10;

/// A component's configuration.
pub trait Config: DeserializeOwned {
    /// Whether an unknown key may change the result, so that the user must be warned of it.
    ///
    /// Configurations of diffusers hold little but what the model is built from. Those of transformers repeat dozens of
    /// keys that have nothing to do with inference.
    const WARNS_OF_UNKNOWN_KEYS: bool;

    /// Keys that are not warned of: they are known to have no meaning here.
    const IGNORED_KEYS: &'static [&'static str] = &[];

    /// The component's part of a configuration, which may be that of a larger model.
    fn part(whole: Json) -> Json {
        whole
    }

    /// Checks the values against each other and against what is implemented.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key and the value, without the file: [`read`] adds it.
    fn validate(&self) -> Result<()>;
}

/// Reads and checks the configuration in the file `name` of a component's folder.
///
/// # Errors
/// [`Error::File`] if it cannot be read, [`Error::Config`] if it is not a JSON object or has a key of the wrong type or
/// value.
pub fn read<C: Config>(folder: &Folder, name: &str) -> Result<C> {
    parse(&folder.read_text(name)?, &folder.path_of(name))
}

/// Parses and checks a configuration; `origin` is its name in messages.
///
/// # Errors
/// As [`read`].
pub fn parse<C: Config>(text: &str, origin: &str) -> Result<C> {
    // serde would take an array for the fields in their order.
    if !text.trim_start().starts_with('{') {
        return Err(Error::file(origin, "is not a JSON object").with_hint(Hint::FetchAgain));
    }
    from_json(Json::parse(text).map_err(|error| json_error(origin, &error))?, origin)
}

/// As [`parse`], from JSON that is parsed already.
///
/// # Errors
/// As [`read`].
pub fn from_json<C: Config>(json: Json, origin: &str) -> Result<C> {
    let mut unknown = Vec::new();
    let mut note_unknown = |path: serde_ignored::Path| unknown.push(path.to_string());
    let deserializer = serde_ignored::Deserializer::new(C::part(json), &mut note_unknown);
    let config: C = serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let key = Some(error.path().to_string()).filter(|key| key != ".");
        let place = key.as_ref().map_or_else(String::new, |key| format!("at key {key:?}: "));
        let reason = quoting(&format!("{place}{}", error.inner()));
        Error::Config { path: origin.into(), key, reason, hint: None, source: None }
    })?;
    unknown.retain(|key| !key.starts_with('_') && !C::IGNORED_KEYS.contains(&key.as_str()));
    if C::WARNS_OF_UNKNOWN_KEYS && !unknown.is_empty() {
        log::warn!("{origin}: unknown keys are ignored: {}", text::list(&unknown));
    }
    config.validate().map_err(|error| error.with_path(origin))?;
    Ok(config)
}

/// Parses JSON that Python may have written; `origin` is its name in messages.
///
/// # Errors
/// [`Error::Config`] if it is not JSON or not a `T`.
pub fn parse_json<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T> {
    json::from_str(text).map_err(|error| json_error(origin, &error))
}

/// JSON that cannot be read. Broken syntax means a damaged file; a value of the wrong type does not.
fn json_error(origin: &str, error: &serde_json::Error) -> Error {
    let hint = (error.is_syntax() || error.is_eof()).then_some(Hint::FetchAgain);
    Error::Config { path: origin.into(), key: None, reason: quoting(&error.to_string()), hint, source: None }
}

/// Checks that sizes are positive and plausible.
///
/// # Errors
/// [`Error::Config`] that names the first key that is not.
pub fn check_sizes(sizes: &[(&str, i64)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
        Some((key, size)) => Err(Error::key(key, format!("is {size}, it must be between 1 and {MAX_SIZE}"))),
        None => Ok(()),
    }
}

/// Checks that a number of layers is positive and plausible.
///
/// # Errors
/// [`Error::Config`] that names the key.
pub fn check_layers(key: &str, layers: i64) -> Result<()> {
    if (1..=MAX_LAYERS).contains(&layers) {
        return Ok(());
    }
    Err(Error::key(key, format!("is {layers}, it must be between 1 and {MAX_LAYERS}")))
}

/// Checks that a number is in a range, ends included, when rounded to float32.
///
/// # Errors
/// [`Error::Config`] that names the key.
pub fn check_float(key: &str, value: f64, range: RangeInclusive<f32>) -> Result<()> {
    if range.contains(&(value as f32)) {
        return Ok(());
    }
    let (min, max) = range.into_inner();
    Err(Error::key(key, format!("is {value:?}, it must be between {min:?} and {max:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::text_encoder::TextEncoderConfig;

    #[test]
    fn an_error_quotes_a_file_in_a_line() {
        let long = "a".repeat(1 << 20);
        for text in [
            format!(r#"{{"hidden_size": "{long}"}}"#),
            format!(r#"{{"hidden_act": "{long}"}}"#),
            format!(r#"{{"hidden_size": {{"{long}": 1}}}}"#),
            format!(r#"{{"hidden_size": {long}}}"#),
        ] {
            let error = parse::<TextEncoderConfig>(&text, "config.json").unwrap_err().to_string();
            assert!(error.len() < 1000 && error.contains("hidden") | error.contains("line 1"), "{error}");
        }
        let error = parse::<TextEncoderConfig>(r#"{"hidden_size": "a\nb"}"#, "config.json").unwrap_err().to_string();
        assert!(error.lines().count() == 1 && error.contains(r"a\nb"), "{error}");
        let error = parse::<TextEncoderConfig>(&format!(r#"{{"hidden_act": "{long}"}}"#), "config.json");
        assert!(error.unwrap_err().to_string().ends_with("\"quick_gelu\" and \"gelu\" are supported"));
    }
}
