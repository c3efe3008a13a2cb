//! Arrays of numbers in files of numpy (`.npy`, `.npz`) and safetensors.

use crate::bad_input;
use crate::files::Bytes;
use anyhow::Result;
use flate2::read::DeflateDecoder;
use half::{bf16, f16};
use ndarray::{Array2, ArrayD, ArrayView1, Axis, Dimension, IxDyn, ShapeBuilder};
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

/// The name of the array in a `.npy` file, which has none.
const UNNAMED: &str = "";

/// Bytes of a header of numpy at most; its own are of 128.
const MAX_HEADER: usize = 4096;

/// How much deflate can shrink data at most.
const MAX_DEFLATE_RATIO: usize = 1032;

/// The arrays of a file, in float32.
#[derive(Debug)]
pub(super) struct ArrayFile {
    /// What messages call it.
    pub(super) name: String,
    /// A hash of its bytes.
    pub(super) hash: String,
    arrays: BTreeMap<String, ArrayD<f32>>,
}

impl ArrayFile {
    /// Reads those arrays of a file that `is_wanted` says, by name; that of a `.npy` file is called "".
    ///
    /// Numbers of other types are rounded to float32.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it cannot be read, is damaged, or has numbers that are not supported.
    pub(super) fn read(path: &Path, is_wanted: &dyn Fn(&str) -> bool) -> Result<Self> {
        let name = path.display().to_string();
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let bytes = Bytes::of_file(path).map_err(|error| bad_input!("cannot read {name:?} ({error})"))?;
        let read = match extension.as_deref() {
            Some("npy") => npy(&bytes).map(|array| BTreeMap::from([(UNNAMED.to_string(), array)])),
            Some("npz") => npz(&bytes, is_wanted),
            Some("safetensors") => safetensors(&bytes, is_wanted),
            _ => Err("does not end in .npy, .npz or .safetensors".into()),
        };
        let arrays = read.map_err(|reason| bad_input!("{name:?} {reason}"))?;
        Ok(Self { hash: format!("{:.32x}", Sha256::digest(&*bytes)), name, arrays })
    }

    /// Reads all arrays of a `.npz` in memory, which messages call `name`.
    ///
    /// # Errors
    /// As [`ArrayFile::read`].
    pub(super) fn of_npz(name: &str, bytes: &[u8]) -> Result<Self> {
        let arrays = npz(bytes, &|_| true).map_err(|reason| bad_input!("{name} {reason}"))?;
        Ok(Self { hash: format!("{:.32x}", Sha256::digest(bytes)), name: name.into(), arrays })
    }

    /// The names of its arrays.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.arrays.keys().map(String::as_str)
    }

    /// The name of its only array, or `name` if it has several and one is called so.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there is neither.
    pub(super) fn only_or(&self, name: &str) -> Result<String> {
        let names: Vec<&str> = self.names().collect();
        match &names[..] {
            [only] => Ok(only.to_string()),
            names if names.contains(&name) => Ok(name.into()),
            names => Err(bad_input!("{:?} holds {} arrays, and none is called {name}", self.name, names.len())),
        }
    }

    /// Takes an array of any number of dimensions out, if there is one of this name.
    pub(super) fn take_any(&mut self, array: &str) -> Option<ArrayD<f32>> {
        self.arrays.remove(array)
    }

    /// Takes an array out, if there is one of this name.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it has another number of dimensions.
    pub(super) fn take<D: Dimension>(&mut self, array: &str) -> Result<Option<ndarray::Array<f32, D>>> {
        let Some(found) = self.arrays.remove(array) else { return Ok(None) };
        let (name, shape, wanted) = (&self.name, found.shape().to_vec(), D::NDIM.unwrap_or_default());
        let array = if array.is_empty() { "the array" } else { array };
        let taken = found.into_dimensionality::<D>();
        taken
            .map(Some)
            .map_err(|_| bad_input!("{name:?}: {array} has shape {shape:?}, and should have {wanted} dimensions"))
    }
}

/// Reads a file of latents, `(rows, dim)`: the array of a `.npy` file, or the only one, or the one called `latents`.
/// Returns it with what messages call the file and a hash.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the file cannot be read, has no such array, or a number is not finite.
pub fn read_latents(path: &Path) -> Result<(Array2<f32>, String, String)> {
    let mut file = ArrayFile::read(path, &|_| true)?;
    let (name, array) = (file.name.clone(), file.only_or("latents")?);
    let latents: Option<Array2<f32>> = file.take(&array)?;
    let latents = latents.unwrap_or_default().as_standard_layout().into_owned();
    match latents.outer_iter().position(|row| row.iter().any(|value| !value.is_finite())) {
        Some(row) => Err(bad_input!("{name:?} has NaN or infinity in row {row}")),
        None => Ok((latents, name, file.hash)),
    }
}

