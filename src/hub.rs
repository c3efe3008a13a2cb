//! Model name to a folder, on disk or inside the program, and where in that folder the components of a prior pipeline lie.

pub mod builtin;
pub mod layout;

use crate::bad_input;
use crate::files::Folder;
use anyhow::Result;
use builtin::{EMOJI, EMOJI_MODEL};
use std::path::Path;

/// The folder of the model `name`: [`EMOJI`], which is built in, or the path of a folder on disk.
///
/// A folder called `emoji` in the current directory does not take the built-in model's place; `./emoji` names it.
///
/// # Errors
/// [`crate::error::BadInput`] if there is no such model.
pub fn resolve(name: &str) -> Result<Folder> {
    let path = Path::new(name);
    if name == EMOJI {
        return Ok(Folder::builtin(&EMOJI_MODEL));
    }
    if path.is_dir() {
        return Ok(Folder::from(path));
    }
    if path.exists() {
        return Err(bad_input!(
            "model {name:?} is a file; give the folder that holds prior/, text_encoder/ and the rest"
        ));
    }
    Err(bad_input!(
        "model {name:?} is neither a folder on this machine nor the built-in {EMOJI}; give {EMOJI}, or the path of a folder in diffusers' layout"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_built_in_model_or_a_folder() {
        assert_eq!(resolve("emoji").unwrap().to_string(), "the built-in model emoji");
        assert_eq!(resolve("src").unwrap().to_string(), "src");
        for name in ["./emoji", "Emoji", "", "Cargo.toml"] {
            assert!(resolve(name).is_err(), "{name:?}");
        }
    }
}
