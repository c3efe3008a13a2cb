//! Reads the body of a request.

use super::failure::{Failure, Kind};
use super::options::Limits;
use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, SeqAccess, Visitor};
use std::fmt;
use std::time::Duration;
use tokio::time::timeout;

/// Reads JSON.
///
/// # Errors
/// If it is not said to be JSON, too long, too slow, or not a `T`.
pub(super) async fn read<T: DeserializeOwned>(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<T, Failure> {
    check_type(headers)?;
    let bytes = read_bytes(headers, body, limits).await?;
    parse(&bytes)
}

/// A browser asks before it sends JSON to another site, so no page can use a server on the user's own machine.
fn check_type(headers: &HeaderMap) -> Result<(), Failure> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = essence == "application/json" || essence.starts_with("application/") && essence.ends_with("+json");
    let wrong = || Failure::new(Kind::MediaType, "the body must be JSON; send Content-Type: application/json");
    if is_json { Ok(()) } else { Err(wrong()) }
}

async fn read_bytes(headers: &HeaderMap, mut body: Body, limits: &Limits) -> Result<Bytes, Failure> {
    let max = limits.body_bytes;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let is_too_large = length.is_some_and(|length| length > max as u64);
    let seconds = limits.timeout.as_secs_f64();
    let late = |_| Failure::new(Kind::Timeout, format!("the body did not come within {seconds} s"));
    let read = match is_too_large {
        true => Err(None),
        false => timeout(limits.timeout, Limited::new(&mut body, max).collect()).await.map_err(late)?.map_err(Some),
    };
    match read {
        Ok(read) => Ok(read.to_bytes()),
        Err(Some(error)) if !error.is::<LengthLimitError>() => Err(Failure::new(Kind::Syntax, "the body ends early")),
        Err(_) => {
            discard(headers, length, body).await;
            Err(Failure::new(Kind::BodyTooLarge, format!("the body is larger than {max} bytes")))
        }
    }
}

/// Reads what is left of a body, within reason: while a client sends, it may not look for an answer, and the system drops
/// the answer if the connection is closed with something unread. A client that expects to be asked for the body is not.
async fn discard(headers: &HeaderMap, length: Option<u64>, mut body: Body) {
    const MAX_BYTES: u64 = 64 << 20;
    const MAX_TIME: Duration = Duration::from_secs(1);
    if headers.contains_key(header::EXPECT) || length.is_some_and(|length| length > MAX_BYTES) {
        return;
    }
    let mut rest = Limited::new(&mut body, MAX_BYTES as usize);
    let read = async { while let Some(Ok(_)) = rest.frame().await {} };
    // What is left after that is not read.
    let _ = timeout(MAX_TIME, read).await;
}

/// Parses a body. Errors name the field.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    if let Err(error) = std::str::from_utf8(bytes) {
        let message = format!("the body is not UTF-8, from byte {} on", error.valid_up_to());
        return Err(Failure::new(Kind::Syntax, message));
    }
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut parser);
    let value = parsed.map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        if !error.is_data() {
            return Failure::new(Kind::Syntax, format!("the body is not valid JSON: {error}"));
        }
        let path = if path == "." || path == "?" { String::new() } else { path };
        let field = path.split(['[', '.']).next().unwrap_or_default().to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let reason = error.to_string();
        let reason = reason.strip_suffix(&place).unwrap_or(&reason);
        match field.is_empty() {
            true => Failure::new(Kind::Invalid, reason),
            false => Failure::of(field, format!("{path}: {reason}")),
        }
    })?;
    parser.end().map_err(|error| Failure::new(Kind::Syntax, format!("the body is not valid JSON: {error}")))?;
    Ok(value)
}

/// One text or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;

        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts::One(text.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(Text(text)) = items.next_element()? {
                    texts.push(text);
                }
                Ok(Texts::Many(texts))
            }
        }

        deserializer.deserialize_any(TextsVisitor)
    }
}

/// A text of a list, where OpenAI's clients may put token ids.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.into()))
            }

            fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Text, E> {
                Err(E::custom("token ids are of another vocabulary; send the text itself"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Text, A::Error> {
                Err(A::Error::custom("a list in a list, as of token ids; send the text itself"))
            }
        }

        deserializer.deserialize_any(TextVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields {
        #[allow(dead_code)]
        input: Texts,
        #[serde(default)]
        #[allow(dead_code)]
        seeds: Vec<u64>,
    }

    fn failure(bytes: &[u8]) -> (Kind, String, Option<String>) {
        let failure = parse::<Fields>(bytes).unwrap_err();
        (failure.kind, failure.message, failure.param)
    }

    #[test]
    fn errors_name_the_field() {
        for (body, param, words) in [
            (r#"{"input": ["a", 3]}"#, "input", "input[1]: token ids"),
            (r#"{"input": [[1, 2]]}"#, "input", "input[0]: a list in a list"),
            (r#"{"input": {"a": 1}}"#, "input", "input: invalid type: map, expected a string or a list of strings"),
            (r#"{"input": "a", "seeds": [1, -1]}"#, "seeds", "seeds[1]: invalid value: integer `-1`"),
            (r#"{"input": "a", "seeds": [1.5]}"#, "seeds", "seeds[0]: invalid type: floating point `1.5`"),
            (r#"{"input": "a", "seeds": [18446744073709551616]}"#, "seeds", "seeds[0]: invalid type"),
            (r#"{"input": "a", "sedes": [1]}"#, "sedes", "unknown field `sedes`"),
        ] {
            let (kind, message, found) = failure(body.as_bytes());
            assert_eq!((kind, found.as_deref()), (Kind::Invalid, Some(param)), "{body}: {message}");
            assert!(message.contains(words) && !message.contains("line 1"), "{body}: {message}");
        }
        let (kind, message, param) = failure(br#"{"seeds": [1]}"#);
        assert_eq!((kind, param), (Kind::Invalid, None));
        assert_eq!(message, "missing field `input`");
    }

    #[test]
    fn what_is_no_json_is_told_from_what_is_the_wrong_json() {
        let deep = format!(r#"{{"input": {}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let bodies = ["", "{", r#"{"input": "a"} x"#, r#"{"input": NaN}"#, "{\"input\": \"a\u{0}\"}"];
        for body in bodies {
            assert_eq!(failure(body.as_bytes()).0, Kind::Syntax, "{body}");
        }
        assert_eq!(failure(b"{\"input\": \"\xff\"}").1, "the body is not UTF-8, from byte 11 on");
        assert!(matches!(failure(deep.as_bytes()).0, Kind::Syntax | Kind::Invalid));
        assert_eq!(failure(b"[]").0, Kind::Invalid);
        assert_eq!(parse::<Fields>(br#"{"input": "a"}"#).unwrap().input, Texts::One("a".into()));
    }
}
