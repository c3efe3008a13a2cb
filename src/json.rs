//! JSON as Python's `json` module reads and writes it.
//!
//! Python takes the last of several equal keys, writes `NaN`, `Infinity` and `-Infinity`, and reads a number that is too
//! large for a float as infinity. serde_json refuses all of these, as JSON does.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::Error;
use std::collections::HashMap;
use std::fmt;

/// The key of the object that a non-finite number is replaced by in the text, with the number as Rust writes it as its value.
/// An object, since it cannot be mistaken for a key.
const NUMBER: &str = "\0number";

/// A JSON value whose numbers need not be finite.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// An integer above the range of `Int`.
    Uint(u64),
    /// Any other number.
    Float(f64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object, in the order in which the keys first occur.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Parses a text.
    ///
    /// # Errors
    /// If Python would refuse it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        serde_json::from_str(&with_marked_numbers(text))
    }

    /// The value under a key of an object.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Sets the value under a key of an object; other values stay as they are.
    pub fn set(&mut self, key: &str, value: Self) {
        if let Self::Object(entries) = self {
            match entries.iter_mut().find(|(name, _)| name == key) {
                Some((_, old)) => *old = value,
                None => entries.push((key.to_string(), value)),
            }
        }
    }
}

/// Parses JSON that Python may have written.
///
/// # Errors
/// If Python would refuse it, or it is not a `T`.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    // Nearly all files are plain JSON, and a vocabulary is long: try that first.
    serde_json::from_str(text).or_else(|error| match Json::parse(text) {
        Ok(json) => T::deserialize(json),
        Err(_) => Err(error),
    })
}

/// The text with its non-finite numbers replaced by [`NUMBER`] objects. Strings stay as they are.
fn with_marked_numbers(text: &str) -> String {
    let mut marked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|char: char| char == '"' || is_word(char)) {
        marked.push_str(&rest[..start]);
        rest = &rest[start..];
        let len = if rest.starts_with('"') { string_len(rest) } else { rest.find(|char| !is_word(char)) };
        let (token, behind) = rest.split_at(len.unwrap_or(rest.len()));
        match non_finite(token) {
            Some(number) => marked.push_str(&format!(r#"{{"\u0000number":"{number}"}}"#)),
            None => marked.push_str(token),
        }
        rest = behind;
    }
    marked + rest
}

/// Whether a character may be part of a number or a name.
fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '+' | '-' | '.' | '_')
}

/// The length in bytes of the string at the start of a text, quotes included; `None` if it is not closed.
fn string_len(text: &str) -> Option<usize> {
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let is_end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        is_end
    });
    end.map(|end| end + 2)
}

/// The value of a token that stands for a non-finite number.
fn non_finite(token: &str) -> Option<f64> {
    match token {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => {
            let is_number = token.trim_start_matches('-').starts_with(|char: char| char.is_ascii_digit());
            token.parse().ok().filter(|number: &f64| is_number && number.is_infinite())
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::Uint(value), Json::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut entries: Vec<(String, Json)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        while let Some((key, value)) = items.next_entry::<String, Json>()? {
            match places.get(&key) {
                Some(&place) => entries[place].1 = value,
                None => {
                    places.insert(key.clone(), entries.len());
                    entries.push((key, value));
                }
            }
        }
        match &entries[..] {
            [(key, Json::Text(number))] if key == NUMBER => number.parse().map(Json::Float).map_err(A::Error::custom),
            _ => Ok(Json::Object(entries)),
        }
    }
}

impl<'de> Deserializer<'de> for Json {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Null => visitor.visit_unit(),
            Self::Bool(value) => visitor.visit_bool(value),
            Self::Int(value) => visitor.visit_i64(value),
            Self::Uint(value) => visitor.visit_u64(value),
            Self::Float(value) => visitor.visit_f64(value),
            Self::Text(value) => visitor.visit_string(value),
            Self::List(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter())),
            Self::Object(entries) => visitor.visit_map(MapDeserializer::new(entries.into_iter())),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self == Self::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    /// Only variants without values occur in a model's files.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Self::Text(variant) => {
                IntoDeserializer::<Error>::into_deserializer(variant).deserialize_enum(name, variants, visitor)
            }
            other => other.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

impl IntoDeserializer<'_, Error> for Json {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Sample {
        range: f64,
        #[serde(default)]
        name: Option<String>,
        #[serde(default)]
        kind: Option<Kind>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        First,
    }

    #[test]
    fn non_finite_numbers_are_read_as_python_does() {
        for (text, expected) in [
            ("Infinity", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
            ("1e999", f64::INFINITY),
            ("-1e999", f64::NEG_INFINITY),
            ("2", 2.0),
            ("-2.5e-3", -2.5e-3),
        ] {
            let sample: Sample = from_str(&format!("{{\"range\":{text}}}")).unwrap();
            assert_eq!(sample.range, expected, "{text}");
        }
        assert!(from_str::<Sample>(r#"{"range": NaN}"#).unwrap().range.is_nan());
        let lists: BTreeMap<String, Vec<f64>> = from_str(r#"{"a": [1, Infinity,-Infinity , 2]}"#).unwrap();
        assert_eq!(lists["a"], [1.0, f64::INFINITY, f64::NEG_INFINITY, 2.0]);
    }

    #[test]
    fn the_last_of_equal_keys_counts() {
        let sample: Sample =
            from_str(r#"{"range": 1, "name": "a", "kind": "first", "name": null, "range": 2}"#).unwrap();
        assert_eq!(sample, Sample { range: 2.0, name: None, kind: Some(Kind::First) });
        let Json::Object(entries) = Json::parse(r#"{"b": 1, "a": 2, "b": 3}"#).unwrap() else { panic!("no object") };
        assert_eq!(entries, [("b".into(), Json::Int(3)), ("a".into(), Json::Int(2))]);
    }

    #[test]
    fn strings_stay_as_they_are() {
        for text in [r"NaN", r"a \u0022 Infinity", r#"a \" NaN \\"#, r"-Infinity, 1e999", r"é NaN 😀"] {
            let whole = format!(r#"{{"name": "{text}", "range": Infinity, "NaN": "{text}"}}"#);
            let plain: Sample = serde_json::from_str(&whole.replace("Infinity, \"NaN\"", "1, \"NaN\"")).unwrap();
            let sample: Sample = from_str(&whole).unwrap();
            assert_eq!((sample.name, sample.range), (plain.name, f64::INFINITY), "{text}");
        }
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in [
            "",
            "{",
            "{\"range\": }",
            "{\"range\": nan}",
            "{\"range\": infinity}",
            "{\"range\": -NaN}",
            "{\"range\": +Infinity}",
            "{\"range\": Infinity1}",
            "{\"range\": 1 Infinity}",
            "{NaN: 1, \"range\": 1}",
            "{\"range\": \"Infinity\"}",
            "{\"range\": Infinity",
            "{\"range\": Infinity, \"name\": \"a",
            "{\"range\": 1,}",
            "{\"range\": 0x1}",
            "[Infinity",
        ] {
            assert!(from_str::<Sample>(text).is_err(), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(Json::parse(&deep).is_err());
        let error = from_str::<Sample>("{\n\"range\": \n}").unwrap_err();
        assert_eq!((error.line(), error.is_syntax()), (3, true), "it says where");
    }
}
