//! Mutations of torch files: programs of pickles with other numbers, names and steps, and archives with other directories.

use crate::bytes;
use crate::draws::{Draws, WHOLE};

/// What a pickle may do at any place.
const STEPS: [&[u8]; 20] = [
    b"N",
    b"0",
    b"1",
    b"2",
    b"(",
    b")",
    b"]",
    b"}",
    b"t",
    b"R",
    b"\x81",
    b"b",
    b"Q",
    b"s",
    b"u",
    b"e",
    b"\x85",
    b"cos\nsystem\n",
    b"cmy.module\nSettings\n)\x81",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
];

/// Names in pickles that may stand for each other.
const NAMES: [&[u8]; 8] = [
    b"FloatStorage",
    b"HalfStorage",
    b"LongStorage",
    b"ByteStorage",
    b"QInt8Storage",
    b"ComplexFloatStorage",
    b"_rebuild_tensor_v2",
    b"_rebuild_parameter",
];

/// Changes a file, and says how.
pub fn mutate(file: &mut Vec<u8>, draws: &mut Draws) -> String {
    let places = |needle: &[u8]| -> Vec<usize> {
        file.windows(needle.len()).enumerate().filter(|(_, part)| *part == needle).map(|(at, _)| at).collect()
    };
    // The pickle: from where its storages are named to the last of them.
    let storages = places(b"storage");
    let pickle = match (storages.first(), storages.last()) {
        (Some(&first), Some(&last)) => first.saturating_sub(200)..(last + 400).min(file.len()),
        _ => 0..file.len(),
    };
    let within =
        |draws: &mut Draws| pickle.start + draws.below(pickle.len().max(1)).min(pickle.len().saturating_sub(1));
    match draws.below(7) {
        0 => {
            // BININT1, BININT2, BININT: sizes, strides, lengths.
            let at = within(draws);
            let found = (at..pickle.end).find(|&at| matches!(file[at], b'K' | b'M' | b'J'));
            if let Some(at) = found {
                let width = match file[at] {
                    b'K' => 1,
                    b'M' => 2,
                    _ => 4,
                };
                let value = draws.of(&WHOLE).to_le_bytes();
                let end = (at + 1 + width).min(file.len());
                file[at + 1..end].copy_from_slice(&value[..end - at - 1]);
            }
            "a number of its pickle".into()
        }
        1 => {
            let at = within(draws);
            let step = draws.of(&STEPS);
            // In the place of as many bytes, so that an archive's directory stays true.
            let end = (at + step.len()).min(file.len());
            file[at..end].copy_from_slice(&step[..end - at]);
            format!("step {:?}", String::from_utf8_lossy(step))
        }
        2 => {
            let (from, to) = (*draws.of(&NAMES), *draws.of(&NAMES));
            let at = places(from);
            if !at.is_empty() {
                let at = *draws.of(&at);
                let end = (at + from.len()).min(file.len());
                file.splice(at..end, to.iter().copied());
            }
            format!("{} for {}", String::from_utf8_lossy(to), String::from_utf8_lossy(from))
        }
        3 => {
            // The key of a storage: several tensors in one.
            let at = within(draws);
            if let Some(at) = (at..pickle.end.saturating_sub(5)).find(|&at| file[at] == b'X' && file[at + 1] == 1) {
                file[at + 5] = b'0' + draws.below(10) as u8;
            }
            "a storage's key".into()
        }
        4 => {
            // An archive's directory.
            let signatures: [&[u8]; 4] = [b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04", b"PK\x06\x06"];
            let signature = *draws.of(&signatures);
            let found = places(signature);
            if !found.is_empty() {
                let at = *draws.of(&found) + 4 + draws.below(42);
                if at < file.len() {
                    bytes::number(file, at, draws);
                }
            }
            "the archive's directory".into()
        }
        5 => {
            let at = within(draws);
            let end = (at + 16).min(file.len());
            file[at..end].rotate_left(1);
            "the order of bytes of its pickle".into()
        }
        _ => bytes::mutate(file, draws).into(),
    }
}
