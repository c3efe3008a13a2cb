//! JSON Lines: an object a line.

use super::record::{Draft, Field, Scalar, shorten};
use super::source::Text;
use super::{PromptRecord, Rows, lines};
use crate::error::some_of;
use anyhow::Result as AnyResult;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use std::fmt;

/// The rows of `text`, whose prompts have the key `wanted`. Without it that is `prompt`, or if the first object has none,
/// its only key with a text that means nothing else.
///
/// # Errors
/// [`crate::error::BadInput`] if the text cannot be read.
pub(super) fn rows(text: Text, wanted: Option<&str>) -> AnyResult<Rows> {
    let (name, notices) = (text.name.clone(), text.notices.clone());
    let told = move |key: &str| notices.note(format!("the prompts of {name} have the key {:?}", shorten(key)));
    let mut key = wanted.map(str::to_string);
    key.iter().for_each(|key| told(key));
    let advice = if wanted.is_some() { "" } else { "; name the key with --prompt-column" };
    lines::rows(text, move |line, _| {
        if let Some(key) = &key {
            return parse(line, key, advice);
        }
        let found = Texts::of(line);
        if let Some(prompt_key) = found.prompt_key() {
            told(&prompt_key);
            return parse(line, key.insert(prompt_key), advice);
        }
        if found.count > 1 {
            // No later line decides what an earlier one left in doubt.
            key = Some(Field::Prompt.name().into());
        }
        let only = if found.keys.is_empty() { String::new() } else { format!(", only {}", some_of(&found.keys)) };
        parse(line, Field::Prompt.name(), &format!("{only}{advice}"))
    })
}

/// The record on a line, whose prompt has the key `prompt_key`, or what is wrong with it; if the prompt is missing, with
/// `advice` behind it.
fn parse(line: &str, prompt_key: &str, advice: &str) -> Result<PromptRecord, String> {
    let mut draft = Draft::new(prompt_key);
    let mut deserializer = serde_json::Deserializer::from_str(line);
    let parsed = Object(&mut draft).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    parsed.map_err(|error| reason(&error))?;
    draft.finish().map_err(|reason| reason + advice)
}

/// The texts of an object that may be its prompt.
#[derive(Default)]
struct Texts {
    has_prompt: bool,
    /// Their keys, quoted, as many as a message shows.
    keys: Vec<String>,
    only: Option<String>,
    count: usize,
}

impl Texts {
    /// Those on a line, as far as it is an object.
    fn of(line: &str) -> Self {
        let mut texts = Self::default();
        // What is wrong with the line will be seen when it is parsed.
        let _ = serde_json::Deserializer::from_str(line).deserialize_map(&mut texts);
        texts
    }

    /// The key of the prompts of a file with such a first line.
    fn prompt_key(&self) -> Option<String> {
        if self.has_prompt {
            return Some(Field::Prompt.name().into());
        }
        self.only.clone().filter(|_| self.count == 1)
    }
}

impl<'de> Visitor<'de> for &mut Texts {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<String, Scalar>()? {
            self.has_prompt |= key == Field::Prompt.name();
            if matches!(value, Scalar::Text(_)) && Field::of_name(&key, Field::Prompt.name()).is_none() {
                self.count += 1;
                if self.count <= 9 {
                    self.keys.push(format!("{:?}", shorten(&key)));
                    self.only = Some(key);
                }
            }
        }
        Ok(())
    }
}

/// The error in words. Of its place only the column is of use: the line is the file's.
fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    let prefix = if error.classify() == Category::Data { "" } else { "the line is no JSON object: " };
    format!("{prefix}{message} (column {})", error.column())
}

/// Fills a record from an object. Keys without a meaning here are passed over.
struct Object<'d, 'a>(&'d mut Draft<'a>);

impl<'de> DeserializeSeed<'de> for Object<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an object with {:?}", self.0.prompt_name())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match Field::of_name(&key, self.0.prompt_name()) {
                Some(field) => self.0.set(field, map.next_value()?).map_err(A::Error::custom)?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// Takes any value. One with parts is passed over, so that it takes no memory however large it is.
struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Scalar, E> {
        Ok(Scalar::Unsigned(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Scalar, E> {
        Ok(Scalar::Signed(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Scalar, E> {
        Ok(Scalar::double(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(value.into()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Scalar, E> {
        Ok(Scalar::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Scalar, A::Error> {
        while sequence.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Compound("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Compound("an object"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::PromptFormat::JsonLines;
    use super::super::record::of_prompt;
    use super::super::tests::read_with;
    use super::*;

    fn reason(line: &str) -> String {
        parse(line, "prompt", "").unwrap_err()
    }

    #[test]
    fn an_object_is_a_record() {
        let line = r#"{"url": ["x", {"y": 1}], "prompt": "a \u00e9\u0000", "id": 7, "negative_prompt": "", "seed":
            18446744073709551615, "guidance_scale": 3, "steps": 2147483647, "samples": 1}"#;
        let expected = PromptRecord {
            id: Some("7".into()),
            prompt: "a é\0".into(),
            negative_prompt: Some(String::new()),
            seed: Some(u64::MAX),
            guidance_scale: Some(3.0),
            steps: Some(2_147_483_647),
            samples: Some(1),
        };
        assert_eq!(parse(line, "prompt", "").unwrap(), expected);
        assert_eq!(parse(r#"{"text": "a", "prompt": 5}"#, "text", "").unwrap(), of_prompt("a"));
        assert_eq!(parse(r#"{"prompt": "", "id": null, "seed": null}"#, "prompt", "").unwrap(), of_prompt(""));
        assert_eq!(parse(r#"{"prompt": "a", "id": -5}"#, "prompt", "").unwrap().id.unwrap(), "-5");
    }

    #[test]
    fn a_value_of_a_wrong_type_or_size_is_named() {
        for (key, wrong) in [
            ("seed", vec!["-1", "7.5", "18446744073709551616", "\"7\"", "true", "[1]", "{}"]),
            ("steps", vec!["0", "2147483648", "-1", "1.5", "\"10\""]),
            ("samples", vec!["0", "{\"a\": 1}"]),
            ("guidance_scale", vec!["\"4\"", "false", "[]"]),
            ("negative_prompt", vec!["1", "[\"a\"]"]),
            ("id", vec!["1.5", "true", "[]"]),
        ] {
            for value in wrong {
                let reason = reason(&format!(r#"{{"prompt": "a", "{key}": {value}}}"#));
                assert!(reason.starts_with(&format!("\"{key}\" must be ")), "{key} {value}: {reason}");
            }
        }
        let reason = reason(r#"{"prompt": ["a"]}"#);
        assert!(reason.starts_with("\"prompt\" must be a text, and it is a list (column "), "{reason}");
    }

    #[test]
    fn what_is_no_object_with_a_prompt_is_named() {
        assert_eq!(reason("{}"), "there is no \"prompt\"");
        assert_eq!(reason(r#"{"prompt": null}"#), "there is no \"prompt\"");
        assert!(reason(r#"{"prompt": "a", "prompt": "b"}"#).starts_with("\"prompt\" is there twice"));
        for line in ["[1]", "\"a\"", "7", "null"] {
            assert!(reason(line).contains("expected an object with \"prompt\""), "{line}: {}", reason(line));
        }
        for line in ["{", "{\"prompt\": \"a\"", "{\"prompt\": \"a\"} x", "a red apple", "{'prompt': 'a'}"] {
            assert!(reason(line).starts_with("the line is no JSON object: "), "{line}: {}", reason(line));
        }
        assert!(reason(r#"{"prompt": "\ud800"}"#).starts_with("the line is no JSON object: "));
        assert!(reason(r#"{"prompt": "a", "guidance_scale": 1e999}"#).contains("number out of range"));
        assert!(reason("{]").ends_with("(column 2)"), "{}", reason("{]"));
    }

    #[test]
    fn values_that_nest_deeply_are_passed_over() {
        let nested = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        let line = |key: &str| format!(r#"{{"prompt": "a", "{key}": {nested}}}"#);
        assert_eq!(parse(&line("other"), "prompt", "").unwrap(), of_prompt("a"));
        assert!(reason(&line("id")).contains("and it is a list (column "), "{}", reason(&line("id")));
        assert!(reason(&line("id")[..1_000_000]).starts_with("the line is no JSON object: "));
    }

    #[test]
    fn a_bad_line_is_named_and_the_next_one_read() {
        let text = b"{\"prompt\": \"a\"}\r\n\n \t\n{\"prompt\": \"\xff\"}\n[]\n{\"prompt\": \"b\"}".to_vec();
        let read = read_with(text, JsonLines, None);
        assert_eq!(read[0], "line 1: a");
        assert_eq!(read[1], "line 4: !the line is not UTF-8 from byte 13 on; convert the file");
        assert!(read[2].starts_with("line 5: !invalid type: sequence"), "{read:?}");
        assert_eq!(read[3..], ["line 6: b"]);
    }
}
