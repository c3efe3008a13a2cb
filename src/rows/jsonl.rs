//! JSON Lines: an object a line.

use super::field::{Extras, Field, FieldNames, RecordBuilder, Scalar, shorten};
use super::format::PromptFormat;
use super::input::Text;
use super::lines;
use super::record::{PromptRecord, PromptRows};
use crate::text::list;
use anyhow::Result as AnyResult;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use std::fmt;

pub(super) static JSONL: PromptFormat = PromptFormat {
    name: "jsonl",
    extensions: &["jsonl", "ndjson"],
    has_columns: true,
    has_header: false,
    open: |input, options, notices| rows(input.text(notices)?, options.prompt_column.as_deref(), options.extras),
};

/// The key of the prompts is `wanted`; without it `prompt`, or if the first object lacks that, its only key with a text
/// that is not a setting.
fn rows(text: Text, wanted: Option<&str>, extras: Extras) -> AnyResult<PromptRows> {
    let (name, notices) = (text.name.clone(), text.notices.clone());
    let note = move |key: &str| notices.note(format!("the prompts of {name} have the key {:?}", shorten(key)));
    let mut key = wanted.map(str::to_string);
    key.iter().for_each(|key| note(key));
    let advice = if wanted.is_some() { "" } else { "; name the key with --prompt-column" };
    lines::rows(text, move |line, _| {
        let parse = |line: &str, key: &str, advice: &str| parse(line, FieldNames { prompt: key, extras }, advice);
        if let Some(key) = &key {
            return parse(line, key, advice);
        }
        let candidates = Candidates::of(line, extras);
        if let Some(prompt_key) = candidates.prompt_key() {
            note(&prompt_key);
            return parse(line, key.insert(prompt_key), advice);
        }
        if candidates.count > 1 {
            // An ambiguous object settles it: no later one may change which key is read.
            key = Some(Field::Prompt.name().into());
        }
        let only =
            if candidates.keys.is_empty() { String::new() } else { format!(", only {}", list(&candidates.keys)) };
        parse(line, Field::Prompt.name(), &format!("{only}{advice}"))
    })
}

/// Parses the object on a line, whose keys have these names.
///
/// # Errors
/// What is wrong with the line; if the prompt is missing, with `advice` at the end.
fn parse(line: &str, names: FieldNames, advice: &str) -> Result<PromptRecord, String> {
    let mut builder = RecordBuilder::new(names);
    let mut deserializer = serde_json::Deserializer::from_str(line);
    let parsed = Object(&mut builder).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    parsed.map_err(|error| reason(&error))?;
    builder.finish().map_err(|reason| reason + advice)
}

/// The values of an object that may be its prompt: texts that are not a setting.
#[derive(Default)]
struct Candidates {
    extras: Extras,
    has_prompt: bool,
    /// Their keys, quoted; no more than a message shows.
    keys: Vec<String>,
    last: Option<String>,
    count: usize,
}

impl Candidates {
    fn of(line: &str, extras: Extras) -> Self {
        let mut candidates = Self { extras, ..Self::default() };
        // An error comes up again when the line is parsed.
        let _ = serde_json::Deserializer::from_str(line).deserialize_map(&mut candidates);
        candidates
    }

    /// The key of the prompts, if it is not ambiguous.
    fn prompt_key(&self) -> Option<String> {
        if self.has_prompt {
            return Some(Field::Prompt.name().into());
        }
        self.last.clone().filter(|_| self.count == 1)
    }
}

impl<'de> Visitor<'de> for &mut Candidates {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<String, Scalar>()? {
            self.has_prompt |= key == Field::Prompt.name();
            let is_setting = Field::setting(&key, self.extras).is_some();
            if matches!(value, Scalar::Text(_)) && key != Field::Prompt.name() && !is_setting {
                self.count += 1;
                if self.count <= 9 {
                    self.keys.push(format!("{:?}", shorten(&key)));
                    self.last = Some(key);
                }
            }
        }
        Ok(())
    }
}

/// The error without its line number, which counts within the line.
fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    let prefix = if error.classify() == Category::Data { "" } else { "the line is not a JSON object: " };
    format!("{prefix}{message} (column {})", error.column())
}

/// Sets a record's fields from an object. Other keys are ignored.
struct Object<'b, 'a>(&'b mut RecordBuilder<'a>);

