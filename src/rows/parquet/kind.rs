//! What stored values mean.

use crate::rows::record::{Field, Scalar};
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use half::f16;
use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type};
use parquet::data_type::Int96;
use parquet::schema::types::ColumnDescriptor;

/// Days from the first of January of the year 1 to that of 1970.
const EPOCH_DAYS: i32 = 719_163;

/// What a column's stored values mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Signed,
    Unsigned,
    Bool,
    Float,
    Half,
    /// A whole number over this power of ten.
    Decimal {
        scale: usize,
    },
    /// Polars' whole numbers of 128 bits, which Parquet has no type for.
    Int128,
    Uuid,
    /// Days since 1970.
    Date,
    /// So many times a second since midnight.
    Time {
        rate: u32,
    },
    /// So many times a second since 1970, of the clock on a wall or, with a zone, of UTC.
    Timestamp {
        rate: u32,
        has_zone: bool,
    },
}

impl Kind {
    /// The kind of a column's values, if they are of one that is read; `writer` is the program that wrote the file.
    pub(super) fn of(column: &ColumnDescriptor, writer: &str) -> Option<Self> {
        use ConvertedType as Meaning;
        let (stored, meaning) = (column.physical_type(), column.converted_type());
        match (stored, column.logical_type_ref()) {
            (Type::INT32 | Type::INT64 | Type::BYTE_ARRAY | Type::FIXED_LEN_BYTE_ARRAY, _)
                if meaning == Meaning::DECIMAL =>
            {
                Some(Self::Decimal { scale: column.type_scale().try_into().ok()? })
            }
            (Type::INT64, Some(LogicalType::Timestamp(time))) => {
                Some(Self::Timestamp { rate: rate(time.unit), has_zone: time.is_adjusted_to_u_t_c })
            }
            (Type::INT32 | Type::INT64, Some(LogicalType::Time(time))) => Some(Self::Time { rate: rate(time.unit) }),
            (Type::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Float16)) if column.type_length() == 2 => Some(Self::Half),
            (Type::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Uuid)) if column.type_length() == 16 => Some(Self::Uuid),
            (Type::FIXED_LEN_BYTE_ARRAY, None)
                if column.type_length() == 16 && meaning == Meaning::NONE && writer.starts_with("Polars") =>
            {
                Some(Self::Int128)
            }
            (Type::INT96, _) => Some(Self::Timestamp { rate: 1_000_000_000, has_zone: false }),
            // Some writers leave out that bytes are text.
            (Type::BYTE_ARRAY, _) => {
                matches!(meaning, Meaning::NONE | Meaning::UTF8 | Meaning::ENUM | Meaning::JSON).then_some(Self::Text)
            }
            (Type::BOOLEAN, _) => Some(Self::Bool),
            (Type::FLOAT | Type::DOUBLE, _) => Some(Self::Float),
            (Type::INT32 | Type::INT64, _) => match meaning {
                Meaning::UINT_8 | Meaning::UINT_16 | Meaning::UINT_32 | Meaning::UINT_64 => Some(Self::Unsigned),
                Meaning::NONE | Meaning::INT_8 | Meaning::INT_16 | Meaning::INT_32 | Meaning::INT_64 => {
                    Some(Self::Signed)
                }
                Meaning::DATE => Some(Self::Date),
                Meaning::TIME_MILLIS => Some(Self::Time { rate: 1_000 }),
                Meaning::TIME_MICROS => Some(Self::Time { rate: 1_000_000 }),
                Meaning::TIMESTAMP_MILLIS => Some(Self::Timestamp { rate: 1_000, has_zone: true }),
                Meaning::TIMESTAMP_MICROS => Some(Self::Timestamp { rate: 1_000_000, has_zone: true }),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether values of this kind may be right in a field. One of the wrong type may be named in its row.
    pub(super) fn suits(self, field: Field) -> bool {
        let has_only_text = matches!(self, Self::Uuid | Self::Date | Self::Time { .. } | Self::Timestamp { .. });
        !has_only_text || field == Field::Id
    }

    /// The value that is stored as a whole number.
    pub(super) fn of_whole(self, signed: i64, unsigned: u64) -> Scalar {
        let written = match self {
            Self::Unsigned => return Scalar::Unsigned(unsigned),
            Self::Decimal { scale } => Some(decimal(signed.into(), scale)),
            Self::Date => {
                let days = i32::try_from(signed).ok().and_then(|days| days.checked_add(EPOCH_DAYS));
                days.and_then(NaiveDate::from_num_days_from_ce_opt).map(|date| date.to_string())
            }
            Self::Time { rate } => time(signed, rate),
            Self::Timestamp { rate, has_zone } => timestamp(signed, rate, has_zone),
            _ => return u64::try_from(signed).map_or(Scalar::Signed(signed), Scalar::Unsigned),
        };
        written.map_or(Scalar::Compound("a date or time out of range"), Scalar::Written)
    }

    /// The value that is stored as bytes, if it is no text.
    pub(super) fn of_bytes(self, bytes: &[u8]) -> Scalar {
        match (self, bytes) {
            (Self::Half, &[low, high]) => {
                Scalar::Float { value: f16::from_le_bytes([low, high]).into(), bits: f16::MANTISSA_DIGITS }
            }
            (Self::Decimal { scale }, bytes) => match of_big_endian(bytes) {
                Some(number) => Scalar::Written(decimal(number, scale)),
                None => Scalar::Compound("a decimal number of more than 38 digits"),
            },
            (Self::Int128, bytes) => match bytes.try_into() {
                Ok(bytes) => Scalar::Written(i128::from_le_bytes(bytes).to_string()),
                Err(_) => Scalar::Compound("bytes"),
            },
            (Self::Uuid, bytes) => {
                let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| digits.get(range).unwrap_or_default());
                Scalar::Written(parts.join("-"))
            }
            _ => Scalar::Compound("bytes"),
        }
    }

