//! Files that `torch.save` wrote: a zip archive since torch 1.6, and before that pickles with the numbers after them.
//!
//! Source: torch 2.13 `serialization.py`. Nothing in such a file is run: see [`crate::weights::pickle`].

use super::archive::Archive;
use super::entry::{Entry, Strided};
use crate::bad_input;
use crate::error::FETCH_AGAIN;
use crate::weights::pickle::{Foreign, Id, Pickle, PickleError, Storage, StoredTensor, Value};
use anyhow::{Error, Result};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// What an archive starts with.
const ZIP: &[u8] = b"PK\x03\x04";

/// The first thing in a file from before torch 1.6, 0x1950a86a20f9469cfc6c.
const OLD_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The second thing.
const OLD_VERSION: i64 = 1001;

/// Keys under which training programs put the state dictionary that counts.
const WRAPPERS: [&str; 3] = ["state_dict", "model", "module"];

/// Where the storages of a file lie in it, by key.
type Storages<'a> = HashMap<&'a str, Range<usize>>;

/// What a file of `torch.save` holds.
pub(crate) struct Contents {
    /// The tensors, where they lie.
    pub(crate) tensors: Vec<(String, Entry)>,
    /// What is no plain tensor, and the function that would make it.
    pub(crate) foreign: Vec<(String, String)>,
}

/// What is in a file of `torch.save` with these `bytes`. `path` is what messages call it.
///
/// What was saved is a dictionary of tensors, perhaps inside one of [`WRAPPERS`], or a list of tensors, whose names are
/// then their places.
///
/// # Errors
/// [`crate::error::BadInput`] if the file is broken, holds no tensors, or names functions that only an attack needs.
pub(crate) fn contents(bytes: &[u8], file: usize, path: &str) -> Result<Contents> {
    if bytes.starts_with(ZIP) { zip_entries(bytes, file, path) } else { old_entries(bytes, file, path) }
}

fn zip_entries(bytes: &[u8], file: usize, path: &str) -> Result<Contents> {
    let broken = |why: String| broken(path, &why);
    let archive = Archive::read(bytes).map_err(broken)?;
    if archive.byte_order().map_err(broken)?.is_some_and(|range| &bytes[range] == b"big") {
        return Err(bad_input!(
            "{path} has numbers in big-endian order, which is not read; save it on another machine"
        ));
    }
    let (pickle, _) = Pickle::read(&bytes[archive.pickle().map_err(broken)?]).map_err(|error| refused(path, error))?;
    let mut storages = Storages::new();
    for storage in pickle.storages() {
        let range = archive.storage(storage.key).map_err(broken)?;
        check_size(storage, &range).map_err(broken)?;
        storages.insert(storage.key, range);
    }
    place_all(&pickle, &storages, file, path)
}

fn old_entries(bytes: &[u8], file: usize, path: &str) -> Result<Contents> {
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
            None => broken(path, "it is a pickle, but torch.save did not write it"),
        });
    }
    if !matches!(next()?.root(), Value::Int(OLD_VERSION)) {
        return Err(broken(path, "its version is unknown"));
    }
    check_old_system(&next()?, path)?;
    let pickle = next()?;
    let keys = next()?;
    let storages = old_storages(bytes, position, &pickle, &keys).map_err(|why| broken(path, &why))?;
    place_all(&pickle, &storages, file, path)
}

/// The third pickle of an old file tells of the machine that wrote it.
fn check_old_system(pickle: &Pickle, path: &str) -> Result<()> {
    let Value::Dict(system) = pickle.root() else { return Err(broken(path, "it does not tell how it was written")) };
    match pickle.item(system, "little_endian") {
        Some(Value::Bool(true)) => Ok(()),
        _ => Err(bad_input!("{path} has numbers in big-endian order, which is not read; save it on another machine")),
    }
}

