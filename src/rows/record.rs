//! What rows of every format are made of: fields, their values, and what is right in which.

use super::PromptRecord;
use crate::error;
use std::fmt;

/// A field of a [`PromptRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Prompt,
    Id,
    NegativePrompt,
    Seed,
    GuidanceScale,
    Steps,
    Samples,
}

impl Field {
    /// The fields that a row may leave out.
    pub(super) const OPTIONAL: [Self; 6] =
        [Self::Id, Self::NegativePrompt, Self::Seed, Self::GuidanceScale, Self::Steps, Self::Samples];

    /// The key or column that holds it; the prompt's may be another.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Id => "id",
            Self::NegativePrompt => "negative_prompt",
            Self::Seed => "seed",
            Self::GuidanceScale => "guidance_scale",
            Self::Steps => "steps",
            Self::Samples => "samples",
        }
    }

    /// The field that the key or column `name` holds, in a file with its prompts in `prompt_name`.
    pub(super) fn of_name(name: &str, prompt_name: &str) -> Option<Self> {
        if name == prompt_name {
            return Some(Self::Prompt);
        }
        Self::OPTIONAL.into_iter().find(|field| field.name() == name)
    }

    pub(super) fn is_text(self) -> bool {
        matches!(self, Self::Prompt | Self::Id | Self::NegativePrompt)
    }
}

/// A value as a file holds it, of whatever type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float {
        value: f64,
        /// Bits of the type that it was stored in: whole numbers of more may be rounded ones.
        bits: u32,
    },
    Text(String),
    /// Something else that has a usual form as text, which may be that of a number.
    Written(String),
    /// Something with parts, in words.
    Compound(&'static str),
}

impl Scalar {
    /// A cell of a format in which everything is text; empty is no value, except for the prompt.
    pub(super) fn of_cell(field: Field, cell: &str) -> Self {
        if cell.is_empty() && field != Field::Prompt {
            return Self::Null;
        }
        if field.is_text() { Self::Text(cell.into()) } else { Self::of_number(cell) }
    }

    /// A number that is written out, or the text that it is not.
    fn of_number(text: &str) -> Self {
        let number = text.trim();
        if let Ok(number) = number.parse() {
            Self::Unsigned(number)
        } else if let Ok(number) = number.parse() {
            Self::Signed(number)
        } else if let Ok(number) = number.parse() {
            Self::double(number)
        } else {
            Self::Text(text.into())
        }
    }

    /// A number of double precision.
    pub(super) fn double(value: f64) -> Self {
        Self::Float { value, bits: f64::MANTISSA_DIGITS }
    }

    /// The whole number that it is, also where it is stored as a float, as tools do that have no whole numbers beside
    /// missing ones. One that a float may have been rounded to is none.
    fn whole(self) -> Self {
        match self {
            Self::Float { value, bits } if value.fract() == 0.0 && value.abs() < (1_u64 << bits) as f64 => {
                if value < 0.0 { Self::Signed(value as i64) } else { Self::Unsigned(value as u64) }
            }
            value => value,
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => write!(formatter, "null"),
            Self::Bool(value) => write!(formatter, "{value}"),
            Self::Unsigned(value) => write!(formatter, "{value}"),
            Self::Signed(value) => write!(formatter, "{value}"),
            // As {:?} writes it, 7.0 is not mistaken for 7.
            Self::Float { value, .. } => write!(formatter, "{value:?}"),
            Self::Text(value) => write!(formatter, "{:?}", shorten(value)),
            Self::Written(value) => write!(formatter, "{value}"),
            Self::Compound(words) => write!(formatter, "{words}"),
        }
    }
}

/// The start of a text, for a message.
pub(super) fn shorten(text: &str) -> String {
    error::shorten(text, 40)
}

/// A record that is a prompt and nothing else.
pub(super) fn of_prompt(prompt: &str) -> PromptRecord {
    PromptRecord { prompt: prompt.into(), ..PromptRecord::default() }
}

/// A record in the making, value by value.
pub(super) struct Draft<'a> {
    prompt_name: &'a str,
    record: PromptRecord,
    has_prompt: bool,
    /// The fields that were set, null or not.
    seen: Vec<Field>,
}

impl<'a> Draft<'a> {
    /// An empty one; `prompt_name` is what the file calls the prompt.
    pub(super) fn new(prompt_name: &'a str) -> Self {
        Self { prompt_name, record: PromptRecord::default(), has_prompt: false, seen: Vec::new() }
    }

    /// What the file calls its prompts.
    pub(super) fn prompt_name(&self) -> &'a str {
        self.prompt_name
    }

    /// Sets a field, or says what is wrong with its value.
    pub(super) fn set(&mut self, field: Field, value: Scalar) -> Result<(), String> {
        const LARGEST_COUNT: u64 = i32::MAX as u64;
        let name = if field == Field::Prompt { self.prompt_name } else { field.name() };
        if self.seen.contains(&field) {
            return Err(format!("{:?} is there twice", shorten(name)));
        }
        self.seen.push(field);
        let record = &mut self.record;
        let value = match value {
            Scalar::Written(text) if !field.is_text() => Scalar::of_number(&text),
            value => value,
        };
        match (field, value) {
            (_, Scalar::Null) => {}
            (Field::Prompt, value) => {
                record.prompt = text(name, value)?.into();
                self.has_prompt = true;
            }
            (Field::Id, Scalar::Text(text) | Scalar::Written(text)) => record.id = Some(text),
            (Field::Id, value) => match value.whole() {
                Scalar::Unsigned(number) => record.id = Some(number.to_string()),
                Scalar::Signed(number) => record.id = Some(number.to_string()),
                value => return Err(wrong(name, "a text or a whole number", &value)),
            },
            (Field::NegativePrompt, value) => record.negative_prompt = Some(text(name, value)?),
            (Field::Seed, value) => record.seed = Some(whole(name, value, 0, u64::MAX)?),
            (Field::GuidanceScale, value) => record.guidance_scale = Some(number(name, value)?),
            (Field::Steps, value) => record.steps = Some(whole(name, value, 1, LARGEST_COUNT)? as usize),
            (Field::Samples, value) => record.samples = Some(whole(name, value, 1, LARGEST_COUNT)? as usize),
        }
        Ok(())
    }

    /// The record, if it has what it needs.
    pub(super) fn finish(self) -> Result<PromptRecord, String> {
        if self.has_prompt { Ok(self.record) } else { Err(format!("there is no {:?}", shorten(self.prompt_name))) }
    }
}

fn text(name: &str, value: Scalar) -> Result<String, String> {
    match value {
        Scalar::Text(text) => Ok(text),
        value => Err(wrong(name, "a text", &value)),
    }
}

fn whole(name: &str, value: Scalar, least: u64, largest: u64) -> Result<u64, String> {
    match value.whole() {
        Scalar::Unsigned(number) if (least..=largest).contains(&number) => Ok(number),
        value => Err(wrong(name, &format!("a whole number between {least} and {largest}"), &value)),
    }
}

fn number(name: &str, value: Scalar) -> Result<f64, String> {
    match value {
        Scalar::Unsigned(number) => Ok(number as f64),
        Scalar::Signed(number) => Ok(number as f64),
        Scalar::Float { value, .. } if value.is_finite() => Ok(value),
        value => Err(wrong(name, "a number", &value)),
    }
}

fn wrong(name: &str, needed: &str, value: &Scalar) -> String {
    let rounded = match value {
        Scalar::Float { value, .. } if value.fract() == 0.0 => ", a float too large to be exact",
        _ => "",
    };
    format!("{:?} must be {needed}, and it is {value}{rounded}", shorten(name))
}