/// A file of image embeddings, `(rows, dim)` or a single one: the array of a `.npy` file, or the only one, or the one called
/// `image_embeds`.
#[derive(Debug)]
pub struct EmbeddingRows {
    /// What messages call the file.
    name: String,
    /// A hash of the file.
    pub hash: String,
    embeds: Array2<f32>,
}

impl EmbeddingRows {
    /// Reads a file.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it cannot be read, or has no such array.
    pub fn read(path: &Path) -> Result<Self> {
        let file = ArrayFile::read(path, &|_| true)?;
        let array = file.only_or("image_embeds")?;
        let ArrayFile { name, hash, mut arrays } = file;
        let found = arrays.remove(&array).unwrap_or_default();
        let found = if found.ndim() == 1 { found.insert_axis(Axis(0)) } else { found };
        let shape = found.shape().to_vec();
        let embeds = found
            .into_dimensionality()
            .map_err(|_| bad_input!("{name:?} has an array of shape {shape:?}, and embeddings are (rows, dim)"))?;
        Ok(Self { name, hash, embeds })
    }

    /// A row, `(dim)`; the only one if not given.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there is no such row, or a number in it is not finite.
    pub fn row(&self, row: Option<usize>) -> Result<ArrayView1<'_, f32>> {
        let name = &self.name;
        let row = match (row, self.embeds.nrows()) {
            (_, 0) => return Err(bad_input!("{name:?} holds no rows")),
            (Some(row), rows) if row < rows => row,
            (Some(row), rows) => return Err(bad_input!("{name:?} has rows 0 to {}, and no row {row}", rows - 1)),
            (None, 1) => 0,
            (None, rows) => return Err(bad_input!("{name:?} has {rows} rows; say which: {name}[0] is the first")),
        };
        match self.embeds.row(row) {
            embed if embed.iter().all(|value| value.is_finite()) => Ok(embed),
            _ => Err(bad_input!("{name:?} has NaN or infinity in row {row}")),
        }
    }
}

/// A type of numbers, by its bytes and how to read one.
type Number = (usize, fn(&[u8]) -> f32);

macro_rules! number {
    ($kind:ty, $convert:expr) => {
        (size_of::<$kind>(), |bytes: &[u8]| {
            let convert: fn($kind) -> f32 = $convert;
            bytes.first_chunk().map_or(0.0, |bytes| convert(<$kind>::from_le_bytes(*bytes)))
        })
    };
}

/// Makes an array of little-endian numbers.
fn array(bytes: &[u8], shape: &[usize], is_fortran: bool, (size, read): Number) -> Result<ArrayD<f32>, String> {
    let count = shape.iter().try_fold(size, |product, length| product.checked_mul(*length));
    if count != Some(bytes.len()) {
        return Err(format!("is damaged: {} bytes for an array of shape {shape:?}", bytes.len()));
    }
    let values: Vec<f32> = bytes.chunks_exact(size).map(read).collect();
    ArrayD::from_shape_vec(IxDyn(shape).set_f(is_fortran), values).map_err(|error| format!("is damaged ({error})"))
}

fn npy(bytes: &[u8]) -> Result<ArrayD<f32>, String> {
    let (descriptor, is_fortran, shape, start) = npy_header(bytes).ok_or("is not a valid .npy file")?;
    let number: Number = match descriptor.trim_start_matches(['<', '|', '=']) {
        "f4" => number!(f32, |value| value),
        "f8" => number!(f64, |value| value as f32),
        "f2" => number!(u16, |bits| f16::from_bits(bits).to_f32()),
        "b1" | "u1" => number!(u8, |value| value.into()),
        "i1" => number!(i8, |value| value.into()),
        "i2" => number!(i16, |value| value.into()),
        "u2" => number!(u16, |value| value.into()),
        "i4" => number!(i32, |value| value as f32),
        "u4" => number!(u32, |value| value as f32),
        "i8" => number!(i64, |value| value as f32),
        "u8" => number!(u64, |value| value as f32),
        other => return Err(format!("has numbers of type {other:?}, which is not supported; save it as float32")),
    };
    array(&bytes[start..], &shape, is_fortran, number)
}

