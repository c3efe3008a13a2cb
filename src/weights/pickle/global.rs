//! The Python functions and classes that a file of tensors needs.

use super::tensor::Numbers;
use super::{Foreign, PickleError};
use safetensors::tensor::Dtype;

/// Modules that nothing but an attack takes anything from: those that torch blocks, and what starts programs.
const ATTACKS: [&str; 7] = ["os", "posix", "nt", "sys", "subprocess", "pty", "runpy"];

/// The same in Python's own functions.
const BUILTIN_ATTACKS: [&str; 7] = ["eval", "exec", "execfile", "compile", "open", "breakpoint", "__import__"];

/// One of them. Nothing here is run: the machine does by itself what it stands for.
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
    /// `torch._utils._rebuild_tensor_v3`: a tensor of a type that has no storage of its own.
    RebuildTensorOfType,
    /// `torch._utils._rebuild_parameter`, with or without attributes of its own, and `torch.nn.Parameter`.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: a tensor of a class, with attributes.
    RebuildFromType,
    /// `torch.Tensor`.
    TensorClass,
    /// `torch.FloatStorage` and its like.
    Storage(Numbers),
    /// `torch.float32` and its like.
    Dtype(Dtype),
}

impl Global {
    /// Finds what a pickle names; `None` for what is never run and gives nothing.
    ///
    /// # Errors
    /// [`PickleError::Forbidden`] for what only an attack names.
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
            ("torch" | "torch.storage", "UntypedStorage") => Some(Self::Storage(Numbers::Untyped)),
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
        _ => return Numbers::other(name).map(Global::Storage),
    };
    Some(Global::Storage(Numbers::Of(dtype)))
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
