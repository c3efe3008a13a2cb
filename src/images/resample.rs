//! Pillow's resampling of RGB pictures of 8 bits: separable, antialiased filters in fixed-point arithmetic.
//!
//! The same numbers, to the last bit: weights are rounded to 22 bits, and each pass to 8. Only the part of the result
//! that is asked for is computed, so that a crop of an extreme shape costs no more than that of any other.
//!
//! Source: Pillow 13 `src/libImaging/Resample.c`, and `Geometry.c` for [`Filter::Nearest`].

use super::decode::Picture;
use std::f64::consts::PI;
use std::ops::Range;

/// Bits of a weight's fraction.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The largest place in a result of [`Filter::Nearest`], whose pixels are found one after the other.
const MAX_NEAREST: u64 = 1 << 28;

/// Channels of a pixel.
const RGB: usize = 3;

/// A resampling filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// The filter that Pillow has under this number.
    pub(super) fn of_code(code: i64) -> Option<Self> {
        const ALL: [Filter; 6] =
            [Filter::Nearest, Filter::Lanczos, Filter::Bilinear, Filter::Bicubic, Filter::Box, Filter::Hamming];
        ALL.get(usize::try_from(code).ok()?).copied()
    }

    /// Half the width of the filter, in pixels of the smaller of both pictures.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight at the distance `x`.
    fn weight(self, x: f64) -> f64 {
        let distance = x.abs();
        match self {
            Self::Nearest => 0.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Hamming if distance >= 1.0 => 0.0,
            // Pillow has these constants in single precision.
            Self::Hamming if distance > 0.0 => {
                sinc(distance) * (f64::from(0.54_f32) + f64::from(0.46_f32) * (distance * PI).cos())
            }
            Self::Hamming => 1.0,
            // Keys' cubic convolution with a = -0.5.
            Self::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5,
            Self::Bicubic => 0.0,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}

/// Resizes a picture to `size`, `(width, height)`, and returns the `columns` and `rows` of the result.
///
/// `None` if that takes more than `max_bytes` of memory in between.
pub(super) fn resize(
    picture: &Picture,
    size: (u64, u64),
    columns: Range<u64>,
    rows: Range<u64>,
    filter: Filter,
    max_bytes: u64,
) -> Option<Picture> {
    if filter == Filter::Nearest {
        if columns.end.max(rows.end) > MAX_NEAREST {
            return None;
        }
        let [from_columns, from_rows] =
            [(picture.width, size.0, &columns), (picture.height, size.1, &rows)].map(nearest);
        return Some(gather(picture, &from_columns, &from_rows));
    }
    // `None` for an axis that stays as it is.
    let [across, down] = [(picture.width, size.0, &columns), (picture.height, size.1, &rows)]
        .map(|(own, wanted, range)| (wanted != own as u64).then(|| Weights::new(own, wanted, range, filter)));
    let reach = |weights: &Option<Weights>, range: &Range<u64>| {
        weights.as_ref().map_or(range.start as usize..range.end as usize, Weights::reach)
    };
    let (from_columns, from_rows) = (reach(&across, &columns), reach(&down, &rows));
    let is_vertical_first = is_vertical_first(picture, size);
    let (width, height) = if is_vertical_first {
        (from_columns.len() as u64, rows.end - rows.start)
    } else {
        (columns.end - columns.start, from_rows.len() as u64)
    };
    if (width * RGB as u64).saturating_mul(height) > max_bytes {
        return None;
    }
    let (first_column, first_row) = (from_columns.start, from_rows.start);
    // What the first pass leaves begins at the first column or row that it was told to make.
    Some(if is_vertical_first {
        let shortened = vertical(picture, from_columns, 0, down.as_ref()?);
        match across {
            Some(weights) => horizontal(&shortened, 0..shortened.height, first_column, &weights),
            None => shortened,
        }
    } else {
        let narrowed = match across {
            Some(weights) => horizontal(picture, from_rows, 0, &weights),
            None => gather(picture, &from_columns.collect::<Vec<_>>(), &from_rows.collect::<Vec<_>>()),
        };
        match down {
            Some(weights) => vertical(&narrowed, 0..narrowed.width, first_row, &weights),
            None => narrowed,
        }
    })
}

/// Whether the height shrinks by so much more than the width that Pillow begins with it.
fn is_vertical_first(picture: &Picture, (width, height): (u64, u64)) -> bool {
    let lost = |own: usize, wanted: u64| own as i64 - wanted as i64;
    let (columns, rows) = (lost(picture.width, width), lost(picture.height, height));
    rows > 0 && rows > columns.saturating_mul(2)
}

/// For each pixel of a range of an axis that is scaled from `own` to `wanted` pixels, the one it is taken from.
fn nearest((own, wanted, range): (usize, u64, &Range<u64>)) -> Vec<usize> {
    let scale = own as f64 / wanted as f64;
    // Summed, as Pillow does, so that it rounds alike.
    let mut place = scale * 0.5;
    let mut taken = Vec::new();
    for pixel in 0..range.end {
        if pixel >= range.start {
            taken.push((place as usize).min(own - 1));
        }
        place += scale;
    }
    taken
}

fn gather(picture: &Picture, columns: &[usize], rows: &[usize]) -> Picture {
    let mut pixels = Vec::with_capacity(columns.len() * rows.len() * RGB);
    for row in rows {
        let line = picture.row(*row);
        match columns {
            [first, .., last] if last - first + 1 == columns.len() => {
                pixels.extend_from_slice(&line[first * RGB..(last + 1) * RGB]);
            }
            _ => columns.iter().for_each(|column| pixels.extend_from_slice(&line[column * RGB..(column + 1) * RGB])),
        }
    }
    Picture { width: columns.len(), height: rows.len(), pixels, color_key: None }
}

/// What each pixel of a range of an axis is made of.
struct Weights {
    /// For each, the first pixel, and where its weights are.
    taps: Vec<(usize, Range<usize>)>,
    values: Vec<i32>,
}

impl Weights {
    fn new(own: usize, wanted: u64, range: &Range<u64>, filter: Filter) -> Self {
        let scale = own as f64 / wanted as f64;
        let filter_scale = scale.max(1.0);
        let (support, inverse) = (filter.support() * filter_scale, 1.0 / filter_scale);
        let (mut taps, mut values) = (Vec::new(), Vec::new());
        let mut raw = Vec::new();
        for pixel in range.clone() {
            let center = (pixel as f64 + 0.5) * scale;
            // Conversions truncate, and a negative number becomes 0.
            let (first, end) = ((center - support + 0.5) as usize, ((center + support + 0.5) as usize).min(own));
            raw.clear();
            raw.extend((first..end).map(|place| filter.weight((place as f64 - center + 0.5) * inverse)));
            let sum: f64 = raw.iter().sum();
            let start = values.len();
            values.extend(raw.iter().map(|weight| fixed(if sum == 0.0 { *weight } else { weight / sum })));
            taps.push((first, start..values.len()));
        }
        Self { taps, values }
    }

    /// The pixels that are needed.
    fn reach(&self) -> Range<usize> {
        let start = self.taps.iter().map(|(first, _)| *first).min().unwrap_or(0);
        let end = self.taps.iter().map(|(first, places)| first + places.len()).max().unwrap_or(0);
        start..end.max(start)
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.taps.iter().map(|(first, places)| (*first, &self.values[places.clone()]))
    }
}

/// A weight in fixed point, rounded away from zero.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// A half, so that a shift rounds.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// The horizontal pass over some rows of a picture whose first column is the `first_column` of the axis.
fn horizontal(picture: &Picture, rows: Range<usize>, first_column: usize, weights: &Weights) -> Picture {
    let (width, height) = (weights.taps.len(), rows.len());
    let mut pixels = Vec::with_capacity(width * height * RGB);
    for row in rows {
        let line = picture.row(row);
        for (first, weights) in weights.iter() {
            let first = first - first_column;
            let taken = &line[first * RGB..(first + weights.len()) * RGB];
            let mut sums = [HALF; RGB];
            for (pixel, weight) in taken.chunks_exact(RGB).zip(weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum = sum.wrapping_add(i32::from(*value).wrapping_mul(*weight));
                }
            }
            pixels.extend(sums.map(clip));
        }
    }
    Picture { width, height, pixels, color_key: None }
}

/// The vertical pass over some columns of a picture whose first row is the `first_row` of the axis.
fn vertical(picture: &Picture, columns: Range<usize>, first_row: usize, weights: &Weights) -> Picture {
    let (width, height) = (columns.len(), weights.taps.len());
    let mut pixels = Vec::with_capacity(width * height * RGB);
    let mut sums = vec![0; width * RGB];
    for (first, weights) in weights.iter() {
        sums.fill(HALF);
        for (row, weight) in (first - first_row..).zip(weights) {
            let line = &picture.row(row)[columns.start * RGB..columns.end * RGB];
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum = sum.wrapping_add(i32::from(*value).wrapping_mul(*weight));
            }
        }
        pixels.extend(sums.iter().map(|sum| clip(*sum)));
    }
    Picture { width, height, pixels, color_key: None }
}