/// What the header of a `.npy` file says: the type, the order, the shape, and where the numbers begin.
///
/// Source: numpy `lib/format.py`. The header is a Python dictionary in one form that numpy has always written.
pub(super) fn npy_header(bytes: &[u8]) -> Option<(String, bool, Vec<usize>, usize)> {
    let version = bytes.strip_prefix(b"\x93NUMPY")?.first()?;
    let (len, start) = match version {
        1 => (usize::from(u16::from_le_bytes(*bytes.get(8..)?.first_chunk()?)), 10),
        _ => (usize::try_from(u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?)).ok()?, 12),
    };
    if len > MAX_HEADER {
        return None;
    }
    let text = std::str::from_utf8(bytes.get(start..start + len)?).ok()?;
    let value = |key: &str| {
        let (_, rest) = text.split_once(&format!("'{key}'"))?;
        Some(rest.trim_start().strip_prefix(':')?.trim_start())
    };
    let (descriptor, _) = value("descr")?.strip_prefix('\'')?.split_once('\'')?;
    let (shape, _) = value("shape")?.strip_prefix('(')?.split_once(')')?;
    let lengths = shape.split(',').map(str::trim).filter(|length| !length.is_empty());
    let shape = lengths.map(|length| length.parse().ok()).collect::<Option<_>>()?;
    Some((descriptor.to_string(), value("fortran_order")?.starts_with("True"), shape, start + len))
}

fn npz(bytes: &[u8], is_wanted: &dyn Fn(&str) -> bool) -> Result<BTreeMap<String, ArrayD<f32>>, String> {
    let damaged = |error: &dyn std::fmt::Display| format!("is not a valid .npz file ({error})");
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| damaged(&error))?;
    let mut arrays = BTreeMap::new();
    for place in 0..archive.len() {
        let mut entry = archive.by_index_raw(place).map_err(|error| damaged(&error))?;
        let name = entry.name().map_err(|error| damaged(&error))?.into_owned();
        let Some(name) = name.strip_suffix(".npy").map(str::to_string) else { continue };
        if !is_wanted(&name) {
            continue;
        }
        let size = usize::try_from(entry.size()).unwrap_or(usize::MAX);
        if size > bytes.len().saturating_mul(MAX_DEFLATE_RATIO) {
            return Err(damaged(&format!("{name} is larger than the file can hold")));
        }
        let mut content = Vec::new();
        let read = match entry.compression() {
            CompressionMethod::Stored => entry.read_to_end(&mut content),
            CompressionMethod::DEFLATE => {
                DeflateDecoder::new(&mut entry).take(size as u64 + 1).read_to_end(&mut content)
            }
            other => return Err(format!("has {name} compressed with {other}, which is not supported")),
        };
        read.map_err(|error| damaged(&error))?;
        if content.len() != size || crc32fast::hash(&content) != entry.crc32() {
            return Err(damaged(&format!("{name} is damaged")));
        }
        let array = npy(&content).map_err(|reason| format!("{reason}, in {name}"))?;
        arrays.insert(name, array);
    }
    Ok(arrays)
}