impl<'de> DeserializeSeed<'de> for Object<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an object with {:?}", self.0.names().prompt)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.0.names().field(&key) {
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

/// Reads any value. The elements of a list or object are skipped, so that they take no memory.
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
    use super::*;
    use crate::rows::tests::read_with;

    fn parse(line: &str, prompt: &str, advice: &str) -> Result<PromptRecord, String> {
        super::parse(line, FieldNames { prompt, extras: Extras { images: true, noise: true } }, advice)
    }

    fn reason(line: &str) -> String {
        parse(line, "prompt", "").unwrap_err()
    }

    #[test]
    fn an_object_is_a_record() {
        let line = r#"{"url": ["x", {"y": 1}], "prompt": "a \u00e9\u0000", "id": 7, "negative_prompt": "", "seed":
            18446744073709551615, "guidance_scale": 3, "steps": 2147483647, "samples": 1}"#;
        let expected = PromptRecord {
            image: None,
            noise: None,
            condition: None,
            picture: None,
            id: Some("7".into()),
            prompt: "a é\0".into(),
            negative_prompt: Some(String::new()),
            seed: Some(u64::MAX),
            guidance_scale: Some(3.0),
            steps: Some(2_147_483_647),
            samples: Some(1),
        };
        assert_eq!(parse(line, "prompt", "").unwrap(), expected);
        assert_eq!(parse(r#"{"text": "a", "prompt": 5}"#, "text", "").unwrap(), PromptRecord::new("a"));
        assert_eq!(parse(r#"{"prompt": "", "id": null, "seed": null}"#, "prompt", "").unwrap(), PromptRecord::new(""));
        assert_eq!(parse(r#"{"prompt": "a", "id": -5}"#, "prompt", "").unwrap().id.unwrap(), "-5");
    }

    #[test]
    fn a_value_of_a_wrong_type_or_size_is_refused() {
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
        assert!(reason.starts_with("\"prompt\" must be text, not a list (column "), "{reason}");
    }

    #[test]
    fn a_line_that_is_not_an_object_with_a_prompt_is_refused() {
        assert_eq!(reason("{}"), "there is no \"prompt\"");
        assert_eq!(reason(r#"{"prompt": null}"#), "there is no \"prompt\"");
        assert!(reason(r#"{"prompt": "a", "prompt": "b"}"#).starts_with("\"prompt\" is there twice"));
        for line in ["[1]", "\"a\"", "7", "null"] {
            assert!(reason(line).contains("expected an object with \"prompt\""), "{line}: {}", reason(line));
        }
        for line in ["{", "{\"prompt\": \"a\"", "{\"prompt\": \"a\"} x", "a red apple", "{'prompt': 'a'}"] {
            assert!(reason(line).starts_with("the line is not a JSON object: "), "{line}: {}", reason(line));
        }
        assert!(reason(r#"{"prompt": "\ud800"}"#).starts_with("the line is not a JSON object: "));
        assert!(reason(r#"{"prompt": "a", "guidance_scale": 1e999}"#).contains("number out of range"));
        assert!(reason("{]").ends_with("(column 2)"), "{}", reason("{]"));
    }

    #[test]
    fn deeply_nested_values_are_skipped() {
        let nested = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        let line = |key: &str| format!(r#"{{"prompt": "a", "{key}": {nested}}}"#);
        assert_eq!(parse(&line("other"), "prompt", "").unwrap(), PromptRecord::new("a"));
        assert!(reason(&line("id")).contains("not a list (column "), "{}", reason(&line("id")));
        assert!(reason(&line("id")[..1_000_000]).starts_with("the line is not a JSON object: "));
    }

    #[test]
    fn a_bad_line_is_a_bad_row() {
        let text = b"{\"prompt\": \"a\"}\r\n\n \t\n{\"prompt\": \"\xff\"}\n[]\n{\"prompt\": \"b\"}".to_vec();
        let read = read_with(text, &JSONL, None);
        assert_eq!(read[0], "line 1: a");
        assert_eq!(read[1], "line 4: !the line is not UTF-8 from byte 13 on; convert the file");
        assert!(read[2].starts_with("line 5: !invalid type: sequence"), "{read:?}");
        assert_eq!(read[3..], ["line 6: b"]);
    }
}
