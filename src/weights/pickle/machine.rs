//! The stack machine that a pickle is a program for.

use super::allowlist::{Foreign, Global};
use super::error::PickleError;
use super::reader::Reader;
use super::tensor::{ElementType, MAX_DIMENSIONS, Storage, StoredTensor};
use super::value::{Id, Pickle, Value};
use safetensors::tensor::Dtype;
use std::collections::HashMap;

/// The maximum number of steps; a checkpoint of a thousand tensors takes some 50 000.
pub(super) const MAX_OPCODES: usize = 1 << 20;

type Result<T> = std::result::Result<T, PickleError>;

impl<'a> Pickle<'a> {
    /// Reads the pickle at the start of `bytes`, and returns its length with it.
    ///
    /// # Errors
    /// [`PickleError`] if it is damaged or asks for more than a file of tensors needs.
    pub fn read(bytes: &'a [u8]) -> Result<(Self, usize)> {
        Machine::new(bytes).run()
    }
}

/// A stack of values with marks in it, and a memo.
struct Machine<'a> {
    reader: Reader<'a>,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id, ahash::RandomState>,
    /// Steps that are left. Each part of a compound value costs one too.
    budget: usize,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            reader: Reader::new(bytes),
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::default(),
            budget: MAX_OPCODES,
        }
    }

    /// Runs the program, and returns its length with the result.
    fn run(mut self) -> Result<(Pickle<'a>, usize)> {
        const STOP: u8 = b'.';
        loop {
            let opcode = self.reader.u8()?;
            if opcode == STOP {
                let root = self.pop()?;
                return Ok((Pickle { values: self.values, root }, self.reader.position()));
            }
            self.spend(1)?;
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // PROTO, FRAME.
            0x80 => self.reader.u8().map(drop),
            0x95 => self.reader.take(8).map(drop),
            // MARK, POP, POP_MARK, DUP.
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_to_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET.
            b'q' => self.reader.u8().and_then(|slot| self.memorize(slot.into())),
            b'r' => self.reader.u32().and_then(|slot| self.memorize(slot)),
            0x94 => self.memorize(self.memo.len() as u32),
            b'h' => self.reader.u8().and_then(|slot| self.recall(slot.into())),
            b'j' => self.reader.u32().and_then(|slot| self.recall(slot)),
            // APPEND, APPENDS, SETITEM, SETITEMS, ADDITEMS, BUILD.
            b'a' => self.pop().and_then(|item| self.append(vec![item])),
            b'e' => self.pop_to_mark().and_then(|items| self.append(items)),
            b's' => self.pop_pair().and_then(|(key, value)| self.set_items(vec![key, value])),
            b'u' => self.pop_to_mark().and_then(|items| self.set_items(items)),
            0x90 => self.pop_to_mark().map(drop),
            b'b' => self.build(),
            // GLOBAL, STACK_GLOBAL, REDUCE, NEWOBJ, NEWOBJ_EX, INST, OBJ, BINPERSID.
            b'c' => self.global(),
            0x93 => self.stack_global(),
            b'R' | 0x81 => self.call(),
            0x92 => self.pop().and_then(|_| self.call()),
            b'i' => self.instance(),
            b'o' => self.object(),
            b'Q' => self.persistent(),
            _ => {
                let value = self.literal(opcode)?;
                self.push(value)
            }
        }
    }

    /// The opcodes that make a value.
    fn literal(&mut self, opcode: u8) -> Result<Value<'a>> {
        let reader = &mut self.reader;
        Ok(match opcode {
            // NONE, NEWTRUE, NEWFALSE.
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            // BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT.
            b'J' => Value::Int(i32::from_le_bytes(reader.array()?).into()),
            b'K' => Value::Int(reader.u8()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(reader.array()?).into()),
            0x8a => integer(reader.counted(1)?),
            0x8b => integer(reader.counted(4)?),
            b'G' => reader.take(8).map(|_| Value::Float)?,
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8.
            0x8c => Value::Text(reader.text(1)?),
            b'X' => Value::Text(reader.text(4)?),
            0x8d => Value::Text(reader.text(8)?),
            // SHORT_BINSTRING, BINSTRING: Python 2's strings.
            b'U' => old_string(reader.counted(1)?),
            b'T' => old_string(reader.counted(4)?),
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8.
            b'C' => reader.counted(1).map(|_| Value::Bytes)?,
            b'B' => reader.counted(4).map(|_| Value::Bytes)?,
            0x8e | 0x96 => reader.counted(8).map(|_| Value::Bytes)?,
            // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT, EMPTY_SET.
            b')' | b']' => Value::Sequence(Vec::new()),
            b'}' => Value::Dict(Vec::new()),
            0x8f => Value::Set,
            // TUPLE1 to TUPLE3, TUPLE, LIST, DICT, FROZENSET.
            0x85..=0x87 => Value::Sequence(self.pop_several((opcode - 0x84).into())?),
            b't' | b'l' => Value::Sequence(self.pop_to_mark()?),
            b'd' => Value::Dict(pairs(&self.pop_to_mark()?)?),
            0x91 => self.pop_to_mark().map(|_| Value::Set)?,
            _ => {
                let at = self.reader.position() - 1;
                return Err(PickleError::corrupt(format!(
                    "opcode {opcode:#04x} at byte {at} of its pickle is unknown"
                )));
            }
        })
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        match self.top_value()? {
            Value::Sequence(list) => list.extend(items),
            Value::Foreign(_) => {}
            _ => return Err(PickleError::corrupt("it appends to a value that is not a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<()> {
        let pairs = pairs(&items)?;
        match self.top_value()? {
            Value::Dict(dict) => dict.extend(pairs),
            Value::Foreign(_) => {}
            _ => return Err(PickleError::corrupt("it sets items of a value that is not a dictionary")),
        }
        Ok(())
    }

    /// Sets attributes. Those of a dictionary, which torch gives to state dictionaries, do not matter for tensors.
    /// Those of a tensor may replace its elements.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.top_value()? {
            Value::Dict(_) | Value::Foreign(_) => Ok(()),
            tensor @ Value::Tensor(_) => {
                *tensor = Value::Foreign(Foreign { module: "torch.Tensor", name: "__setstate__" });
                Ok(())
            }
            _ => Err(PickleError::corrupt("it sets attributes of a value without any")),
        }
    }

    fn global(&mut self) -> Result<()> {
        let (module, name) = (self.reader.line()?, self.reader.line()?);
        self.named(module, name)
    }

    fn stack_global(&mut self) -> Result<()> {
        let (module, name) = self.pop_pair()?;
        match (self.get(module), self.get(name)) {
            (&Value::Text(module), &Value::Text(name)) => self.named(module, name),
            _ => Err(PickleError::corrupt("it names a function by a value that is not a string")),
        }
    }

    fn named(&mut self, module: &'a str, name: &'a str) -> Result<()> {
        let known = Global::find(module, name)?;
        self.push(known.map_or(Value::Foreign(Foreign { module, name }), Value::Global))
    }

    /// An instance of a class that is named after its arguments, as Python 2 pickled it.
    fn instance(&mut self) -> Result<()> {
        let arguments = self.pop_to_mark()?;
        self.global()?;
        self.push(Value::Sequence(arguments))?;
        self.call()
    }

    /// An instance of a class that is on the stack before its arguments.
    fn object(&mut self) -> Result<()> {
        let mut arguments = self.pop_to_mark()?;
        if arguments.is_empty() {
            return Err(empty());
        }
        self.stack.push(arguments.remove(0));
        self.push(Value::Sequence(arguments))?;
        self.call()
    }

    /// A call of a function or class.
    fn call(&mut self) -> Result<()> {
        let (function, arguments) = self.pop_pair()?;
        let function = match *self.get(function) {
            Value::Global(function) => function,
            Value::Foreign(foreign) => return self.push(Value::Foreign(foreign)),
            _ => return Err(PickleError::corrupt("it calls a value that is not a function")),
        };
        let arguments = match self.get(arguments) {
            Value::Sequence(arguments) => arguments,
            &Value::Foreign(foreign) => return self.push(Value::Foreign(foreign)),
            _ => return Err(PickleError::corrupt("it calls a function with a value that is not a tuple")),
        };
        let value = match (function, &arguments[..]) {
            (Global::OrderedDict, []) => Value::Dict(Vec::new()),
            (Global::OrderedDict, [items]) => self.dict_of(*items)?,
            (Global::Device, [_, ..]) => Value::None,
            (Global::TensorClass, _) => Value::Foreign(Foreign { module: "torch", name: "Tensor" }),
            (Global::Size | Global::RebuildParameter, [value, ..]) => {
                // The value exists already.
                let value = *value;
                self.stack.push(value);
                return Ok(());
            }
            (Global::RebuildFromType, &[function, class, arguments, ..]) => {
                return match *self.get(class) {
                    Value::Global(Global::TensorClass | Global::RebuildParameter) => {
                        self.stack.extend([function, arguments]);
                        self.call_rebuild()
                    }
                    Value::Foreign(foreign) => self.push(Value::Foreign(foreign)),
                    _ => Err(PickleError::corrupt("a tensor in it has a class that is not a class")),
                };
            }
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                self.tensor(*storage, None, [*offset, *shape, *strides])?
            }
            (Global::RebuildTensorOfType, [storage, offset, shape, strides, _, _, dtype, ..]) => {
                let dtype = match *self.get(*dtype) {
                    Value::Global(Global::Dtype(dtype)) => dtype,
                    Value::Foreign(foreign) => return self.push(Value::Foreign(foreign)),
                    _ => return Err(PickleError::corrupt("a tensor in it has no type")),
                };
                self.tensor(*storage, Some(dtype), [*offset, *shape, *strides])?
            }
            _ => return Err(PickleError::corrupt("it calls a function with the wrong arguments")),
        };
        self.push(value)
    }

    /// The call inside [`Global::RebuildFromType`], which must not be another one: nested calls would recurse here.
    fn call_rebuild(&mut self) -> Result<()> {
        match self.stack.iter().nth_back(1).map(|function| self.get(*function)) {
            Some(Value::Global(Global::RebuildFromType)) => {
                Err(PickleError::corrupt("a tensor in it is nested in another"))
            }
            _ => self.call(),
        }
    }

    /// An ordered dictionary from a list of pairs, as Python 2 pickled it.
    fn dict_of(&mut self, items: Id) -> Result<Value<'a>> {
        let wrong = || PickleError::corrupt("it makes a dictionary of values that are not pairs");
        let items = match self.get(items) {
            Value::Sequence(items) => items,
            &Value::Foreign(foreign) => return Ok(Value::Foreign(foreign)),
            _ => return Err(wrong()),
        };
        let pair = |item: &Id| match self.get(*item) {
            Value::Sequence(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err(wrong()),
        };
        let count = items.len();
        let dict = if count <= self.budget { items.iter().map(pair).collect::<Result<Vec<_>>>()? } else { Vec::new() };
        self.spend(count)?;
        Ok(Value::Dict(dict))
    }

    fn tensor(&mut self, storage: Id, dtype: Option<Dtype>, [offset, shape, strides]: [Id; 3]) -> Result<Value<'a>> {
        let storage = match *self.get(storage) {
            Value::Storage(storage) => storage,
            Value::Foreign(foreign) => return Ok(Value::Foreign(foreign)),
            _ => return Err(PickleError::corrupt("a tensor in it has no storage")),
        };
        let dtype = match (dtype, storage.element) {
            (Some(dtype), _) | (None, ElementType::Of(dtype)) => dtype,
            (None, ElementType::Other(name, _)) => return Ok(Value::Foreign(Foreign { module: "torch", name })),
            (None, ElementType::Untyped) => return Err(PickleError::corrupt("a tensor in it has no type")),
        };
        let Value::Int(offset) = *self.get(offset) else {
            return Err(PickleError::corrupt("a tensor in it has no offset in its storage"));
        };
        let (shape, strides) = (self.integers(shape)?, self.integers(strides)?);
        self.spend(shape.len() + strides.len())?;
        StoredTensor::new(storage, dtype, offset, shape, strides).map(Value::Tensor)
    }

    /// Sizes or strides.
    fn integers(&self, id: Id) -> Result<Vec<i64>> {
        let wrong = || PickleError::corrupt("a tensor in it has sizes or strides that are not a few integers");
        let Value::Sequence(items) = self.get(id) else { return Err(wrong()) };
        let integer = |item: &Id| match self.get(*item) {
            Value::Int(integer) => Ok(*integer),
            _ => Err(wrong()),
        };
        if items.len() > MAX_DIMENSIONS { Err(wrong()) } else { items.iter().map(integer).collect() }
    }

    /// A reference to a storage, `("storage", type, key, device, length)`, and in old files a view, which must be
    /// `None`.
    fn persistent(&mut self) -> Result<()> {
        let wrong = || PickleError::corrupt("it refers to something that is not a storage");
        let id = self.pop()?;
        let Value::Sequence(parts) = self.get(id) else { return Err(wrong()) };
        let (parts, view) = parts.split_at_checked(5).ok_or_else(wrong)?;
        let values = [parts[0], parts[1], parts[2], parts[4]].map(|part| self.get(part));
        let [Value::Text("storage"), Value::Global(kind), Value::Text(key), Value::Int(len)] = values else {
            return Err(wrong());
        };
        if view.iter().any(|view| !matches!(self.get(*view), Value::None)) {
            return Err(PickleError::corrupt(
                "a storage in it is a view of another, as only very old versions of torch write it",
            ));
        }
        let &Global::Storage(element) = kind else { return Err(wrong()) };
        let storage = Storage { key, element, len: usize::try_from(*len).map_err(|_| wrong())? };
        self.push(Value::Storage(storage))
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        self.stack.push(Id(self.values.len() as u32));
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_pair(&mut self) -> Result<(Id, Id)> {
        let second = self.pop()?;
        Ok((self.pop()?, second))
    }

    fn pop_several(&mut self, count: usize) -> Result<Vec<Id>> {
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= self.floor());
        Ok(self.stack.split_off(start.ok_or_else(empty)?))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| PickleError::corrupt("its pickle lacks a mark"))?;
        Ok(self.stack.split_off(mark))
    }

    /// The top of the stack, if it is above the last mark.
    fn top(&self) -> Result<Id> {
        if self.stack.len() <= self.floor() { Err(empty()) } else { self.stack.last().copied().ok_or_else(empty) }
    }

    fn top_value(&mut self) -> Result<&mut Value<'a>> {
        let top = self.top()?;
        Ok(&mut self.values[top.0 as usize])
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    fn memorize(&mut self, slot: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<()> {
        let id = self.memo.get(&slot).copied();
        self.stack.push(id.ok_or_else(|| PickleError::corrupt(format!("slot {slot} of its memo is empty")))?);
        Ok(())
    }

    fn spend(&mut self, steps: usize) -> Result<()> {
        let rest = self.budget.checked_sub(steps);
        self.budget =
            rest.ok_or_else(|| PickleError::corrupt(format!("its pickle takes more than {MAX_OPCODES} steps")))?;
        Ok(())
    }
}

fn empty() -> PickleError {
    PickleError::corrupt("its pickle pops an empty stack")
}

/// Keys and values from a list in which they alternate.
fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(PickleError::corrupt("a dictionary in it has a key without a value"));
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

fn old_string(bytes: &[u8]) -> Value<'_> {
    std::str::from_utf8(bytes).map_or(Value::Bytes, Value::Text)
}

/// An integer, little-endian in two's complement; no bytes are 0.
fn integer(bytes: &[u8]) -> Value<'_> {
    let Some(&last) = bytes.last() else { return Value::Int(0) };
    if bytes.len() > size_of::<i64>() {
        return Value::LargeInt(bytes);
    }
    let mut wide = [if last >= 0x80 { 0xff } else { 0 }; size_of::<i64>()];
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}
