//! Reads pickles as `torch.save` writes them, without running anything.
//!
//! A pickle is a program for a stack machine that may call any Python function. This machine knows the few functions
//! that a file of tensors needs, and makes plain values instead of calling them. Anything else that a pickle names,
//! such as the settings that training programs save with the weights, becomes a [`Foreign`] value; names that only an
//! attack needs are refused.
//!
//! Source: Python's `Lib/pickletools.py` for the opcodes, torch 2.13 `_utils.py` and `serialization.py` for the
//! functions. The number of steps bounds what a pickle can allocate, to about 300 bytes a step: a value has a fixed
//! size, strings stay in the pickle's bytes, and each part of a compound value costs a step. Values refer to each other
//! by number, so nothing is copied, nested or freed recursively.

mod allowlist;
mod error;
mod machine;
mod reader;
mod tensor;
mod value;

pub use allowlist::Foreign;
pub use error::PickleError;
pub use tensor::{Storage, StoredTensor};
pub use value::{Id, Pickle, Value};

#[cfg(test)]
mod tests {
    use super::machine::MAX_OPCODES;
    use super::*;

    fn refuse(bytes: &[u8]) -> PickleError {
        Pickle::read(bytes).unwrap_err()
    }

    fn forbidden(name: &str) -> PickleError {
        PickleError::Forbidden(name.into())
    }

    #[test]
    fn plain_values_are_read() {
        // {"a": [1, -2, 300, 2.5], "b": (None, True)}
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01\
            G@\x04\x00\x00\x00\x00\x00\x00eX\x01\x00\x00\x00bN\x88\x86u.rest";
        let (pickle, len) = Pickle::read(bytes).unwrap();
        assert_eq!(len, bytes.len() - 4);
        let Value::Dict(dict) = pickle.root() else { panic!("{:?}", pickle.root()) };
        let Some(Value::Sequence(list)) = pickle.item(dict, "a") else { panic!("no list") };
        assert!(matches!(pickle.get(list[0]), Value::Int(1)) && matches!(pickle.get(list[1]), Value::Int(-2)));
        assert!(matches!(pickle.get(list[2]), Value::Int(300)) && matches!(pickle.get(list[3]), Value::Float));
        let Some(Value::Sequence(pair)) = pickle.item(dict, "b") else { panic!("no tuple") };
        assert!(matches!(pickle.get(pair[0]), Value::None) && matches!(pickle.get(pair[1]), Value::Bool(true)));
        assert!(pickle.item(dict, "c").is_none());
    }

