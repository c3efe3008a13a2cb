//! Decodes pictures: upright, in RGB of 8 bits, as transformers' `load_image` gives them.
//!
//! Alpha is dropped and the colours below it stay; 16 bits of grey are cut off at 255, and
//! of a colour the upper 8 count; of several frames or pages the first one counts. All this is Pillow's
//! `convert("RGB")`. The orientation in EXIF data, or else in XMP data, is applied (`exif_transpose`).
//!
//! Source: transformers 5.23 `image_utils.py`, `load_image`; Pillow 13 `ImageOps.py` and `Convert.c`.

use super::color_key::color_key;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use std::io::Cursor;

/// The maximum number of pixels of a picture. Pillow refuses more as a decompression bomb.
pub const MAX_PIXELS: u64 = 178_956_970;

/// Bytes that a decoder may allocate beside the picture.
const MAX_ALLOC: u64 = 2 << 30;

const FORMATS: [ImageFormat; 6] =
    [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff];

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// Red, green, blue, row by row.
    pub pixels: Vec<u8>,
    /// The colour that is transparent.
    pub color_key: Option<[u8; 3]>,
}

impl Picture {
    /// The pixels of a row.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        &self.pixels[row * self.width * 3..(row + 1) * self.width * 3]
    }
}

/// A picture whose header was read.
pub struct Header<'a> {
    decoder: Box<dyn ImageDecoder + 'a>,
    orientation: Orientation,
    color_key: Option<[u8; 3]>,
}

impl<'a> Header<'a> {
    /// Reads the header of a picture.
    ///
    /// # Errors
    /// What is wrong with it, as a predicate.
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.is_empty() {
            return Err("is empty".into());
        }
        let format = image::guess_format(bytes).ok().filter(|format| FORMATS.contains(format));
        let format = format.ok_or("is not a JPEG, PNG, WebP, GIF, BMP or TIFF picture")?;
        if format == ImageFormat::Jpeg && !has_end(bytes) {
            return Err("is a truncated JPEG picture".into());
        }
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut limits = Limits::default();
        limits.max_alloc = Some(MAX_ALLOC);
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(|error| unusable(&error))?;
        let (width, height) = decoder.dimensions();
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 {
            return Err("has no pixels".into());
        }
        if pixels > MAX_PIXELS {
            return Err(format!("has {width} x {height} pixels, and {MAX_PIXELS} are the maximum"));
        }
        let orientation = orientation(&mut decoder, format);
        Ok(Self { decoder: Box::new(decoder), orientation, color_key: color_key(bytes, format) })
    }

    /// Number of pixels.
    pub fn pixels(&self) -> u64 {
        let (width, height) = self.decoder.dimensions();
        u64::from(width) * u64::from(height)
    }

    /// Bytes of memory that decoding takes, about.
    pub fn bytes(&self) -> u64 {
        // Its own pixels, RGB, and RGB again when it is turned.
        self.decoder.total_bytes().saturating_add(self.pixels() * 6)
    }

    /// Decodes the picture.
    ///
    /// # Errors
    /// What is wrong with it, as a predicate.
    pub fn decode(self) -> Result<Picture, String> {
        let decoded = DynamicImage::from_decoder(self.decoder).map_err(|error| unusable(&error))?;
        let mut upright = DynamicImage::ImageRgb8(to_rgb(decoded)?);
        upright.apply_orientation(self.orientation);
        let rgb = upright.into_rgb8();
        let (width, height) = (rgb.width() as usize, rgb.height() as usize);
        Ok(Picture { width, height, pixels: rgb.into_raw(), color_key: self.color_key })
    }
}

fn unusable(error: &image::ImageError) -> String {
    match error {
        image::ImageError::Unsupported(_) => format!("cannot be decoded ({error}); save it as PNG"),
        _ => format!("is damaged ({error})"),
    }
}

