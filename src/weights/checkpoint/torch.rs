//! Files of `torch.save`: a zip archive since torch 1.6, and before that pickles followed by the storages.
//!
//! Source: torch 2.13 `serialization.py`. Nothing in such a file is run: see [`crate::weights::pickle`].

use super::archive::Archive;
use super::entry::{Strided, TensorEntry};
use crate::error::{Error, Hint, Result};
use crate::weights::pickle::{Foreign, Id, Pickle, PickleError, Storage, StoredTensor, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// The first bytes of an archive.
const ZIP: &[u8] = b"PK\x03\x04";

/// The first pickle in a file from before torch 1.6, 0x1950a86a20f9469cfc6c.
const OLD_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The second pickle.
const OLD_VERSION: i64 = 1001;

/// Keys under which training programs put the state dictionary.
const WRAPPERS: [&str; 3] = ["state_dict", "model", "module"];

/// The key of the averaged weights in a training checkpoint that has no others.
const AVERAGED: &str = "ema_model";

/// The bytes of the storages in a file, by key.
type Storages<'a> = HashMap<&'a str, Range<usize>>;

/// The contents of a file of `torch.save`.
pub(crate) struct Contents {
    pub(crate) tensors: Vec<(String, TensorEntry)>,
    /// The names of values that are not plain tensors, and the functions that would make them.
    pub(crate) foreign: Vec<(String, String)>,
}

/// The contents of a file of `torch.save` with these `bytes`. `path` is its name in messages.
///
/// It holds a dictionary of tensors, perhaps inside one of [`WRAPPERS`], or a list of tensors, which are then named by
/// their index.
///
/// # Errors
/// [`Error::File`] if the file is damaged, holds no tensors, or names functions that only an attack needs.
pub(crate) fn contents(bytes: &[u8], file: usize, path: &str) -> Result<Contents> {
    read(bytes, path, |pickle, storages| place_all(pickle, storages, file, path))
}

/// The token in a file of `torch.save` with these `bytes`, if it is named, and its learned embedding. The file holds a
/// dictionary of one tensor (diffusers), the dictionary of A1111, or the tensor alone.
///
/// # Errors
/// [`Error::File`] if the file is damaged, holds something else, or names functions that only an attack needs.
pub(super) fn learned(bytes: &[u8], path: &str) -> Result<(Option<String>, TensorEntry)> {
    read(bytes, path, |pickle, storages| {
        let (token, value) = match pickle.root() {
            Value::Dict(dict) => match (&dict[..], pickle.item(dict, "string_to_param")) {
                ([(name, value)], _) => (Some(pickle.get(*name)), pickle.get(*value)),
                (_, Some(Value::Dict(vectors))) => {
                    let vector = pickle.item(vectors, "*");
                    let vector = vector.ok_or_else(|| not_learned(path, "its string_to_param has no \"*\""))?;
                    (pickle.item(dict, "name"), vector)
                }
                (_, Some(Value::Foreign(foreign))) => {
                    return Err(refused(path, PickleError::Forbidden(foreign.to_string())));
                }
                (items, _) => return Err(not_learned(path, &format!("it holds {} values", items.len()))),
            },
            root => (None, root),
        };
        let token = match token {
            Some(Value::Text(token)) => Some(token.to_string()),
            _ => None,
        };
        match value {
            Value::Tensor(tensor) => {
                let storage = storages.get(tensor.storage.key);
                let storage = storage.ok_or_else(|| damaged(path, "a tensor in it has no storage"))?;
                Ok((token, place(tensor, storage.start, 0)))
            }
            Value::Foreign(foreign) => Err(refused(path, PickleError::Forbidden(foreign.to_string()))),
            _ => Err(not_learned(path, "it holds no tensor")),
        }
    })
}

/// The error for a file that is not of a learned token.
pub(super) fn not_learned(path: &str, why: &str) -> Error {
    let reason = format!("is no textual inversion: {why}, not one embedding under its token's name");
    Error::file(path, reason)
}

/// Passes a file's pickle and its storages on.
fn read<T>(bytes: &[u8], path: &str, then: impl FnOnce(&Pickle, &Storages) -> Result<T>) -> Result<T> {
    if bytes.is_empty() {
        return Err(damaged(path, "it is empty"));
    }
    if bytes.starts_with(ZIP) { read_zip(bytes, path, then) } else { read_old(bytes, path, then) }
}

fn read_zip<T>(bytes: &[u8], path: &str, then: impl FnOnce(&Pickle, &Storages) -> Result<T>) -> Result<T> {
    let damaged = |why: String| damaged(path, &why);
    let archive = Archive::read(bytes).map_err(damaged)?;
    if archive.byte_order().map_err(damaged)?.is_some_and(|range| &bytes[range] == b"big") {
        return Err(big_endian(path));
    }
    let (pickle, _) = Pickle::read(&bytes[archive.pickle().map_err(damaged)?]).map_err(|error| refused(path, error))?;
    let mut storages = Storages::new();
    for storage in pickle.storages() {
        let range = archive.storage(storage.key).map_err(damaged)?;
        check_size(storage, &range).map_err(damaged)?;
        storages.insert(storage.key, range);
    }
    then(&pickle, &storages)
}

fn read_old<T>(bytes: &[u8], path: &str, then: impl FnOnce(&Pickle, &Storages) -> Result<T>) -> Result<T> {
    let mut position = 0;
    let mut next = || {
        let (pickle, len) = Pickle::read(&bytes[position..]).map_err(|error| refused(path, error))?;
        position += len;
        Ok::<_, Error>(pickle)
    };
    let first = next()?;
    if !matches!(first.root(), Value::LargeInt(magic) if *magic == OLD_MAGIC) {
        return Err(match first.foreign() {
            Some(foreign) => refused(path, PickleError::Forbidden(foreign.to_string())),
            None => damaged(path, "it is a pickle, but not one of torch.save"),
        });
    }
    if !matches!(next()?.root(), Value::Int(OLD_VERSION)) {
        return Err(damaged(path, "its version is unknown"));
    }
    check_old_system(&next()?, path)?;
    let pickle = next()?;
    let keys = next()?;
    let storages = old_storages(bytes, position, &pickle, &keys).map_err(|why| damaged(path, &why))?;
    then(&pickle, &storages)
}

/// The third pickle of an old file describes the machine that wrote it.
fn check_old_system(pickle: &Pickle, path: &str) -> Result<()> {
    let Value::Dict(system) = pickle.root() else { return Err(damaged(path, "its byte order is unknown")) };
    match pickle.item(system, "little_endian") {
        Some(Value::Bool(true)) => Ok(()),
        _ => Err(big_endian(path)),
    }
}

/// The storages after the pickles of an old file, in the order of `keys`: each an element count, then the elements.
fn old_storages<'a>(
    bytes: &[u8],
    mut position: usize,
    pickle: &Pickle<'a>,
    keys: &Pickle<'a>,
) -> Result<Storages<'a>, String> {
    let truncated = || "it is truncated".to_string();
    let known: HashMap<&str, &Storage> = pickle.storages().map(|storage| (storage.key, storage)).collect();
    let Value::Sequence(list) = keys.root() else { return Err("it has no list of storages".into()) };
    let mut storages = Storages::new();
    for key in list {
        let Value::Text(key) = keys.get(*key) else { return Err("it has a storage without a name".into()) };
        let storage = known.get(key).ok_or_else(|| format!("nothing in it refers to its storage {key:?}"))?;
        let (len, _) = bytes[position..].split_first_chunk().ok_or_else(truncated)?;
        position += size_of_val(len);
        if u64::from_le_bytes(*len) != storage.len as u64 {
            return Err(format!("its storage {key:?} is not of the size that it should be"));
        }
        let end = storage.bytes().and_then(|size| position.checked_add(size)).filter(|&end| end <= bytes.len());
        let range = position..end.ok_or_else(truncated)?;
        position = range.end;
        storages.insert(key, range);
    }
    // References to a storage must agree on its size.
    for storage in pickle.storages() {
        let range = storages.get(storage.key).ok_or_else(|| format!("it has no storage {:?}", storage.key))?;
        check_size(storage, range)?;
    }
    Ok(storages)
}