    #[test]
    fn attacks_are_refused_by_name_in_every_spelling() {
        assert_eq!(refuse(b"cos\nsystem\n(X\x02\x00\x00\x00lstR."), forbidden("os.system"));
        assert_eq!(refuse(b"\x80\x02cposix\nsystem\nq\x00."), forbidden("posix.system"));
        assert_eq!(refuse(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93."), forbidden("builtins.eval"));
        assert_eq!(refuse(b"(ios\nsystem\n."), forbidden("os.system"));
        // The same strings out of the memo.
        assert_eq!(refuse(b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93."), forbidden("os.system"));
        assert_eq!(refuse(b"cos.path\njoin\n."), forbidden("os.path.join"));
        // Beside plain values too, whether they are called or not.
        assert_eq!(refuse(b"\x80\x02}X\x01\x00\x00\x00acsys\nexit\ns."), forbidden("sys.exit"));
    }

    /// The function that would make what a pickle holds.
    fn foreign(bytes: &[u8]) -> String {
        match Pickle::read(bytes).unwrap().0.root() {
            Value::Foreign(foreign) => foreign.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn other_functions_and_their_values_are_foreign() {
        assert_eq!(foreign(b"ccollections\nCounter\n."), "collections.Counter");
        // A name with dots would lead from an innocent module to any other.
        assert_eq!(foreign(b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93."), "torch.os.system");
        // Called, instantiated, filled and given attributes, in every way; its value may be called too.
        for rest in [
            &b")R."[..],
            b")\x81.",
            b")}\x92.",
            b")\x81}b.",
            b")R(K\x01K\x02e.",
            b")RK\x01a.",
            b")RK\x01K\x02s.",
            b")R(K\x01K\x02u.",
            b")R(K\x01\x90.",
            b")R)R.",
            b"q\x000h\x00h\x00R.",
        ] {
            assert_eq!(foreign(&[b"\x80\x02cmy.own\nThing\n", rest].concat()), "my.own.Thing", "{rest:?}");
        }
        assert_eq!(foreign(b"(K\x01imy.own\nThing\n."), "my.own.Thing");
        assert_eq!(foreign(b"(cmy.own\nThing\nK\x01o."), "my.own.Thing");
        assert!(matches!(refuse(b"(o."), PickleError::Corrupt(_)));
        // A name cannot draw on the screen, nor fill it.
        assert_eq!(foreign(b"cmy\x1b[2J\nThing\n."), "my\\u{1b}[2J.Thing");
        assert_eq!(foreign(format!("c{}\nb\n.", "a".repeat(1000)).as_bytes()), "a".repeat(80) + "…");
    }

    #[test]
    fn tensors_of_a_plain_class_are_tensors() {
        let rebuild = |class: &str, function: &str, arguments: &str| {
            format!("ctorch._tensor\n_rebuild_from_type_v2\n(c{function}\nc{class}\n{arguments}NtR.").into_bytes()
        };
        let tensor = "((X\u{7}\0\0\0storagectorch\nFloatStorage\nX\u{1}\0\0\x000X\u{3}\0\0\0cpuK\u{6}tQK\0))t";
        for class in ["torch\nTensor", "torch.nn.parameter\nParameter"] {
            let bytes = rebuild(class, "torch._utils\n_rebuild_tensor_v2", tensor);
            assert!(matches!(Pickle::read(&bytes).unwrap().0.root(), Value::Tensor(_)), "{class:?}");
        }
        let quantized = rebuild("my.own\nQuantized", "torch._utils\n_rebuild_tensor_v2", tensor);
        assert_eq!(foreign(&quantized), "my.own.Quantized");
        let other = rebuild("torch\nTensor", "torch._utils\n_rebuild_sparse_tensor", tensor);
        assert_eq!(foreign(&other), "torch._utils._rebuild_sparse_tensor");
        let nested = rebuild("torch\nTensor", "torch._tensor\n_rebuild_from_type_v2", tensor);
        assert!(matches!(refuse(&nested), PickleError::Corrupt(_)));
        // Setting the state of a tensor replaces its elements.
        let bytes = [&b"ctorch._utils\n_rebuild_tensor_v2\n"[..], tensor.as_bytes(), b"R}b."].concat();
        assert_eq!(foreign(&bytes), "torch.Tensor.__setstate__");
    }

    #[test]
    fn only_functions_can_be_called_and_only_containers_filled() {
        for bytes in
            [&b"K\x01)R."[..], b"\x80\x02X\x01\x00\x00\x00a)\x81.", b"K\x01K\x02a.", b"]K\x01K\x02s.", b"K\x01}b."]
        {
            assert!(matches!(refuse(bytes), PickleError::Corrupt(_)), "{bytes:?}");
        }
    }

    #[test]
    fn broken_programs_are_refused() {
        let broken: [&[u8]; 14] = [
            b"",
            b".",
            b"N",
            b"h\x05.",
            b"j\x00\x00\x00\xff.",
            b"0.",
            b"t.",
            b"e.",
            b"u.",
            b"}(K\x01u.",
            b"X\xff\xff\xff\xffa.",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.",
            b"X\x01\x00\x00\x00\xff.",
            b"\xf7.",
        ];
        for bytes in broken {
            assert!(matches!(refuse(bytes), PickleError::Corrupt(_)), "{bytes:?}");
        }
    }

    #[test]
    fn deep_nesting_and_cycles_are_read() {
        let deep = [b"N".to_vec(), b"\x85".repeat(1_000_000), b".".to_vec()].concat();
        assert!(Pickle::read(&deep).is_ok());
        assert!(Pickle::read(b"]q\x00h\x00a.").is_ok(), "a list in itself");
        let endless = b"N0".repeat(MAX_OPCODES / 2 + 1);
        assert!(matches!(refuse(&endless), PickleError::Corrupt(why) if why.contains("steps")));
    }

    /// A tensor of 2 x 3 floats in a storage of 6; `arguments` stand for offset, size and stride.
    fn tensor(arguments: &[u8]) -> Result<(), PickleError> {
        let bytes = [
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n\
                X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ",
            arguments,
            b"\x89ccollections\nOrderedDict\n)RtR.",
        ]
        .concat();
        Pickle::read(&bytes).map(drop)
    }

    #[test]
    fn every_part_of_a_tensor_costs_a_step() {
        let sizes = [b"(".to_vec(), b"K\x01".repeat(8), b"t".to_vec()].concat();
        let storage =
            b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00";
        let start = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00(";
        let many = |count: usize| {
            let calls = b"h\x00h\x01R0".repeat(count);
            let end = b"\x89ccollections\nOrderedDict\n)Rtq\x01";
            Pickle::read(&[&start[..], storage, &sizes, &sizes, end, &calls, b"."].concat()).map(drop)
        };
        assert_eq!(many(10_000), Ok(()));
        assert!(matches!(many(60_000), Err(PickleError::Corrupt(why)) if why.contains("steps")));
    }

    #[test]
    fn tensors_stay_inside_their_storage() {
        assert_eq!(tensor(b"K\x00K\x02K\x03\x86K\x03K\x01\x86"), Ok(()));
        assert_eq!(tensor(b"K\x00K\x03K\x02\x86K\x01K\x03\x86"), Ok(()), "transposed");
        assert_eq!(tensor(b"K\x05)\x29"), Ok(()), "one number");
        assert_eq!(tensor(b"K\x06K\x00\x85K\x01\x85"), Ok(()), "no numbers");
        let outside: [&[u8]; 9] = [
            b"K\x01K\x02K\x03\x86K\x03K\x01\x86",
            b"K\x00K\x02K\x03\x86K\x04K\x01\x86",
            b"J\xff\xff\xff\xffK\x02K\x03\x86K\x03K\x01\x86",
            b"K\x00K\x02K\x03\x86J\xff\xff\xff\xffK\x01\x86",
            b"K\x00J\xff\xff\xff\xffK\x03\x86K\x03K\x01\x86",
            // Strides of 0 repeat one number 10¹² times.
            b"K\x00J\x40\x42\x0f\x00J\x40\x42\x0f\x00\x86K\x00K\x00\x86",
            b"K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85",
            b"K\x00K\x02K\x03\x86K\x01\x85",
            b"K\x07K\x00\x85K\x01\x85",
        ];
        for arguments in outside {
            assert!(matches!(tensor(arguments), Err(PickleError::Corrupt(_))), "{arguments:?}");
        }
    }
}
