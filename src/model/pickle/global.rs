//! The Python functions and classes that a file of tensors needs.

use super::PickleError;
use safetensors::tensor::Dtype;

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
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch.FloatStorage` and its like.
    Storage(Dtype),
    /// `torch.storage.UntypedStorage`.
    UntypedStorage,
    /// `torch.float32` and its like.
    Dtype(Dtype),
}

impl Global {
    /// Finds what a pickle names.
    ///
    /// # Errors
    /// [`PickleError::Forbidden`] for everything else in Python.
    pub(super) fn find(module: &str, name: &str) -> Result<Self, PickleError> {
        let found = match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch", "Size") => Some(Self::Size),
            ("torch", "device") => Some(Self::Device),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Self::RebuildTensorOfType),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch" | "torch.storage", "UntypedStorage") => Some(Self::UntypedStorage),
            ("torch" | "torch.cuda", name) => storage(name).or_else(|| dtype(name)),
            _ => None,
        };
        found.ok_or_else(|| PickleError::Forbidden(shown(module, name)))
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
        _ => return None,
    };
    Some(Global::Storage(dtype))
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

/// A name that somebody else chose, fit for a line on a terminal.
fn shown(module: &str, name: &str) -> String {
    const MOST: usize = 80;
    let whole = format!("{module}.{name}");
    let shown: String = whole.chars().take(MOST).flat_map(char::escape_debug).collect();
    if whole.chars().count() > MOST { format!("{shown}…") } else { shown }
}
