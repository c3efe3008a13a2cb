//! Mutations that know nothing of a format but that there are numbers in it.

use crate::draws::{Draws, WHOLE};

/// Changes bytes near `start..end`, and says how.
pub fn mutate(bytes: &mut Vec<u8>, draws: &mut Draws) -> &'static str {
    if bytes.is_empty() {
        bytes.extend(b"x");
        return "a byte";
    }
    // The beginning and the end are where formats have what matters.
    let near = |draws: &mut Draws, len: usize| match draws.below(4) {
        0 => draws.below(len.min(64)),
        1 => len - 1 - draws.below(len.min(256)),
        _ => draws.below(len),
    };
    let at = near(draws, bytes.len());
    match draws.below(8) {
        0 => {
            bytes.truncate(at);
            "cut off"
        }
        1 => {
            bytes[at] ^= 1 << draws.below(8);
            "a bit"
        }
        2 => {
            bytes[at] = *draws.of(&[0, 1, 0x7f, 0x80, 0xff, b'.', b'"', b'{', b'}', b'\n']);
            "a byte"
        }
        3 => {
            number(bytes, at, draws);
            "a number"
        }
        4 => {
            let end = (at + 1 + draws.below(64)).min(bytes.len());
            bytes.drain(at..end);
            "bytes left out"
        }
        5 => {
            let end = (at + 1 + draws.below(64)).min(bytes.len());
            let part = bytes[at..end].to_vec();
            let to = near(draws, bytes.len());
            bytes.splice(to..to, part);
            "bytes twice"
        }
        6 => {
            let fill = *draws.of(&[0, 0xff, 0x7f]);
            let end = (at + draws.below(64)).min(bytes.len());
            bytes[at..end].fill(fill);
            "bytes filled"
        }
        _ => {
            for _ in 0..draws.below(8) + 2 {
                let at = near(draws, bytes.len());
                bytes[at] = draws.next() as u8;
            }
            "some bytes"
        }
    }
}

/// Writes a number of 1, 2, 4 or 8 bytes.
pub fn number(bytes: &mut [u8], at: usize, draws: &mut Draws) {
    let width = (1 << draws.below(4)).min(bytes.len() - at);
    let mut value = *draws.of(&WHOLE);
    if draws.one_in(3) {
        value = value.wrapping_neg();
    }
    bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}