fn check_size(storage: &Storage, range: &Range<usize>) -> Result<(), String> {
    match storage.bytes() {
        Some(size) if size <= range.len() => Ok(()),
        _ => Err(format!("its storage {:?} is truncated", storage.key)),
    }
}

/// The tensors of a pickle, as entries of their file.
fn place_all(pickle: &Pickle, storages: &Storages, file: usize, path: &str) -> Result<Contents> {
    // Of equal names the last one counts; each is copied once.
    let named: BTreeMap<Cow<str>, Item> = items(pickle).collect();
    let mut contents = Contents { tensors: Vec::new(), foreign: Vec::new() };
    for (name, item) in named {
        match item {
            Item::Tensor(tensor) => {
                let storage = storages.get(tensor.storage.key);
                let storage = storage.ok_or_else(|| damaged(path, "a tensor in it has no storage"))?;
                contents.tensors.push((name.into_owned(), place(tensor, storage.start, file)));
            }
            Item::Foreign(foreign) => contents.foreign.push((name.into_owned(), foreign.to_string())),
            Item::Other => {}
        }
    }
    match pickle.foreign() {
        _ if !contents.tensors.is_empty() => Ok(contents),
        Some(foreign) => Err(refused(path, PickleError::Forbidden(foreign.to_string()))),
        None => Err(Error::file(path, "holds no tensors where a checkpoint has them")),
    }
}

