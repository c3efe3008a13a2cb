//! The allowlist: the Python functions and classes that a file of tensors needs. All others are foreign.

use super::error::PickleError;
use super::tensor::ElementType;
use safetensors::tensor::Dtype;
use std::fmt;

/// Modules that only an attack names: those that torch blocks, and those that start programs.
const ATTACKS: [&str; 7] = ["os", "posix", "nt", "sys", "subprocess", "pty", "runpy"];

/// The same of Python's built-in functions.
const BUILTIN_ATTACKS: [&str; 7] = ["eval", "exec", "execfile", "compile", "open", "breakpoint", "__import__"];

/// A Python function or class that is not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign<'a> {
    /// Its module.
    pub module: &'a str,
    /// Its name in the module.
    pub name: &'a str,
}

/// The full name, shortened and escaped: it comes from an untrusted file.
impl fmt::Display for Foreign<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        const MAX_CHARS: usize = 80;
        let mut chars = self.module.chars().chain(['.']).chain(self.name.chars());
        chars.by_ref().take(MAX_CHARS).flat_map(char::escape_debug).try_for_each(|char| write!(formatter, "{char}"))?;
        if chars.next().is_some() { formatter.write_str("…") } else { Ok(()) }
    }
}

/// A Python function or class that a file of tensors needs. It is not run either: the machine makes its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch.Size`.
    Size,
    /// `torch.device`.
    Device,
    /// `torch._utils._rebuild_tensor`, `_rebuild_tensor_v2`: a tensor from a typed storage.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`: a tensor of a type without a storage class.
    RebuildTensorOfType,
    /// `torch._utils._rebuild_parameter`, with or without attributes, and `torch.nn.Parameter`.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: a tensor of a subclass, or with attributes.
    RebuildFromType,
    /// `torch.Tensor`.
    TensorClass,
    /// `torch.FloatStorage` and its like.
    Storage(ElementType),
    /// `torch.float32` and its like.
    Dtype(Dtype),
}

impl Global {
    /// Looks up a name; `None` for a foreign one.
    ///
    /// # Errors
    /// [`PickleError::Forbidden`] for a name that only an attack needs.
    pub(super) fn find(module: &str, name: &str) -> Result<Option<Self>, PickleError> {
        let package = module.split('.').next().unwrap_or_default();
        let is_builtin = matches!(module, "builtins" | "__builtin__");
        if ATTACKS.contains(&package) || is_builtin && BUILTIN_ATTACKS.contains(&name) {
            return Err(PickleError::Forbidden(Foreign { module, name }.to_string()));
        }
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch", "Size") => Some(Self::Size),
            ("torch", "device") => Some(Self::Device),
            ("torch" | "torch._tensor", "Tensor") => Some(Self::TensorClass),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Self::RebuildTensorOfType),
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
            | ("torch.nn.parameter", "Parameter") => Some(Self::RebuildParameter),
            ("torch._tensor", "_rebuild_from_type_v2") => Some(Self::RebuildFromType),
            ("torch" | "torch.storage", "UntypedStorage") => Some(Self::Storage(ElementType::Untyped)),
            ("torch" | "torch.cuda", name) => storage(name).or_else(|| dtype(name)),
            _ => None,
        })
    }
}

fn storage(name: &str) -> Option<Global> {
    let dtype = match name {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return ElementType::other(name).map(Global::Storage),
    };
    Some(Global::Storage(ElementType::Of(dtype)))
}

fn dtype(name: &str) -> Option<Global> {
    let dtype = match name {
        "float32" | "float" => Dtype::F32,
        "float16" | "half" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "float64" | "double" => Dtype::F64,
        "int64" | "long" => Dtype::I64,
        "int32" | "int" => Dtype::I32,
        "int16" | "short" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint8" => Dtype::U8,
        "bool" => Dtype::BOOL,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "uint64" => Dtype::U64,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        _ => return None,
    };
    Some(Global::Dtype(dtype))
}
