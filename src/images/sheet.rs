//! Contact sheets: small pictures of one size, enlarged, in a grid, as a PNG that is written while they come.

use super::decode::Picture;
use super::resample::{Filter, resize};
use anyhow::{Error, Result, anyhow};
use png::{BitDepth, ColorType, Encoder, EncodingError};
use std::io::Write;

/// Channels of a pixel.
const RGB: usize = 3;

/// Pixels of a sheet at most: larger ones are no use, since few programs open them.
const MAX_PIXELS: u64 = 500_000_000;

/// How a sheet is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Sheet {
    /// Its pictures.
    pub count: u64,
    /// How many are in a row; if not said, about as many as there are rows.
    pub columns: Option<u64>,
    /// Height and width of a picture in pixels.
    pub side: usize,
    /// How many times as high and wide it is drawn.
    pub scale: usize,
    /// How it is enlarged.
    pub filter: Enlarging,
}

/// How pictures are enlarged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enlarging {
    /// Smoothly, as Pillow's Lanczos filter does.
    #[default]
    Lanczos,
    /// In blocks.
    Nearest,
}

impl Sheet {
    /// How many times pictures are enlarged, unless the user says.
    pub const SCALE: usize = 4;

    /// A sheet in the usual form.
    pub fn new(count: u64, side: usize) -> Self {
        Self { count, columns: None, side, scale: Self::SCALE, filter: Enlarging::default() }
    }

    /// Columns and rows of pictures; without any, there is room for one.
    fn grid(&self) -> (u64, u64) {
        let square = (self.count as f64).sqrt().ceil() as u64;
        let columns = self.columns.unwrap_or(square).min(self.count).max(1);
        (columns, self.count.div_ceil(columns).max(1))
    }

    /// Its width and height in pixels.
    ///
    /// # Errors
    /// What is wrong with it, as a predicate, if it is too large.
    pub fn size(&self) -> Result<(u32, u32), String> {
        let cell = (self.side as u64).saturating_mul(self.scale as u64);
        let (columns, rows) = self.grid();
        let (width, height) = (columns.saturating_mul(cell), rows.saturating_mul(cell));
        let sides = u32::try_from(width).ok().zip(u32::try_from(height).ok());
        let sides = sides.filter(|_| width.saturating_mul(height) <= MAX_PIXELS);
        sides.ok_or_else(|| format!("would be of {width} x {height} pixels, more than {MAX_PIXELS} in all"))
    }

    /// Writes the sheet. `draw` passes each picture to its argument, red, green and blue row by row, in their order.
    ///
    /// # Errors
    /// Those of `draw`; if it passes another number of pictures; if `output` cannot be written.
    pub fn write(
        &self,
        output: impl Write,
        draw: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let (width, height) = self.size().map_err(|reason| anyhow!("internal error: a sheet {reason}"))?;
        let mut encoder = Encoder::new(output, width, height);
        encoder.set_color(ColorType::Rgb);
        encoder.set_depth(BitDepth::Eight);
        let mut png = encoder.write_header().map_err(failed)?;
        let mut lines = png.stream_writer().map_err(failed)?;
        let columns = self.grid().0 as usize;
        let (mut band, mut missing): (Vec<Picture>, u64) = (Vec::with_capacity(columns), self.count);
        draw(&mut |pixels| {
            missing =
                missing.checked_sub(1).ok_or_else(|| anyhow!("internal error: a sheet with too many pictures"))?;
            band.push(self.enlarged(pixels)?);
            if band.len() == columns || missing == 0 {
                self.write_band(&band, columns, &mut lines)?;
                band.clear();
            }
            Ok(())
        })?;
        if self.count == 0 {
            self.write_band(&[], columns, &mut lines)?;
        }
        if missing > 0 {
            return Err(anyhow!("internal error: {missing} pictures are missing in a sheet"));
        }
        lines.finish().map_err(failed)?;
        png.finish().map_err(failed)
    }

