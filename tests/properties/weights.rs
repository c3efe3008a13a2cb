//! Weights: files that are nearly valid are read or refused with an error that says so.

use super::{check_share, fixtures};
use crate::config;
use crate::error::{Error, Result};
use crate::files::Folder;
use crate::nn::prior::{PriorConfig, PriorTransformer};
use crate::weights::checkpoint::{Checkpoint, Placement};
use crate::weights::pickle::Pickle;
use crate::weights::precision::Precision;
use proptest::prelude::*;
use std::io::Write;
use std::sync::OnceLock;
use tch::Device;

const PLACEMENT: Placement = Placement { device: Device::Cpu, precision: Precision::F32 };

/// A small checkpoint and its configuration, of which the tests break copies.
fn checkpoint() -> &'static (Vec<u8>, PriorConfig) {
    static CHECKPOINT: OnceLock<(Vec<u8>, PriorConfig)> = OnceLock::new();
    CHECKPOINT.get_or_init(|| {
        let folder = fixtures().join("pipelines/kandinsky22/prior");
        let bytes = std::fs::read(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
        (bytes, config::read(&Folder::from(&folder), "config.json").unwrap())
    })
}

fn open(name: &str, bytes: &[u8]) -> Result<Checkpoint> {
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::write(folder.path().join(name), bytes).unwrap();
    Checkpoint::open_file(&Folder::from(folder.path()), name)
}

fn load(bytes: &[u8]) -> Result<PriorTransformer> {
    let config = &checkpoint().1;
    open("model.safetensors", bytes)?.build("", PLACEMENT, |weights| PriorTransformer::load(weights, config))
}

/// Opens a file and reads all of its tensors.
fn read(name: &str, bytes: &[u8]) -> Result<()> {
    let checkpoint = open(name, bytes)?;
    checkpoint.names().try_for_each(|name| checkpoint.read(name).map(drop))
}

/// Small torch files of every format, of which the tests break copies.
fn torch_files() -> &'static Vec<Vec<u8>> {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let read = |name| std::fs::read(fixtures().join("checkpoints").join(name)).unwrap();
        ["zip.bin", "protocol_4.pt", "legacy.bin", "nested.ckpt"].map(read).into()
    })
}

/// The range that the pickle of a torch file lies in.
fn pickle_range(bytes: &[u8]) -> std::ops::Range<usize> {
    let start = bytes.windows(2).position(|pair| pair == b"\x80\x02" || pair == b"\x80\x04").unwrap_or(0);
    start..bytes.len().min(start + 4000)
}

