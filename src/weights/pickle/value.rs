//! The values that a pickle makes.

use super::allowlist::{Foreign, Global};
use super::tensor::{Storage, StoredTensor};

/// The number of a value in its [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id(pub(super) u32);

/// A value of a pickle.
#[derive(Debug)]
pub enum Value<'a> {
    /// `None`, or something that does not matter for tensors, such as a device.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of 64 bits.
    Int(i64),
    /// A larger integer, little-endian in two's complement.
    LargeInt(&'a [u8]),
    /// A float; no tensor depends on its value.
    Float,
    /// A string.
    Text(&'a str),
    /// Bytes, or a string that is not UTF-8; no tensor depends on them.
    Bytes,
    /// A tuple or a list.
    Sequence(Vec<Id>),
    /// A set; no tensor depends on its elements.
    Set,
    /// A dictionary, ordered or not, in the order of insertion.
    Dict(Vec<(Id, Id)>),
    /// The memory of a tensor.
    Storage(Storage<'a>),
    /// A tensor.
    Tensor(StoredTensor<'a>),
    /// A function or class that the machine knows.
    Global(Global),
    /// Any other function or class, or a value that it would make.
    Foreign(Foreign<'a>),
}

/// The values of a pickle, each once, however many others refer to it.
#[derive(Debug)]
pub struct Pickle<'a> {
    pub(super) values: Vec<Value<'a>>,
    pub(super) root: Id,
}

impl<'a> Pickle<'a> {
    /// The value that was pickled.
    pub fn root(&self) -> &Value<'a> {
        self.get(self.root)
    }

    /// The value with a number that another value of this pickle holds.
    pub fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    /// The value under a key of a dictionary; the last one, if there are several.
    pub fn item(&self, dict: &[(Id, Id)], wanted: &str) -> Option<&Value<'a>> {
        let has_key = |(key, _): &&(Id, Id)| matches!(self.get(*key), Value::Text(key) if *key == wanted);
        dict.iter().rev().find(has_key).map(|(_, value)| self.get(*value))
    }

    /// The first function or class that is not run, if there is one.
    pub fn foreign(&self) -> Option<Foreign<'a>> {
        self.values.iter().find_map(|value| match value {
            Value::Foreign(foreign) => Some(*foreign),
            _ => None,
        })
    }

    /// All storages that the pickle refers to.
    pub fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.values.iter().filter_map(|value| match value {
            Value::Storage(storage) => Some(storage),
            _ => None,
        })
    }
}
