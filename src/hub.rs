//! Model name to folder on disk, and where in that folder the components of a prior pipeline lie.

pub mod layout;

use crate::bad_input;
use anyhow::Result;
use std::path::PathBuf;

/// The folder of the model `name`.
///
/// # Errors
/// [`crate::error::BadInput`] if there is no such folder.
pub fn resolve(name: &str) -> Result<PathBuf> {
    let folder = PathBuf::from(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    if folder.exists() {
        return Err(bad_input!(
            "model {name:?} is a file; give the folder that holds prior/, text_encoder/ and the rest"
        ));
    }
    Err(bad_input!("model {name:?} is not a folder on this machine; give the path of a folder in diffusers' layout"))
}