/// Whether a JPEG picture has an end. Without it the decoder would fill up what is missing with grey.
fn has_end(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    let mut rest = bytes.get(2..).unwrap_or_default();
    // Segments up to the scan: a thumbnail in one of them has an end of its own.
    while let [0xff, marker, after @ ..] = rest {
        rest = match (marker, after) {
            (0xff, _) => &rest[1..],
            (0x01 | 0xd0..=0xd7, _) => after,
            (&START_OF_SCAN, _) => break,
            (_, [high, low, ..]) => after.get(usize::from(u16::from_be_bytes([*high, *low]))..).unwrap_or_default(),
            _ => &[],
        };
    }
    memchr::memmem::find(rest, &[0xff, 0xd9]).is_some()
}

/// The orientation in the EXIF data, or else in the XMP data. Damaged data have none.
fn orientation(decoder: &mut impl ImageDecoder, format: ImageFormat) -> Orientation {
    if format == ImageFormat::Tiff {
        match decoder.orientation() {
            Ok(Orientation::NoTransforms) | Err(_) => {}
            Ok(found) => return found,
        }
    }
    let exif = decoder.exif_metadata().ok().flatten();
    let found = exif.as_deref().and_then(Orientation::from_exif_chunk);
    let mut xmp = || decoder.xmp_metadata().ok().flatten().filter(|_| format != ImageFormat::Gif);
    found.or_else(|| in_xmp(&xmp()?)).unwrap_or(Orientation::NoTransforms)
}

/// The first `tiff:Orientation="6"` or `tiff:Orientation>6`.
fn in_xmp(xmp: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    let values = memchr::memmem::find_iter(xmp, NAME).filter_map(|place| match &xmp[place + NAME.len()..] {
        [b'=', b'"', digit, ..] | [b'>', digit, ..] if digit.is_ascii_digit() => Some(digit - b'0'),
        _ => None,
    });
    values.take(1).find_map(Orientation::from_exif)
}

fn to_rgb(decoded: DynamicImage) -> Result<RgbImage, String> {
    let high = |value: &u16| (value >> 8) as u8;
    Ok(match decoded {
        DynamicImage::ImageLuma16(grey) => {
            let pixels = grey.as_raw().iter().flat_map(|value| [(*value).min(255) as u8; 3]).collect();
            image_of(grey.dimensions(), pixels)?
        }
        DynamicImage::ImageLumaA16(grey) => {
            let pixels = grey.as_raw().chunks_exact(2).flat_map(|pixel| [high(&pixel[0]); 3]).collect();
            image_of(grey.dimensions(), pixels)?
        }
        DynamicImage::ImageRgb16(rgb) => image_of(rgb.dimensions(), rgb.as_raw().iter().map(high).collect())?,
        DynamicImage::ImageRgba16(rgba) => {
            let pixels = rgba.as_raw().chunks_exact(4).flat_map(|pixel| pixel[..3].iter().map(high)).collect();
            image_of(rgba.dimensions(), pixels)?
        }
        DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_) => {
            return Err("has pixels of floating-point numbers; save it with 8 bits a channel".into());
        }
        // Of 8 bits a channel: grey is copied to all channels, and alpha dropped.
        others => others.into_rgb8(),
    })
}

fn image_of((width, height): (u32, u32), pixels: Vec<u8>) -> Result<RgbImage, String> {
    RgbImage::from_raw(width, height, pixels).ok_or_else(|| "is damaged (pixels are missing)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_orientation_in_xmp_counts() {
        let of = |text: &str| in_xmp(text.as_bytes());
        assert_eq!(of("<x tiff:Orientation=\"6\"/>"), Some(Orientation::Rotate90));
        assert_eq!(of("<tiff:Orientation>3</tiff:Orientation>"), Some(Orientation::Rotate180));
        for none in ["", "tiff:Orientation", "tiff:Orientation=\"", "tiff:Orientation=\"9\" tiff:Orientation=\"3\""] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn the_end_of_a_thumbnail_is_not_the_pictures() {
        let thumbnail = [0xff, 0xe1, 0x00, 0x06, 0xff, 0xd9, 0xff, 0xd9];
        let scan = [0xff, 0xda, 0x00, 0x02, 0x12, 0x34];
        let whole = [&[0xff, 0xd8][..], &thumbnail, &scan, &[0xff, 0xd9]].concat();
        assert!(has_end(&whole));
        (0..whole.len() - 1).for_each(|end| assert!(!has_end(&whole[..end]), "{end}"));
    }
}