    fn enlarged(&self, pixels: &[u8]) -> Result<Picture> {
        let picture = Picture { width: self.side, height: self.side, pixels: pixels.to_vec(), color_key: None };
        if self.scale == 1 {
            return Ok(picture);
        }
        let size = (self.side * self.scale) as u64;
        let filter = match self.filter {
            Enlarging::Lanczos => Filter::Lanczos,
            Enlarging::Nearest => Filter::Nearest,
        };
        resize(&picture, (size, size), 0..size, 0..size, filter, u64::MAX)
            .ok_or_else(|| anyhow!("internal error: a picture of {size} pixels"))
    }

    /// Writes pictures side by side; where some are missing at the end, it is white.
    fn write_band(&self, band: &[Picture], columns: usize, output: &mut impl Write) -> Result<()> {
        let cell = self.side * self.scale;
        let mut line = Vec::with_capacity(columns * cell * RGB);
        for row in 0..cell {
            line.clear();
            band.iter().for_each(|picture| line.extend_from_slice(picture.row(row)));
            line.resize(columns * cell * RGB, u8::MAX);
            output.write_all(&line)?;
        }
        Ok(())
    }
}

/// The system's error, if that is the cause.
fn failed(error: EncodingError) -> Error {
    match error {
        EncodingError::IoError(error) => error.into(),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Header;

    fn sheet(count: u64, columns: Option<u64>, scale: usize, filter: Enlarging) -> Sheet {
        Sheet { count, columns, side: 2, scale, filter }
    }

    /// A sheet of pictures, each of its own shade of grey, decoded.
    fn drawn(sheet: Sheet) -> Picture {
        let mut bytes = Vec::new();
        let each =
            |add: &mut dyn FnMut(&[u8]) -> Result<()>| (0..sheet.count).try_for_each(|place| add(&[place as u8; 12]));
        sheet.write(&mut bytes, each).unwrap();
        Header::read(&bytes).unwrap().decode().unwrap()
    }

    #[test]
    fn pictures_are_placed_row_by_row() {
        for (count, columns, width, height) in
            [(1, None, 1, 1), (5, None, 3, 2), (5, Some(2), 2, 3), (5, Some(9), 5, 1)]
        {
            for filter in [Enlarging::Lanczos, Enlarging::Nearest] {
                let picture = drawn(sheet(count, columns, 3, filter));
                assert_eq!((picture.width, picture.height), (width * 6, height * 6));
                for place in 0..width * height {
                    let expected = if place < count as usize { place as u8 } else { 255 };
                    for corner in [0, 5] {
                        let (column, row) = (place % width * 6 + corner, place / width * 6 + corner);
                        assert_eq!(picture.row(row)[3 * column..3 * column + 3], [expected; 3], "{place} of {count}");
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_are_sharp_and_the_filter_is_smooth() {
        let pixels = [[255; 3], [0; 3], [0; 3], [255; 3]].concat();
        let draw = |filter| {
            let mut bytes = Vec::new();
            sheet(1, None, 4, filter).write(&mut bytes, |add| add(&pixels)).unwrap();
            let picture = Header::read(&bytes).unwrap().decode().unwrap();
            picture.row(0).iter().step_by(3).copied().collect::<Vec<_>>()
        };
        assert_eq!(draw(Enlarging::Nearest), [255, 255, 255, 255, 0, 0, 0, 0]);
        let smooth = draw(Enlarging::Lanczos);
        assert!(smooth.iter().any(|level| (1..255).contains(level)), "{smooth:?}");
    }

    #[test]
    fn a_sheet_that_is_too_large_is_refused() {
        assert!(sheet(1 << 20, None, 4, Enlarging::Nearest).size().is_ok());
        for (count, columns) in [(1 << 24, None), (u64::MAX, None), (u64::MAX, Some(1)), (1 << 30, Some(1 << 30))] {
            assert!(sheet(count, columns, 4, Enlarging::Nearest).size().unwrap_err().contains("pixels"), "{count}");
        }
    }

    #[test]
    fn a_full_disk_is_the_systems_error() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let error = sheet(1, None, 1, Enlarging::Nearest).write(Full, |add| add(&[0; 12])).unwrap_err();
        assert!(error.downcast_ref::<std::io::Error>().is_some(), "{error:?}");
    }
}