/// A named value of a checkpoint.
enum Item<'p, 'a> {
    Tensor(&'p StoredTensor<'a>),
    Foreign(Foreign<'a>),
    Other,
}

impl<'p, 'a> From<&'p Value<'a>> for Item<'p, 'a> {
    fn from(value: &'p Value<'a>) -> Self {
        match value {
            Value::Tensor(tensor) => Self::Tensor(tensor),
            Value::Foreign(foreign) => Self::Foreign(*foreign),
            _ => Self::Other,
        }
    }
}

fn place(tensor: &StoredTensor, storage: usize, file: usize) -> TensorEntry {
    let strided = Strided { sizes: tensor.shape.clone(), strides: tensor.strides.clone() };
    TensorEntry {
        file,
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        strided: (!strided.is_contiguous()).then_some(strided),
        range: storage + tensor.start..storage + tensor.end,
    }
}

/// The named values of a checkpoint.
fn items<'p, 'a>(pickle: &'p Pickle<'a>) -> Box<dyn Iterator<Item = (Cow<'a, str>, Item<'p, 'a>)> + 'p> {
    let mut root = pickle.root();
    for _ in WRAPPERS {
        let Value::Dict(dict) = root else { break };
        let wrapped = WRAPPERS.iter().find_map(|key| match pickle.item(dict, key) {
            Some(inner @ Value::Dict(items)) if !items.is_empty() => Some(inner),
            _ => None,
        });
        let Some(inner) = wrapped else { break };
        root = inner;
    }
    if let Value::Dict(dict) = root
        && let Some(averaged @ Value::Dict(_)) = pickle.item(dict, AVERAGED)
        && !dict.iter().any(|(_, value)| matches!(pickle.get(*value), Value::Tensor(_)))
    {
        root = averaged;
    }
    match root {
        Value::Dict(dict) => Box::new(dict.iter().filter_map(|(key, value)| match pickle.get(*key) {
            Value::Text(name) => Some((Cow::Borrowed(*name), pickle.get(*value).into())),
            _ => None,
        })),
        Value::Sequence(list) => {
            let item = |(index, value): (usize, &Id)| (Cow::Owned(index.to_string()), pickle.get(*value).into());
            Box::new(list.iter().enumerate().map(item))
        }
        _ => Box::new(std::iter::empty()),
    }
}

fn refused(path: &str, error: PickleError) -> Error {
    match error {
        PickleError::Forbidden(name) => {
            Error::file(path, format!("asks to run `{name}`, so it is not a plain checkpoint and not read"))
                .with_hint(Hint::SaveWeightsAlone)
        }
        PickleError::Corrupt(why) => damaged(path, &why),
    }
}

fn damaged(path: &str, why: &str) -> Error {
    Error::damaged(path, "torch", why)
}

fn big_endian(path: &str) -> Error {
    Error::file(path, "is in big-endian byte order, which is not supported")
        .with_hint(Hint::Other("save it on a little-endian machine".into()))
}
