//! Mutations of safetensors files: a header that says other than what the data is, and data of every number.

use crate::draws::{Draws, WHOLE};
use crate::json;
use serde_json::{Value, json};

const DTYPES: [&str; 12] = ["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "U16", "X1"];

/// Changes a file, and says how; `None` if it is no such file.
pub fn mutate(bytes: &mut Vec<u8>, draws: &mut Draws) -> Option<String> {
    let len = usize::try_from(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?)).ok()?;
    let mut header: Value = serde_json::from_slice(bytes.get(8..8 + len)?).ok()?;
    let mut data = bytes[8 + len..].to_vec();
    // Not what an earlier change made of one.
    let is_tensor = |value: &Value| {
        value["data_offsets"].as_array().is_some_and(|range| range.len() == 2) && value["shape"].is_array()
    };
    let tensors = header.as_object()?.iter().filter(|(_, value)| is_tensor(value));
    let names: Vec<String> = tensors.map(|(name, _)| name.clone()).collect();
    if names.is_empty() {
        return None;
    }
    let name = draws.of(&names).clone();
    let other = header[draws.of(&names)].clone();
    let whole = |draws: &mut Draws| Value::from(*draws.of(&WHOLE) as u64);
    let mut what = format!("of {name} ");
    match draws.below(13) {
        0 => {
            header[&name]["data_offsets"][draws.below(2)] = whole(draws);
            what += "an offset";
        }
        1 => {
            // One storage for all.
            names.iter().for_each(|name| header[name]["data_offsets"] = other["data_offsets"].clone());
            what = "the storages of all".into();
        }
        2 => {
            header[&name]["data_offsets"] = other["data_offsets"].clone();
            header[&name]["shape"] = other["shape"].clone();
            what += "place and shape";
        }
        3 => {
            let rank = header[&name]["shape"].as_array()?.len();
            if rank > 0 {
                header[&name]["shape"][draws.below(rank)] = whole(draws);
            } else {
                header[&name]["shape"] = json!([0]);
            }
            what += "a size";
        }
        4 => {
            header[&name]["shape"] = json!(vec![1; draws.below(80)]);
            what += "the rank";
        }
        5 => {
            header[&name]["dtype"] = json!(draws.of(&DTYPES));
            what += "the type";
        }
        6 => {
            let value = header.as_object_mut()?.remove(&name)?;
            let renamed = *draws.of(&["", "a", "proj_in.lora_A.weight", "x\u{1b}[2J", "transformer_blocks.9.a.weight"]);
            header[renamed] = value;
            what += "the name";
        }
        7 => {
            for number in 0..1 + draws.below(2000) {
                header[format!("extra.{number}.weight")] = other.clone();
            }
            what = "many tensors more".into();
        }
        8 => {
            header["__metadata__"] = json::odd(draws);
            what = "metadata".into();
        }
        9 => {
            data.truncate(draws.below(data.len() + 1));
            what = "data cut off".into();
        }
        10 => {
            let values: [f32; 8] = [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e30, 0.0, -1.0];
            let value = *draws.of(&values);
            let at = draws.below(data.len() / 4) * 4;
            let end = (at + 4 * (1 + draws.below(64))).min(data.len() / 4 * 4);
            data[at..end].as_chunks_mut::<4>().0.iter_mut().for_each(|number| *number = value.to_le_bytes());
            what = format!("numbers {value:e}");
        }
        11 => {
            data.extend(vec![0; 1 + draws.below(100)]);
            what = "data more".into();
        }
        _ => {
            header[&name] = json::odd(draws);
            what += "all";
        }
    }
    let mut text = header.to_string();
    if draws.one_in(8) {
        // A name twice.
        text = text.replacen('{', &format!("{{{}:{},", json!(name), other), 1);
        what += " twice";
    }
    let said = if draws.one_in(10) { *draws.of(&WHOLE) as u64 } else { text.len() as u64 };
    *bytes = [&said.to_le_bytes()[..], text.as_bytes(), &data].concat();
    Some(what)
}
