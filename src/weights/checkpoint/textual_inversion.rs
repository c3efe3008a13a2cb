//! Textual inversions (arXiv 2208.01618): learned embeddings of a token, in the files of diffusers and A1111.
//!
//! Source: diffusers 0.42 `loaders/textual_inversion.py`.

use super::entry::{TensorEntry, float_kind, safetensors_entries};
use super::torch;
use super::view::TensorView;
use crate::error::{Error, Hint, Result};
use crate::files::{Bytes, Folder, parent};
use ndarray::Array2;
use sha2::{Digest, Sha256};
use std::path::Path;
use tch::{Device, Kind};

/// The names of the file in its folder.
const FILES: [&str; 2] = ["learned_embeds.safetensors", "learned_embeds.bin"];

/// The vectors may take this many times the bytes of the file: in pickles elements can be repeated.
const MAX_RATIO: u64 = 10;

/// The bytes that the vectors of a small file may take anyway.
const SMALL_BYTES: u64 = 1 << 20;

/// A learned token.
#[derive(Debug, Clone)]
pub struct TextualInversion {
    /// Its file in messages.
    pub origin: String,
    /// The token.
    pub token: String,
    /// Its embeddings, `(vectors, hidden_size)`.
    pub vectors: Array2<f32>,
    /// A hash of the file.
    pub hash: String,
}

impl TextualInversion {
    /// Reads a file, or the one in a folder. `token` replaces the file's own name of the token.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Tensor`] if there is none, or it is damaged or another kind of file.
    pub fn open(path: &Path, token: Option<&str>) -> Result<Self> {
        let (folder, name) = find(path)?;
        let (origin, bytes) = (folder.path_of(&name), folder.open(&name)?);
        let is_safetensors = Path::new(&name).extension().is_some_and(|extension| extension == "safetensors");
        let (own, entry) =
            if is_safetensors { safetensors_entry(&bytes, &origin)? } else { torch::learned(&bytes, &origin)? };
        let token = match token.map(str::to_string).or(own) {
            Some(token) if !token.is_empty() => token,
            Some(_) => return Err(Error::file(origin, "has an empty name for its token").with_hint(Hint::NameToken)),
            None => return Err(Error::file(origin, "does not name its token").with_hint(Hint::NameToken)),
        };
        let vectors = read(&bytes, &entry, &token, &origin)?;
        let hash = format!("{:.32x}", Sha256::digest(&*bytes));
        Ok(Self { origin, token, vectors, hash })
    }
}

/// The folder and name of the file.
fn find(path: &Path) -> Result<(Folder, String)> {
    if path.is_dir() {
        let folder = Folder::from(path);
        let name = FILES.into_iter().find(|name| folder.has_file(name));
        return match name {
            Some(name) => Ok((folder, name.to_string())),
            None => Err(Error::file(folder.to_string(), format!("holds neither {} nor {}", FILES[0], FILES[1]))),
        };
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((Folder::from(parent(path)), name))
}

/// The only tensor of a safetensors file, which is named like its token.
fn safetensors_entry(bytes: &Bytes, path: &str) -> Result<(Option<String>, TensorEntry)> {
    let mut entries = safetensors_entries(bytes, 0, path)?;
    match (entries.pop(), entries.len()) {
        (Some((name, entry)), 0) => Ok((Some(name), entry)),
        (None, _) => Err(Error::file(path, "holds no tensors")),
        (_, others) => Err(torch::not_learned(path, &format!("it holds {} tensors", others + 1))),
    }
}

fn read(bytes: &Bytes, entry: &TensorEntry, token: &str, path: &str) -> Result<Array2<f32>> {
    let wrong = |reason: String| Err(Error::tensor(path, token, format!("the embedding of {token:?} {reason}")));
    if float_kind(entry.dtype).is_none() {
        return wrong(format!("has type {:?}, not F32, F16, BF16 or F64", entry.dtype));
    }
    if entry.elements().saturating_mul(4) > MAX_RATIO.saturating_mul(bytes.len() as u64).max(SMALL_BYTES) {
        return wrong("is larger than its file".into());
    }
    let (rows, width) = match entry.shape[..] {
        [width] => (1, width),
        [rows, width] if rows > 0 => (rows, width),
        _ => return wrong(format!("has shape {:?}, not (vectors, width)", entry.shape)),
    };
    let view = TensorView::new(bytes, entry, token, path)?;
    if !view.is_finite()? {
        return wrong("has NaN or infinity in it".into());
    }
    let vectors = view.to_owned(Kind::Float, Device::Cpu)?;
    let mut values = vec![0.0; (rows * width) as usize];
    let len = values.len();
    vectors.f_copy_data(&mut values, len)?;
    if values.iter().any(|value: &f32| !value.is_finite()) {
        return wrong("has numbers that float32 does not hold".into());
    }
    let shape = (rows as usize, width as usize);
    Array2::from_shape_vec(shape, values).map_err(|error| Error::Internal(error.to_string()))
}
