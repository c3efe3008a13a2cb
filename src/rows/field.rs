//! The fields of a row and their values, the same in every format: which types and ranges are valid for which field.

use super::item::Item;
use super::record::{GivenNoise, PromptRecord};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
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
    Image,
    NegativeSeed,
    Noise,
    NegativeNoise,
}

/// What the columns or keys of a file are called, as far as that is not fixed.
#[derive(Debug, Clone, Copy)]
pub(super) struct FieldNames<'a> {
    /// That of the prompts.
    pub(super) prompt: &'a str,
    /// The fields that count.
    pub(super) extras: Extras,
}

/// Fields that count only where they are asked for: many files of captions have columns of these names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extras {
    /// `image`.
    pub images: bool,
    /// `noise`, `negative_noise` and `negative_seed`.
    pub noise: bool,
}

impl FieldNames<'_> {
    /// The field of a column or key.
    pub(super) fn field(self, name: &str) -> Option<Field> {
        if name == self.prompt { Some(Field::Prompt) } else { Field::setting(name, self.extras) }
    }
}

impl Field {
    /// The fields that a row may leave out: its settings.
    pub(super) const SETTINGS: [Self; 10] = [
        Self::Id,
        Self::NegativePrompt,
        Self::Seed,
        Self::GuidanceScale,
        Self::Steps,
        Self::Samples,
        Self::Image,
        Self::NegativeSeed,
        Self::Noise,
        Self::NegativeNoise,
    ];

    /// The name of its key or column; that of the prompt is only a default.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Id => "id",
            Self::NegativePrompt => "negative_prompt",
            Self::Seed => "seed",
            Self::GuidanceScale => "guidance_scale",
            Self::Steps => "steps",
            Self::Samples => "samples",
            Self::Image => "image",
            Self::NegativeSeed => "negative_seed",
            Self::Noise => "noise",
            Self::NegativeNoise => "negative_noise",
        }
    }

    /// The setting of the key or column `name`.
    pub(super) fn setting(name: &str, extras: Extras) -> Option<Self> {
        Self::SETTINGS.into_iter().find(|field| field.name() == name && field.counts(extras))
    }

    fn counts(self, extras: Extras) -> bool {
        match self {
            Self::Image => extras.images,
            Self::NegativeSeed | Self::Noise | Self::NegativeNoise => extras.noise,
            _ => true,
        }
    }

    pub(super) fn is_text(self) -> bool {
        matches!(self, Self::Prompt | Self::Id | Self::NegativePrompt | Self::Image | Self::Noise | Self::NegativeNoise)
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
        /// Bits of the stored type's mantissa: a larger whole number may have been rounded.
        bits: u32,
    },
    Text(String),
    /// Another type (a decimal, a date) in its usual notation, which may be that of a number.
    Written(String),
    /// Not a single value: a description of what it is.
    Compound(&'static str),
}

impl Scalar {
    /// A cell of a text format. An empty one is no value, except for the prompt.
    pub(super) fn of_cell(field: Field, cell: &str) -> Self {
        if cell.is_empty() && field != Field::Prompt {
            return Self::Null;
        }
        if field.is_text() { Self::Text(cell.into()) } else { Self::of_number(cell) }
    }

    /// The number in `text`, or `text` itself if it holds none.
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

    pub(super) fn double(value: f64) -> Self {
        Self::Float { value, bits: f64::MANTISSA_DIGITS }
    }

    /// Turns a float that is a whole number into one: pandas stores a column of integers with missing values as floats.
    /// One that may have been rounded stays a float.
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
            // {:?} writes 7.0, which {} would write as 7.
            Self::Float { value, .. } => write!(formatter, "{value:?}"),
            Self::Text(value) => write!(formatter, "{:?}", shorten(value)),
            Self::Written(value) => write!(formatter, "{value}"),
            Self::Compound(words) => write!(formatter, "{words}"),
        }
    }
}

/// The start of a name or value, for a message.
pub(super) fn shorten(text: &str) -> String {
    crate::text::shorten(text, 40)
}