/// After the pickles of an old file come its storages, in the order of `keys`: a number of numbers, and the numbers.
fn old_storages<'a>(
    bytes: &[u8],
    mut position: usize,
    pickle: &Pickle<'a>,
    keys: &Pickle<'a>,
) -> Result<Storages<'a>, String> {
    let cut_off = || "it is cut off".to_string();
    let known: HashMap<&str, &Storage> = pickle.storages().map(|storage| (storage.key, storage)).collect();
    let Value::Sequence(list) = keys.root() else { return Err("it has no list of storages".into()) };
    let mut storages = Storages::new();
    for key in list {
        let Value::Text(key) = keys.get(*key) else { return Err("it has a storage without a name".into()) };
        let storage = known.get(key).ok_or_else(|| format!("nothing in it refers to its storage {key:?}"))?;
        let (len, _) = bytes[position..].split_first_chunk().ok_or_else(cut_off)?;
        position += size_of_val(len);
        if u64::from_le_bytes(*len) != storage.len as u64 {
            return Err(format!("its storage {key:?} has another size than it says"));
        }
        let end = storage.bytes().and_then(|size| position.checked_add(size)).filter(|&end| end <= bytes.len());
        let range = position..end.ok_or_else(cut_off)?;
        position = range.end;
        storages.insert(key, range);
    }
    // Two references to a storage may not disagree on its size.
    for storage in pickle.storages() {
        let range = storages.get(storage.key).ok_or_else(|| format!("it has no storage {:?}", storage.key))?;
        check_size(storage, range)?;
    }
    Ok(storages)
}

fn check_size(storage: &Storage, range: &Range<usize>) -> Result<(), String> {
    match storage.bytes() {
        Some(size) if size <= range.len() => Ok(()),
        _ => Err(format!("its storage {:?} is cut off", storage.key)),
    }
}

/// The tensors of a pickle, in their file.
fn place_all(pickle: &Pickle, storages: &Storages, file: usize, path: &str) -> Result<Contents> {
    // A name may be there any number of times; the last one counts, and is copied once.
    let named: BTreeMap<Cow<str>, Item> = items(pickle).collect();
    let mut contents = Contents { tensors: Vec::new(), foreign: Vec::new() };
    for (name, item) in named {
        match item {
            Item::Tensor(tensor) => {
                let storage = storages.get(tensor.storage.key);
                let storage = storage.ok_or_else(|| broken(path, "a tensor in it has no storage"))?;
                contents.tensors.push((name.into_owned(), place(tensor, storage.start, file)));
            }
            Item::Foreign(foreign) => contents.foreign.push((name.into_owned(), foreign.to_string())),
            Item::Other => {}
        }
    }
    match pickle.foreign() {
        _ if !contents.tensors.is_empty() => Ok(contents),
        Some(foreign) => Err(refused(path, PickleError::Forbidden(foreign.to_string()))),
        None => Err(bad_input!("{path} holds no tensors, or none where a checkpoint has them; give a file of weights")),
    }
}

/// What has a name in a checkpoint.
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

fn place(tensor: &StoredTensor, storage: usize, file: usize) -> Entry {
    let strided = Strided { sizes: tensor.shape.clone(), strides: tensor.strides.clone() };
    Entry {
        file,
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        strided: (!strided.is_contiguous()).then_some(strided),
        range: storage + tensor.start..storage + tensor.end,
    }
}

/// What a checkpoint is about, with the names.
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
    match root {
        Value::Dict(dict) => Box::new(dict.iter().filter_map(|(key, value)| match pickle.get(*key) {
            Value::Text(name) => Some((Cow::Borrowed(*name), pickle.get(*value).into())),
            _ => None,
        })),
        Value::Sequence(list) => {
            let item = |(place, value): (usize, &Id)| (Cow::Owned(place.to_string()), pickle.get(*value).into());
            Box::new(list.iter().enumerate().map(item))
        }
        _ => Box::new(std::iter::empty()),
    }
}

fn refused(path: &str, error: PickleError) -> Error {
    match error {
        PickleError::Forbidden(name) => bad_input!(
            "{path} asks to run `{name}`: not a plain checkpoint, and not read; get the weights as safetensors, or save the state dictionary alone"
        ),
        PickleError::Corrupt(why) => broken(path, &why),
    }
}

fn broken(path: &str, why: &str) -> Error {
    bad_input!("{path} is not a sound torch file ({why}); {FETCH_AGAIN}")
}