    /// The value that is stored as a Julian day and nanoseconds, as Impala and Spark had times.
    pub(super) fn of_int96(value: &Int96) -> Scalar {
        let nanos = u64::from(value.data()[0]) | u64::from(value.data()[1]) << 32;
        let time = DateTime::from_timestamp(value.to_seconds(), (nanos % 1_000_000_000) as u32);
        time.map_or(Scalar::Compound("a date or time out of range"), |time| {
            Scalar::Written(time.naive_utc().to_string())
        })
    }
}

fn rate(unit: TimeUnit) -> u32 {
    match unit {
        TimeUnit::MILLIS => 1_000,
        TimeUnit::MICROS => 1_000_000,
        TimeUnit::NANOS => 1_000_000_000,
    }
}

/// The second, and the nanoseconds in it.
fn split(count: i64, rate: u32) -> (i64, u32) {
    let rate = i64::from(rate);
    (count.div_euclid(rate), (count.rem_euclid(rate) * (1_000_000_000 / rate)) as u32)
}

fn time(count: i64, rate: u32) -> Option<String> {
    let (second, nanos) = split(count, rate);
    NaiveTime::from_num_seconds_from_midnight_opt(second.try_into().ok()?, nanos).map(|time| time.to_string())
}

fn timestamp(count: i64, rate: u32, has_zone: bool) -> Option<String> {
    let (second, nanos) = split(count, rate);
    let time = DateTime::<Utc>::from_timestamp(second, nanos)?.naive_utc();
    Some(if has_zone { format!("{time}+00:00") } else { time.to_string() })
}

/// The number in two's complement; `None` if it is too large.
fn of_big_endian(bytes: &[u8]) -> Option<i128> {
    let is_negative = bytes.first()? & 0x80 != 0;
    let sign = if is_negative { 0xff } else { 0 };
    let (extra, last) = bytes.split_at(bytes.len().saturating_sub(16));
    let number =
        last.iter().fold(if is_negative { -1 } else { 0 }, |number: i128, byte| number << 8 | i128::from(*byte));
    (extra.iter().all(|byte| *byte == sign) && (number < 0) == is_negative).then_some(number)
}

/// `number` over a power of ten, with all its places: `1.50`.
fn decimal(number: i128, scale: usize) -> String {
    let digits = format!("{:0>width$}", number.unsigned_abs(), width = scale.saturating_add(1).min(1000));
    let (whole, places) = digits.split_at(digits.len().saturating_sub(scale));
    let (sign, point) = (if number < 0 { "-" } else { "" }, if scale > 0 { "." } else { "" });
    format!("{sign}{whole}{point}{places}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_written_with_all_their_places() {
        for (number, scale, text) in
            [(150, 2, "1.50"), (-5, 2, "-0.05"), (7, 0, "7"), (0, 3, "0.000"), (i128::MIN, 0, &i128::MIN.to_string())]
        {
            assert_eq!(decimal(number, scale), text);
        }
        assert_eq!(of_big_endian(&[0xff, 0xfe]), Some(-2));
        assert_eq!(of_big_endian(&[&[0xff; 20][..], &[0xfe]].concat()), Some(-2));
        assert_eq!(of_big_endian(&i128::MAX.to_be_bytes()), Some(i128::MAX));
        assert_eq!(of_big_endian(&[&[0][..], &[0xff; 16]].concat()), None);
        assert_eq!(of_big_endian(&[]), None);
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        let written = |scalar| match scalar {
            Scalar::Written(text) => text,
            scalar => format!("{scalar:?}"),
        };
        assert_eq!(written(Kind::Date.of_whole(19_724, 0)), "2024-01-02");
        assert_eq!(written(Kind::Date.of_whole(-1, 0)), "1969-12-31");
        assert_eq!(written(Kind::Time { rate: 1000 }.of_whole(3_723_004, 0)), "01:02:03.004");
        let stamp = |count, rate, has_zone| written(Kind::Timestamp { rate, has_zone }.of_whole(count, 0));
        assert_eq!(stamp(1_704_164_645_000, 1000, false), "2024-01-02 03:04:05");
        assert_eq!(stamp(1_704_164_645_678_900_001, 1_000_000_000, true), "2024-01-02 03:04:05.678900001+00:00");
        assert_eq!(stamp(-1, 1_000_000, false), "1969-12-31 23:59:59.999999");
        assert!(stamp(i64::MIN, 1000, false).contains("out of range"));
        assert!(written(Kind::Time { rate: 1000 }.of_whole(i64::MAX, 0)).contains("out of range"));
        let spark = Int96::from(vec![500_000_000, 0, 2_440_588]);
        assert_eq!(written(Kind::of_int96(&spark)), "1970-01-01 00:00:00.500");
    }
}
