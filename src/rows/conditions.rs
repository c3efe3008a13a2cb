//! Reads text conditions that were made elsewhere, in place of prompts.

use super::arrays::ArrayFile;
use crate::bad_input;
use crate::pipeline::Conditions;
use anyhow::Result;
use ndarray::{Array2, Array3, Ix2, Ix3};
use std::path::Path;

/// The names of the arrays, as diffusers' pipelines call these.
const NAMES: [&str; 3] = ["text_embeds", "text_encoder_hidden_states", "text_mask"];

/// Before the names of those in place of the negative prompts.
const NEGATIVE: &str = "negative_";

/// Reads a file of conditions: `text_embeds` `(n, dim)`, `text_encoder_hidden_states` `(n, tokens, width)` and
/// `text_mask` `(n, tokens)`, and perhaps the same with `negative_` before their names, of n rows or one. Returns them
/// with what messages call the file and a hash.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the file cannot be read, or an array is missing, has another shape, or numbers that
/// it may not have.
pub fn read_conditions(path: &Path) -> Result<(Conditions, String, String)> {
    let is_wanted = |name: &str| NAMES.contains(&name.strip_prefix(NEGATIVE).unwrap_or(name));
    let mut file = ArrayFile::read(path, &is_wanted)?;
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npy")) {
        return Err(bad_input!(
            "{:?} holds one array, and conditions are three; save a .npz or .safetensors",
            file.name
        ));
    }
    let has_negative = file.names().any(|name| name.starts_with(NEGATIVE));
    let refused = |name: &str, error: crate::Error| bad_input!("{name:?}: {}", error.reason());
    let conditions = read(&mut file, "")?;
    if conditions.rows() == 0 {
        return Err(bad_input!("{:?} holds no rows", file.name));
    }
    let conditions = match has_negative {
        true => {
            let negative = read(&mut file, NEGATIVE)?;
            conditions.with_negative(negative).map_err(|error| refused(&file.name, error))?
        }
        false => conditions,
    };
    Ok((conditions, file.name, file.hash))
}

/// The three arrays whose names have this prefix.
fn read(file: &mut ArrayFile, prefix: &str) -> Result<Conditions> {
    let [embeds, states, mask] = NAMES.map(|name| format!("{prefix}{name}"));
    let name = file.name.clone();
    let missing = |array: &str| bad_input!("{name:?} holds no {array}");
    let text_embeds: Array2<f32> = file.take::<Ix2>(&embeds)?.ok_or_else(|| missing(&embeds))?;
    let hidden_states: Array3<f32> = file.take::<Ix3>(&states)?.ok_or_else(|| missing(&states))?;
    let of_mask: Array2<f32> = file.take::<Ix2>(&mask)?.ok_or_else(|| missing(&mask))?;
    if let Some(row) = of_mask.outer_iter().position(|row| row.iter().any(|value| *value != 0.0 && *value != 1.0)) {
        return Err(bad_input!("{name:?}: {mask} has a number that is neither 0 nor 1 in row {row}"));
    }
    let conditions = Conditions::new(text_embeds, hidden_states, of_mask.mapv(|value| value != 0.0));
    conditions.map_err(|error| match prefix {
        "" => bad_input!("{name:?}: {}", error.reason()),
        _ => bad_input!("{name:?}: of the negative arrays, {}", error.reason()),
    })
}