fn safetensors(bytes: &[u8], is_wanted: &dyn Fn(&str) -> bool) -> Result<BTreeMap<String, ArrayD<f32>>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| format!("is not a valid safetensors file ({error})"))?;
    let mut arrays = BTreeMap::new();
    for (name, view) in file.iter().filter(|(name, _)| is_wanted(name)) {
        let number: Number = match view.dtype() {
            Dtype::F32 => number!(f32, |value| value),
            Dtype::F64 => number!(f64, |value| value as f32),
            Dtype::F16 => number!(u16, |bits| f16::from_bits(bits).to_f32()),
            Dtype::BF16 => number!(u16, |bits| bf16::from_bits(bits).to_f32()),
            Dtype::BOOL | Dtype::U8 => number!(u8, |value| value.into()),
            Dtype::I8 => number!(i8, |value| value.into()),
            Dtype::I16 => number!(i16, |value| value.into()),
            Dtype::U16 => number!(u16, |value| value.into()),
            Dtype::I32 => number!(i32, |value| value as f32),
            Dtype::U32 => number!(u32, |value| value as f32),
            Dtype::I64 => number!(i64, |value| value as f32),
            Dtype::U64 => number!(u64, |value| value as f32),
            other => return Err(format!("has {name} of type {other:?}, which is not supported")),
        };
        arrays.insert(name.to_string(), array(view.data(), view.shape(), false, number)?);
    }
    Ok(arrays)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, Array3, Ix2, Ix3, array};
    use ndarray_npy::{NpzWriter, WriteNpyExt};
    use std::fs;
    use tempfile::TempDir;

    fn npy_of(array: impl WriteNpyExt) -> Vec<u8> {
        let mut bytes = Vec::new();
        array.write_npy(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn numbers_of_every_type_and_order_are_read() {
        let expected = array![[0.0_f32, 1.0, 2.0], [3.0, 4.0, 5.0]];
        let files = [
            npy_of(expected.clone()),
            npy_of(expected.mapv(f64::from)),
            npy_of(expected.mapv(|value| value as i64)),
            npy_of(expected.mapv(|value| value as i32)),
            npy_of(expected.mapv(|value| value as u16)),
            npy_of(expected.mapv(|value| value as i8)),
            // In Fortran's order.
            npy_of(expected.t().as_standard_layout().reversed_axes().to_owned()),
        ];
        for bytes in files {
            assert_eq!(npy(&bytes).unwrap(), expected.clone().into_dyn());
        }
        assert_eq!(npy(&npy_of(array![true, false])).unwrap(), array![1.0, 0.0].into_dyn());
        let halves: Vec<u8> =
            [1.0, -0.5, 65504.0].into_iter().flat_map(|half| f16::from_f32(half).to_le_bytes()).collect();
        let header =
            b"\x93NUMPY\x01\x00\x48\x00{'descr': '<f2', 'fortran_order': False, 'shape': (3,), }              \n";
        assert_eq!(npy(&[&header[..], &halves].concat()).unwrap(), array![1.0, -0.5, 65504.0].into_dyn());
        for (from, to) in [("<f2", ">f2"), ("<f2", "<c8"), ("(3,)", "(4,)"), ("'shape'", "'shop'"), ("(3,)", "(x,)")] {
            let text = String::from_utf8_lossy(&header[10..]).replace(from, to);
            let bytes = [&header[..10], text.as_bytes(), &halves].concat();
            assert!(npy(&bytes).is_err(), "{from} {to}");
        }
    }

    /// A `.npz` of two arrays, and a safetensors file.
    fn files(folder: &TempDir) -> [std::path::PathBuf; 3] {
        let [npz, npy, safetensors] = ["a.npz", "a.npy", "a.safetensors"].map(|name| folder.path().join(name));
        let mut writer = NpzWriter::new_compressed(fs::File::create(&npz).unwrap());
        writer.add_array("a", &Array2::<f32>::ones((3, 40))).unwrap();
        writer.add_array("b", &Array3::<f64>::ones((2, 3, 4))).unwrap();
        writer.finish().unwrap();
        fs::write(&npy, npy_of(Array1::<f32>::ones(9))).unwrap();
        let bytes = vec![0_u8; 24];
        let view = safetensors::tensor::TensorView::new(Dtype::BF16, vec![3, 4], &bytes).unwrap();
        fs::write(&safetensors, safetensors::serialize([("a", view)], None).unwrap()).unwrap();
        [npz, npy, safetensors]
    }

    #[test]
    fn arrays_have_names_and_shapes() {
        let folder = TempDir::new().unwrap();
        let [npz, npy, safetensors] = files(&folder);
        let mut file = ArrayFile::read(&npz, &|_| true).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(file.take::<Ix2>("a").unwrap().unwrap(), Array2::<f32>::ones((3, 40)));
        assert!(file.take::<Ix2>("b").unwrap_err().to_string().contains("shape [2, 3, 4]"));
        assert!(file.take::<Ix3>("c").unwrap().is_none());
        assert_eq!(ArrayFile::read(&npz, &|name| name == "b").unwrap().names().count(), 1);
        assert_eq!(ArrayFile::read(&npy, &|_| true).unwrap().names().collect::<Vec<_>>(), [UNNAMED]);
        assert_eq!(read_latents(&safetensors).unwrap().0, Array2::<f32>::zeros((3, 4)));
    }

    #[test]
    fn damaged_files_are_refused_without_a_panic() {
        let folder = TempDir::new().unwrap();
        for path in files(&folder) {
            let whole = fs::read(&path).unwrap();
            let read = |bytes: &[u8]| {
                let damaged = path.with_file_name(format!("damaged.{}", path.extension().unwrap().display()));
                fs::write(&damaged, bytes).unwrap();
                ArrayFile::read(&damaged, &|_| true)
            };
            for cut in 0..whole.len() {
                assert!(read(&whole[..cut]).is_err(), "{path:?} cut at {cut}");
            }
            for place in 0..whole.len() {
                for bits in [0x01, 0x80, 0xff] {
                    let mut changed = whole.clone();
                    changed[place] ^= bits;
                    let _ = read(&changed);
                }
            }
        }
    }
}