/// Builds a [`PromptRecord`] field by field.
pub(super) struct RecordBuilder<'a> {
    names: FieldNames<'a>,
    record: PromptRecord,
    has_prompt: bool,
    /// The fields that were set, null or not.
    seen: Vec<Field>,
}

impl<'a> RecordBuilder<'a> {
    /// `names` are the file's.
    pub(super) fn new(names: FieldNames<'a>) -> Self {
        Self { names, record: PromptRecord::default(), has_prompt: false, seen: Vec::new() }
    }

    pub(super) fn names(&self) -> FieldNames<'a> {
        self.names
    }

    /// Sets a field.
    ///
    /// # Errors
    /// What is wrong with the value, or that the field is there twice.
    pub(super) fn set(&mut self, field: Field, value: Scalar) -> Result<(), String> {
        const MAX_COUNT: u64 = i32::MAX as u64;
        let name = if field == Field::Prompt { self.names.prompt } else { field.name() };
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
                value => return Err(wrong(name, "text or a whole number", &value)),
            },
            (Field::NegativePrompt, value) => record.negative_prompt = Some(text(name, value)?),
            (Field::Seed, value) => record.seed = Some(whole(name, value, 0, u64::MAX)?),
            (Field::GuidanceScale, value) => record.guidance_scale = Some(number(name, value)?),
            (Field::Steps, value) => record.steps = Some(whole(name, value, 1, MAX_COUNT)? as usize),
            (Field::Image, value) => {
                let image = Item::parse_image(&text(name, value)?);
                record.image = Some(Box::new(image.map_err(|reason| format!("{name:?}: {reason}"))?));
            }
            (Field::NegativeSeed, value) => noise(record).negative_seed = Some(whole(name, value, 0, u64::MAX)?),
            (Field::Noise, value) => noise(record).image = Some(floats(name, value)?),
            (Field::NegativeNoise, value) => noise(record).negative = Some(floats(name, value)?),
            (Field::Samples, value) => record.samples = Some(whole(name, value, 1, MAX_COUNT)? as usize),
        }
        Ok(())
    }

    /// The record.
    ///
    /// # Errors
    /// That it has no prompt.
    pub(super) fn finish(self) -> Result<PromptRecord, String> {
        if self.has_prompt { Ok(self.record) } else { Err(format!("there is no {:?}", shorten(self.names.prompt))) }
    }
}

fn noise(record: &mut PromptRecord) -> &mut GivenNoise {
    record.noise.get_or_insert_default()
}

/// The numbers in base64 of little-endian float32.
fn floats(name: &str, value: Scalar) -> Result<Vec<f32>, String> {
    let text = text(name, value)?;
    let bytes = BASE64_STANDARD.decode(text).map_err(|error| format!("{name:?} is not base64: {error}"))?;
    let (numbers, []) = bytes.as_chunks::<4>() else {
        return Err(format!("{name:?} has {} bytes, which are no float32 numbers", bytes.len()));
    };
    let numbers: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match numbers.iter().find(|number| !number.is_finite()) {
        Some(number) => Err(format!("{name:?} holds {number}; give finite numbers")),
        None => Ok(numbers),
    }
}

fn text(name: &str, value: Scalar) -> Result<String, String> {
    match value {
        Scalar::Text(text) => Ok(text),
        value => Err(wrong(name, "text", &value)),
    }
}

fn whole(name: &str, value: Scalar, min: u64, max: u64) -> Result<u64, String> {
    match value.whole() {
        Scalar::Unsigned(number) if (min..=max).contains(&number) => Ok(number),
        value => Err(wrong(name, &format!("a whole number between {min} and {max}"), &value)),
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

fn wrong(name: &str, expected: &str, value: &Scalar) -> String {
    let rounded = match value {
        Scalar::Float { value, .. } if value.fract() == 0.0 => ", a float too large to be exact",
        _ => "",
    };
    format!("{:?} must be {expected}, not {value}{rounded}", shorten(name))
}