#[test]
fn a_torch_file_truncated_anywhere_is_refused() {
    for bytes in torch_files() {
        for end in 0..bytes.len() {
            let error = read("model.bin", &bytes[..end]).expect_err("a part of a file was read");
            assert!(matches!(error, Error::File { .. }), "{end}: {error:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_torch_file_with_changed_bytes_is_read_or_refused(
        file in 0..4_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        anywhere in any::<bool>(),
    ) {
        let mut bytes = torch_files()[file].clone();
        let range = if anywhere { 0..bytes.len() } else { pickle_range(&bytes) };
        for (at, byte) in changes {
            bytes[range.start + at.index(range.len())] = byte;
        }
        if let Err(error) = read("model.bin", &bytes) {
            prop_assert!(error.is_bad_input(), "{error:?}");
        }
    }
}

proptest! {
    #[test]
    fn a_checkpoint_with_a_flipped_header_loads_or_is_refused(
        flips in prop::collection::vec((0..4000_usize, any::<u8>()), 1..4),
    ) {
        let mut bytes = checkpoint().0.clone();
        for (at, byte) in flips {
            bytes[at] = byte;
        }
        if let Err(error) = load(&bytes) {
            prop_assert!(error.is_bad_input(), "{error:?}");
        }
    }

    #[test]
    fn a_truncated_checkpoint_is_refused(cut in 0.0..0.999_f64) {
        let bytes = &checkpoint().0;
        let end = (bytes.len() as f64 * cut) as usize;
        prop_assert!(load(&bytes[..end]).is_err());
    }
}

/// A tensor in the header of a safetensors file.
#[derive(Debug, Clone)]
struct Tensor {
    name: &'static str,
    dtype: (&'static str, u64),
    shape: Vec<u64>,
    /// Added to its offsets, which are right without it.
    shift: (i64, i64),
}

fn tensor() -> impl Strategy<Value = Tensor> {
    let names = vec!["clip_mean", "proj_in.weight", "a", "", "transformer_blocks.0.norm1.bias", "é\u{1b}[2J"];
    let dtypes =
        vec![("F32", 4), ("F16", 2), ("BF16", 2), ("F64", 8), ("I64", 8), ("BOOL", 1), ("F8_E5M2", 1), ("U16", 2)];
    let size = prop_oneof![40 => 0..4_u64, 1 => Just(1 << 40), 1 => Just(u64::MAX), 1 => Just(i64::MAX as u64)];
    let shift = prop_oneof![40 => Just((0, 0)), 1 => (-4..4_i64, -4..4_i64), 1 => Just((0, 1 << 40))];
    let parts = (prop::sample::select(names), prop::sample::select(dtypes), prop::collection::vec(size, 0..5), shift);
    parts.prop_map(|(name, dtype, shape, shift)| Tensor { name, dtype, shape, shift })
}

/// A safetensors file of these tensors, with data for as many elements as memory allows.
fn safetensors(tensors: &[Tensor], extra: usize) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0_u64);
    for Tensor { name, dtype: (dtype, bytes), shape, shift } in tensors {
        let len = shape.iter().fold(*bytes, |len, &size| len.saturating_mul(size)).min(1 << 12);
        let start = if header.contains_key(*name) { 0 } else { end };
        end = start + len;
        let shifted = |offset: u64, by: i64| offset.saturating_add_signed(by);
        let offsets = [shifted(start, shift.0), shifted(end, shift.1)];
        header.insert(name.to_string(), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
    }
    let header = serde_json::Value::Object(header).to_string();
    let data: Vec<u8> = (0..end as usize + extra).map(|byte| byte as u8).collect();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

#[test]
fn safetensors_of_odd_tensors_are_read_or_refused() {
    let extra = prop_oneof![9 => Just(0_usize), 1 => 0..9_usize];
    let files = (prop::collection::vec(tensor(), 1..4), extra);
    check_share(1000, 0.3..=0.95, files, |(tensors, extra)| {
        let bytes = safetensors(&tensors, extra);
        let checkpoint = match open("model.safetensors", &bytes) {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                prop_assert!(matches!(error, Error::File { .. }), "{error:?}");
                return Ok(false);
            }
        };
        for name in checkpoint.names() {
            checkpoint.read(name).map_err(|error| TestCaseError::fail(format!("{name}: {error:?}")))?;
        }
        let built = checkpoint.build("", PLACEMENT, |weights| weights.tensor("a", &[2]));
        prop_assert!(built.is_ok() || matches!(built, Err(Error::MissingTensors { .. })), "{built:?}");
        Ok(true)
    });
}

/// A program that pushes a value: of valid opcodes, though perhaps in an order that makes no sense.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let integer = prop_oneof![
        8 => (0..7_u8).prop_map(|value| vec![b'K', value]),
        1 => any::<u16>().prop_map(|value| [&b"M"[..], &value.to_le_bytes()].concat()),
        1 => any::<i32>().prop_map(|value| [&b"J"[..], &value.to_le_bytes()].concat()),
        1 => any::<i64>().prop_map(|value| [&b"\x8a\x08"[..], &value.to_le_bytes()].concat()),
        1 => prop::collection::vec(any::<u8>(), 0..12)
            .prop_map(|bytes| [&[0x8a, bytes.len() as u8][..], &bytes].concat()),
    ];
    // Most tensors fit their storages, which are of 200 elements.
    let classes = vec!["FloatStorage", "HalfStorage", "LongStorage", "ByteStorage"];
    let odd_classes = vec!["QInt8Storage", "UntypedStorage", "Size", "ComplexFloatStorage"];
    let class = prop_oneof![15 => prop::sample::select(classes), 1 => prop::sample::select(odd_classes)];
    let len = prop_oneof![30 => Just(b"K\xc8".to_vec()), 1 => integer.clone()];
    let storage = (class, 0..3_u8, len).prop_map(|(class, key, len)| {
        let start = format!("(X\u{7}\0\0\0storagectorch\n{class}\nX\u{1}\0\0\0{key}X\u{3}\0\0\0cpu");
        [start.as_bytes(), &len, b"tQ"].concat()
    });
    let small = prop_oneof![60 => (0..4_u8).prop_map(|value| vec![b'K', value]), 1 => integer.clone()];
    let layout = prop::collection::vec((small.clone(), small.clone()), 0..4).prop_map(|dimensions| {
        let (sizes, strides): (Vec<_>, Vec<_>) = dimensions.into_iter().unzip();
        [b"(", &sizes.concat()[..], b"t(", &strides.concat(), b"t"].concat()
    });
    let functions = vec!["_utils\n_rebuild_tensor", "_utils\n_rebuild_tensor_v3", "_tensor\n_rebuild_from_type_v2"];
    let function = prop_oneof![15 => Just("_utils\n_rebuild_tensor_v2"), 1 => prop::sample::select(functions)];
    let tensor = (function, storage.clone(), small, layout).prop_map(|(function, storage, offset, layout)| {
        let start = format!("ctorch.{function}\n(");
        [start.as_bytes(), &storage, &offset, &layout, b"\x89ccollections\nOrderedDict\n)RtR"].concat()
    });
    let literals: Vec<&[u8]> = vec![
        b"N",
        b"\x88",
        b")",
        b"]",
        b"}",
        b"\x8f",
        b"G\0\0\0\0\0\0\0\0",
        b"X\x01\0\0\0a",
        b"U\x02\xff\xfe",
        b"C\x01b",
        b"ctorch\nfloat16\n",
        b"cmy.own\nThing\n",
        b"ccollections\nOrderedDict\n)R",
        b"h\0",
    ];
    let leaf = prop_oneof![
        4 => tensor,
        1 => storage,
        1 => integer,
        3 => prop::sample::select(literals).prop_map(<[u8]>::to_vec),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let several = prop::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            several.clone().prop_map(|items| [b"](", &items.concat()[..], b"e"].concat()),
            several.clone().prop_map(|items| [b"(", &items.concat()[..], b"t"].concat()),
            several.clone().prop_map(|items| [b"(", &items.concat()[..], b"l"].concat()),
            several.prop_map(|items| [b"cmy.own\nThing\n(", &items.concat()[..], b"tR"].concat()),
            prop::collection::vec((any::<u8>(), inner.clone()), 0..4).prop_map(|items| dict(&items)),
            (inner.clone(), 0..3_u8).prop_map(|(value, slot)| [&value[..], b"q", &[slot]].concat()),
            inner.clone().prop_map(|value| [&value[..], b"\x85"].concat()),
            inner.clone().prop_map(|value| [&value[..], b"0N"].concat()),
            inner.clone().prop_map(|value| [b"ctorch._utils\n_rebuild_parameter\n", &value[..], b"\x85R"].concat()),
            inner.clone().prop_map(|state| [b"}", &state[..], b"b"].concat()),
            inner.prop_map(|state| [b"cmy.own\nThing\n)R", &state[..], b"b"].concat()),
        ]
    })
}

