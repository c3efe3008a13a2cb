//! Mutations of JSON: numbers at the limits of types, what only Python writes, keys twice, other types.

use crate::draws::{Draws, WHOLE};
use serde_json::{Map, Value, json};

/// Stands for text that is no JSON.
const LITERAL: &str = "@@literal@@";

/// Numbers as text, which need not be JSON's.
const NUMBERS: [&str; 22] = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "1e39",
    "-1e39",
    "3.4028235e38",
    "3.4028236e38",
    "1e-46",
    "5e-324",
    "1e-400",
    "0.0",
    "-0.0",
    "-1",
    "1.5",
    "1e6",
    "1e30",
    "123456789012345678901234567890",
    "9007199254740993",
    "-9223372036854775808",
    "-9223372036854775809",
];

/// Changes a text that is JSON, and says how; `None` if it is none.
pub fn mutate(text: &str, draws: &mut Draws) -> Option<(String, String)> {
    let mut json: Value = serde_json::from_str(text).ok()?;
    let mut what = String::new();
    for _ in 0..1 + draws.below(3) {
        change(&mut json, draws, &mut what, 0);
    }
    let quoted = format!("\"{LITERAL}");
    let mut parts = json.to_string();
    while let Some(start) = parts.find(&quoted) {
        let end = start + 1 + parts[start + 1..].find('"').unwrap();
        let literal = parts[start + quoted.len()..end].to_string();
        parts.replace_range(start..=end, &literal);
    }
    if draws.one_in(6) {
        // A key twice: the first with another value.
        let keys: Vec<&str> = json.as_object().into_iter().flat_map(|map| map.keys().map(String::as_str)).collect();
        if !keys.is_empty() {
            let key = draws.of(&keys);
            what.push_str(&format!(" {key:?} twice"));
            parts = parts.replacen('{', &format!("{{{}:{},", json!(key), draws.of(&NUMBERS)), 1);
        }
    }
    Some((parts, what))
}

/// A value that is not what is expected.
pub fn odd(draws: &mut Draws) -> Value {
    match draws.below(10) {
        0..4 => Value::from(format!("{LITERAL}{}", draws.of(&NUMBERS))),
        4..7 => Value::from(format!("{LITERAL}{}", draws.of(&WHOLE))),
        7 => draws.of(&[json!(null), json!(true), json!([]), json!({}), json!([1, 2]), json!({"a": 1})]).clone(),
        8 => Value::from(*draws.of(&[
            "",
            "\u{0}",
            "\u{1b}[2J",
            "a\nb",
            "é\u{202e}",
            "learned_range",
            "../x",
            "<|endoftext|>",
        ])),
        _ => match draws.below(4) {
            0 => Value::from("a".repeat(1 << 20)),
            1 => (0..100).fold(json!(1), |inner, _| json!([inner])),
            2 => (0..200).fold(json!(1), |inner, _| json!({"a": inner})),
            _ => json!(vec![0.5; 1000]),
        },
    }
}

fn change(json: &mut Value, draws: &mut Draws, what: &mut String, depth: usize) {
    match json {
        Value::Object(map) if !map.is_empty() => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = draws.of(&keys).clone();
            what.push_str(&format!(" {}", key.chars().take(40).collect::<String>()));
            match draws.below(12) {
                0 => drop(map.remove(&key)),
                1 => drop(
                    map.insert(draws.of(&["", "a\u{1b}", "projection_dim", "text_config"]).to_string(), odd(draws)),
                ),
                2 => {
                    let other = map[draws.of(&keys)].clone();
                    map.insert(key, other);
                }
                _ => change(&mut map[&key], draws, what, depth + 1),
            }
        }
        Value::Array(list) if !list.is_empty() && !draws.one_in(3) => {
            let place = draws.below(list.len());
            match draws.below(6) {
                0 => drop(list.remove(place)),
                1 => list.push(list[place].clone()),
                _ => change(&mut list[place], draws, what, depth + 1),
            }
        }
        // Not the whole.
        _ if depth > 0 => *json = odd(draws),
        _ => *json = Value::Object(Map::new()),
    }
}
