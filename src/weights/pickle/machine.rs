//! The machine that a pickle is a program for.

use super::reader::Reader;
use super::tensor::MOST_DIMENSIONS;
use super::{Foreign, Global, Id, MOST_OPCODES, Numbers, Pickle, PickleError, Storage, StoredTensor, Value};
use safetensors::tensor::Dtype;
use std::collections::HashMap;

type Result<T> = std::result::Result<T, PickleError>;

/// A stack of values with marks in it, and a memo.
pub(super) struct Machine<'a> {
    reader: Reader<'a>,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id, ahash::RandomState>,
    /// Steps that are left. Copying a value's parts costs steps too.
    budget: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            reader: Reader::new(bytes),
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::default(),
            budget: MOST_OPCODES,
        }
    }

    /// Runs to the end of the program, and says where in the bytes that is.
    pub(super) fn run(mut self) -> Result<(Pickle<'a>, usize)> {
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
            // PROTO, FRAME: for readers of streams.
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
            b'q' => self.reader.u8().and_then(|place| self.memorize(place.into())),
            b'r' => self.reader.u32().and_then(|place| self.memorize(place)),
            0x94 => self.memorize(self.memo.len() as u32),
            b'h' => self.reader.u8().and_then(|place| self.recall(place.into())),
            b'j' => self.reader.u32().and_then(|place| self.recall(place)),
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
            0x8a => whole_number(reader.counted(1)?),
            0x8b => whole_number(reader.counted(4)?),
            b'G' => Value::Float(f64::from_be_bytes(reader.array()?)),
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8.
            0x8c => Value::Text(reader.text(1)?),
            b'X' => Value::Text(reader.text(4)?),
            0x8d => Value::Text(reader.text(8)?),
            // SHORT_BINSTRING, BINSTRING: Python 2's strings.
            b'U' => old_string(reader.counted(1)?),
            b'T' => old_string(reader.counted(4)?),
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8.
            b'C' => Value::Bytes(reader.counted(1)?),
            b'B' => Value::Bytes(reader.counted(4)?),
            0x8e | 0x96 => Value::Bytes(reader.counted(8)?),
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
            _ => return Err(PickleError::corrupt("it appends to what is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<()> {
        let pairs = pairs(&items)?;
        match self.top_value()? {
            Value::Dict(dict) => dict.extend(pairs),
            Value::Foreign(_) => {}
            _ => return Err(PickleError::corrupt("it sets items of what is no dictionary")),
        }
        Ok(())
    }

    /// The attributes of a dictionary, which torch gives to state dictionaries, say nothing about tensors. Those of a tensor
    /// may replace its numbers.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.top_value()? {
            Value::Dict(_) | Value::Foreign(_) => Ok(()),
            tensor @ Value::Tensor(_) => {
                *tensor = Value::Foreign(Foreign { module: "torch.Tensor", name: "__setstate__" });
                Ok(())
            }
            _ => Err(PickleError::corrupt("it sets attributes of what has none")),
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
            _ => Err(PickleError::corrupt("it names a function by what is no string")),
        }
    }

    fn named(&mut self, module: &'a str, name: &'a str) -> Result<()> {
        let known = Global::find(module, name)?;
        self.push(known.map_or(Value::Foreign(Foreign { module, name }), Value::Global))
    }

    /// What Python 2 pickled: an instance of a class that is named after its arguments.
    fn instance(&mut self) -> Result<()> {
        let arguments = self.pop_to_mark()?;
        self.global()?;
        self.push(Value::Sequence(arguments))?;
        self.call()
    }

    /// The same of a class on the stack, before its arguments.
    fn object(&mut self) -> Result<()> {
        let mut arguments = self.pop_to_mark()?;
        if arguments.is_empty() {
            return Err(empty());
        }
        self.stack.push(arguments.remove(0));
        self.push(Value::Sequence(arguments))?;
        self.call()
    }

    /// What a call gives.
    fn call(&mut self) -> Result<()> {
        let (function, arguments) = self.pop_pair()?;
        let function = match *self.get(function) {
            Value::Global(function) => function,
            Value::Foreign(foreign) => return self.push(Value::Foreign(foreign)),
            _ => return Err(PickleError::corrupt("it calls what is no function")),
        };
        let arguments = match self.get(arguments) {
            Value::Sequence(arguments) => arguments,
            &Value::Foreign(foreign) => return self.push(Value::Foreign(foreign)),
            _ => return Err(PickleError::corrupt("it calls a function with what are no arguments")),
        };
        let value = match (function, &arguments[..]) {
            (Global::OrderedDict, []) => Value::Dict(Vec::new()),
            (Global::OrderedDict, [items]) => self.dict_of(*items)?,
            (Global::Device, [_, ..]) => Value::None,
            (Global::TensorClass, _) => Value::Foreign(Foreign { module: "torch", name: "Tensor" }),
            (Global::Size | Global::RebuildParameter, [value, ..]) => {
                // A value that is there already.
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
                    _ => Err(PickleError::corrupt("a tensor in it has a class that is none")),
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
            _ => return Err(PickleError::corrupt("it calls a function with arguments that do not fit")),
        };
        self.push(value)
    }

    /// The call in a call, which is no such call itself: one in another, and so on, would lie on the stack of this program.
    fn call_rebuild(&mut self) -> Result<()> {
        match self.stack.iter().nth_back(1).map(|function| self.get(*function)) {
            Some(Value::Global(Global::RebuildFromType)) => {
                Err(PickleError::corrupt("a tensor in it is made of a tensor of a class"))
            }
            _ => self.call(),
        }
    }

    /// An ordered dictionary as Python 2 pickled it: from a list of pairs.
    fn dict_of(&mut self, items: Id) -> Result<Value<'a>> {
        let wrong = || PickleError::corrupt("it makes a dictionary of what are no pairs");
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
        let dtype = match (dtype, storage.numbers) {
            (Some(dtype), _) | (None, Numbers::Of(dtype)) => dtype,
            (None, Numbers::Other(name, _)) => return Ok(Value::Foreign(Foreign { module: "torch", name })),
            (None, Numbers::Untyped) => return Err(PickleError::corrupt("a tensor in it has no type")),
        };
        let Value::Int(offset) = *self.get(offset) else {
            return Err(PickleError::corrupt("a tensor in it has no place in its storage"));
        };
        let (shape, strides) = (self.integers(shape)?, self.integers(strides)?);
        self.spend(shape.len() + strides.len())?;
        StoredTensor::new(storage, dtype, offset, shape, strides).map(Value::Tensor)
    }

    /// Sizes or strides.
    fn integers(&self, id: Id) -> Result<Vec<i64>> {
        let wrong = || PickleError::corrupt("a tensor in it has sizes or strides that are no few whole numbers");
        let Value::Sequence(items) = self.get(id) else { return Err(wrong()) };
        let integer = |item: &Id| match self.get(*item) {
            Value::Int(integer) => Ok(*integer),
            _ => Err(wrong()),
        };
        if items.len() > MOST_DIMENSIONS { Err(wrong()) } else { items.iter().map(integer).collect() }
    }

    /// What lies outside the pickle: `("storage", type, key, device, length)`, and in old files a view, which is `None`.
    fn persistent(&mut self) -> Result<()> {
        let wrong = || PickleError::corrupt("it refers to what is no storage of numbers");
        let id = self.pop()?;
        let Value::Sequence(parts) = self.get(id) else { return Err(wrong()) };
        let (parts, view) = parts.split_at_checked(5).ok_or_else(wrong)?;
        let values = [parts[0], parts[1], parts[2], parts[4]].map(|part| self.get(part));
        let [Value::Text("storage"), Value::Global(kind), Value::Text(key), Value::Int(len)] = values else {
            return Err(wrong());
        };
        if view.iter().any(|view| !matches!(self.get(*view), Value::None)) {
            return Err(PickleError::corrupt("a storage in it is a view of another; save it again with a later torch"));
        }
        let &Global::Storage(numbers) = kind else { return Err(wrong()) };
        let storage = Storage { key, numbers, len: usize::try_from(*len).map_err(|_| wrong())? };
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
        let mark = self.marks.pop().ok_or_else(|| PickleError::corrupt("its pickle has no mark where it needs one"))?;
        Ok(self.stack.split_off(mark))
    }

    /// What is on the stack above the last mark, if there is anything.
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

    fn memorize(&mut self, place: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<()> {
        let id = self.memo.get(&place).copied();
        self.stack.push(id.ok_or_else(|| PickleError::corrupt(format!("its memo has nothing at {place}")))?);
        Ok(())
    }

    fn spend(&mut self, steps: usize) -> Result<()> {
        let rest = self.budget.checked_sub(steps);
        self.budget =
            rest.ok_or_else(|| PickleError::corrupt(format!("its pickle takes more than {MOST_OPCODES} steps")))?;
        Ok(())
    }
}

fn empty() -> PickleError {
    PickleError::corrupt("its pickle takes from an empty stack")
}

/// Keys and values one after the other.
fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(PickleError::corrupt("a dictionary in it has a key without a value"));
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

fn old_string(bytes: &[u8]) -> Value<'_> {
    std::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Text)
}

/// Little-endian in two's complement; nothing is 0.
fn whole_number(bytes: &[u8]) -> Value<'_> {
    let Some(&last) = bytes.last() else { return Value::Int(0) };
    if bytes.len() > size_of::<i64>() {
        return Value::LargeInt(bytes);
    }
    let mut wide = [if last >= 0x80 { 0xff } else { 0 }; size_of::<i64>()];
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}
