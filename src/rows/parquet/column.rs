//! The types of columns, and their values as [`Scalar`]s.

use crate::rows::field::{Field, Scalar};
use crate::rows::lines::MAX_BYTES;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::{ArrowError, DataType, TimeUnit};
use half::f16;
use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::schema::types::ColumnDescriptor;

/// Dates and times as pandas prints them.
const FORMAT: FormatOptions<'static> = FormatOptions::new()
    .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
    .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f%:z"));

/// A type of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueType {
    Text,
    Bool,
    Signed,
    Unsigned,
    /// With the bits of its mantissa.
    Float(u32),
    Decimal,
    /// A date, a time or both.
    Temporal,
    Uuid,
    /// Polars' 128-bit integers, which Parquet has no type for.
    Int128,
}

impl ValueType {
    /// The type of a column that the Arrow reader gives as `arrow`; `None` if its values cannot be used. `writer` is
    /// the program that wrote the file.
    pub(super) fn of(arrow: &DataType, column: &ColumnDescriptor, writer: &str) -> Option<Self> {
        Some(match arrow {
            // Some writers do not annotate text as such.
            DataType::Utf8 | DataType::Binary => Self::Text,
            DataType::Boolean => Self::Bool,
            DataType::Float16 => Self::Float(f16::MANTISSA_DIGITS),
            DataType::Float32 => Self::Float(f32::MANTISSA_DIGITS),
            DataType::Float64 => Self::Float(f64::MANTISSA_DIGITS),
            DataType::FixedSizeBinary(16) => match (column.logical_type_ref(), column.converted_type()) {
                (Some(LogicalType::Uuid), _) => Self::Uuid,
                (None, ConvertedType::NONE) if writer.starts_with("Polars") => Self::Int128,
                _ => return None,
            },
            arrow if arrow.is_signed_integer() => Self::Signed,
            arrow if arrow.is_unsigned_integer() => Self::Unsigned,
            arrow if arrow.is_decimal() => Self::Decimal,
            DataType::Date32 | DataType::Time32(_) | DataType::Time64(_) | DataType::Timestamp(..) => Self::Temporal,
            _ => return None,
        })
    }

    /// Whether a column of this type can hold a field. A value that is wrong for it is an error of its row.
    pub(super) fn suits(self, field: Field) -> bool {
        !matches!(self, Self::Temporal | Self::Uuid) || field == Field::Id
    }

    /// The type to ask the Arrow reader for.
    pub(super) fn read_as(self, arrow: &DataType, column: &ColumnDescriptor) -> DataType {
        match arrow {
            // Views do not copy a text that many rows of a dictionary share.
            DataType::Utf8 => DataType::Utf8View,
            DataType::Binary => DataType::BinaryView,
            // Nanoseconds would overflow before 1677 and after 2262.
            _ if column.physical_type() == Type::INT96 => DataType::Timestamp(TimeUnit::Microsecond, None),
            // The same as "UTC", which takes a database of time zones to parse.
            DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("+00:00".into())),
            arrow => arrow.clone(),
        }
    }

    /// Casts values as read to the type that [`Self::scalar`] takes.
    pub(super) fn cast(self, values: &ArrayRef) -> Result<ArrayRef, ArrowError> {
        match self {
            Self::Text => arrow_cast::cast(values, &DataType::BinaryView),
            Self::Signed => arrow_cast::cast(values, &DataType::Int64),
            Self::Unsigned => arrow_cast::cast(values, &DataType::UInt64),
            Self::Float(_) => arrow_cast::cast(values, &DataType::Float64),
            _ => Ok(values.clone()),
        }
    }

    /// The value in a row.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn scalar(self, values: &dyn Array, row: usize) -> Result<Scalar, String> {
        if values.is_null(row) {
            return Ok(Scalar::Null);
        }
        let bytes = || values.as_fixed_size_binary().value(row).try_into().unwrap_or_default();
        Ok(match self {
            Self::Text => match values.as_binary_view().value(row) {
                bytes if bytes.len() > MAX_BYTES => {
                    return Err(format!("the text is longer than {} MiB", MAX_BYTES >> 20));
                }
                bytes => Scalar::Text(
                    std::str::from_utf8(bytes).map_err(|_| "the text is not UTF-8; convert the file")?.into(),
                ),
            },
            Self::Bool => Scalar::Bool(values.as_boolean().value(row)),
            Self::Signed => match values.as_primitive::<Int64Type>().value(row) {
                value @ ..0 => Scalar::Signed(value),
                value => Scalar::Unsigned(value.cast_unsigned()),
            },
            Self::Unsigned => Scalar::Unsigned(values.as_primitive::<UInt64Type>().value(row)),
            Self::Float(bits) => Scalar::Float { value: values.as_primitive::<Float64Type>().value(row), bits },
            Self::Decimal | Self::Temporal => {
                let text =
                    ArrayFormatter::try_new(values, &FORMAT).and_then(|formatter| formatter.value(row).try_to_string());
                text.map_or(Scalar::Compound("a date or time out of range"), Scalar::Written)
            }
            Self::Uuid => {
                let digits = format!("{:032x}", u128::from_be_bytes(bytes()));
                Scalar::Written([0..8, 8..12, 12..16, 16..20, 20..32].map(|range| &digits[range]).join("-"))
            }
            Self::Int128 => Scalar::Written(i128::from_le_bytes(bytes()).to_string()),
        })
    }
}