/// `{"n0": value, …}`
fn dict(items: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let items = items.iter().map(|(name, value)| {
        let name = format!("n{}", name % 20);
        [&b"X"[..], &(name.len() as u32).to_le_bytes(), name.as_bytes(), value].concat()
    });
    [b"}(", &items.collect::<Vec<_>>().concat()[..], b"u"].concat()
}

/// A pickle of a dictionary, now and then with an opcode too many.
fn pickle() -> impl Strategy<Value = Vec<u8>> {
    let items = prop::collection::vec((any::<u8>(), value()), 1..6);
    let opcodes =
        vec![b'0', b'1', b'2', b'(', b'a', b'e', b's', b'u', b'R', b'b', b'o', b'Q', b'.', 0x81, 0x87, 0x90, 0x93];
    let odd = prop_oneof![3 => Just(None), 1 => prop::sample::select(opcodes).prop_map(Some)];
    (items, odd, any::<prop::sample::Index>()).prop_map(|(mut items, odd, at)| {
        if let Some(opcode) = odd {
            let at = at.index(items.len());
            items[at].1.push(opcode);
        }
        // What later values recall.
        [b"\x80\x02Nq\x000", &dict(&items)[..], b"."].concat()
    })
}

/// The archive of a pickle, with three storages of 200 elements of 8 bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let data: Vec<u8> = (0..1600).map(|byte| byte as u8).collect();
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &data), ("a/data/1", &data), ("a/data/2", &data)] {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn pickles_of_valid_opcodes_in_odd_orders_are_read_or_refused() {
    check_share(2000, 0.2..=0.9, pickle(), |bytes| Ok(Pickle::read(&bytes).is_ok()));
}

#[test]
fn torch_files_of_odd_pickles_are_read_or_refused() {
    check_share(2000, 0.05..=0.9, pickle(), |pickle| match read("model.bin", &archive(&pickle)) {
        Ok(()) => Ok(true),
        Err(error) => {
            prop_assert!(matches!(error, Error::File { .. }), "{error:?}");
            Ok(false)
        }
    });
}
