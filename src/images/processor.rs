//! `CLIPImageProcessor`: from a picture to the pixel values that the image encoder takes.
//!
//! Source: transformers 5.23 `image_processing_backends.py`, `PilBackend`; `image_transforms.py`; and
//! `models/clip/image_processing_pil_clip.py` for the defaults.

use super::decode::{Header, Picture};
use super::resample::{Filter, resize};
use crate::config::{self, Config, check_sizes};
use crate::error::{Error, Hint, Result};
use crate::files::Folder;
use serde::Deserialize;

/// Bytes of memory that resizing takes at most.
const MAX_BYTES: u64 = 2 << 30;

/// The classes that are this one; the first part of the name, if it is of another backend.
const CLASSES: [&str; 2] = ["CLIPImageProcessor", "CLIPFeatureExtractor"];

/// `preprocessor_config.json`. A key that is absent or null has CLIP's default.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ProcessorConfig {
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_convert_rgb: Option<bool>,
    do_resize: Option<bool>,
    size: Option<Size>,
    resample: Option<i64>,
    do_center_crop: Option<bool>,
    crop_size: Option<Size>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<Channels>,
    image_std: Option<Channels>,
    default_to_square: Option<bool>,
    // Kosmos-2's key.
    use_square_size: Option<bool>,
    do_pad: Option<bool>,
}

/// A size as its versions have it: a number, `[height, width]`, or an object.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Size {
    Number(i64),
    List([i64; 2]),
    Object(SizeObject),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SizeObject {
    shortest_edge: Option<i64>,
    height: Option<i64>,
    width: Option<i64>,
}

/// A number for each channel, or one for all.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Channels {
    One(f64),
    Each([f64; 3]),
}

/// What a picture is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    ShortestEdge(u64),
    Exact { height: u64, width: u64 },
}

impl Config for ProcessorConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = false;

    fn validate(&self) -> Result<()> {
        let class = [("image_processor_type", &self.image_processor_type)];
        let class = class.into_iter().chain([("feature_extractor_type", &self.feature_extractor_type)]);
        for (key, name) in class {
            let plain = name.as_deref().map(|name| name.trim_end_matches("Fast").trim_end_matches("Pil"));
            if let (Some(name), false) = (name, plain.is_none_or(|plain| CLASSES.contains(&plain))) {
                return Err(Error::key(key, format!("is {name:?}, only \"CLIPImageProcessor\" is supported")));
            }
        }
        for (key, is_on) in [("use_square_size", self.use_square_size), ("do_pad", self.do_pad)] {
            if is_on == Some(true) {
                return Err(Error::key(key, "is true, which is not supported"));
            }
        }
        self.target()?;
        self.crop()?;
        self.filter()?;
        self.values().map(drop)
    }
}

impl ProcessorConfig {
    fn target(&self) -> Result<Option<Target>> {
        if self.do_resize == Some(false) {
            return Ok(None);
        }
        let is_square = self.default_to_square == Some(true);
        let target = match self.size {
            None => Target::ShortestEdge(224),
            Some(Size::Number(edge)) if !is_square => Target::ShortestEdge(checked("size", edge)?),
            Some(Size::Object(SizeObject { shortest_edge: Some(edge), height: None, width: None })) => {
                Target::ShortestEdge(checked("size", edge)?)
            }
            Some(ref size) => {
                let (height, width) = height_width("size", size)?;
                Target::Exact { height, width }
            }
        };
        Ok(Some(target))
    }

    /// The height and width of the crop.
    fn crop(&self) -> Result<Option<(u64, u64)>> {
        let crop = self.crop_size.as_ref().map_or(Ok((224, 224)), |size| height_width("crop_size", size));
        if self.do_center_crop == Some(false) { Ok(None) } else { crop.map(Some) }
    }

    fn filter(&self) -> Result<Filter> {
        let code = self.resample.unwrap_or(3);
        Filter::of_code(code).ok_or_else(|| {
            let known = "0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box) and 5 (hamming)";
            Error::key("resample", format!("is {code}, and Pillow has {known}"))
        })
    }

    /// The pixel value of each level of a channel.
    fn values(&self) -> Result<Box<[[f32; 256]; 3]>> {
        let scale = self.rescale_factor.unwrap_or(1.0 / 255.0);
        // OpenAI's means and standard deviations.
        let mean = channels(self.image_mean.as_ref(), [0.48145466, 0.4578275, 0.40821073]);
        let std = channels(self.image_std.as_ref(), [0.26862954, 0.26130258, 0.27577711]);
        let mut values = Box::new([[0.0; 256]; 3]);
        for ((values, mean), std) in values.iter_mut().zip(mean).zip(std) {
            for (level, value) in (0..=255_u8).zip(values) {
                // In float64, then rounded; normalized in float32.
                *value = if self.do_rescale == Some(false) { level.into() } else { (f64::from(level) * scale) as f32 };
                if self.do_normalize != Some(false) {
                    *value = (*value - mean as f32) / std as f32;
                }
                if !value.is_finite() {
                    let key = if std == 0.0 { "image_std" } else { "rescale_factor" };
                    return Err(Error::key(key, "gives pixel values that are not finite"));
                }
            }
        }
        Ok(values)
    }
}

fn channels(given: Option<&Channels>, default: [f64; 3]) -> [f64; 3] {
    match given {
        None => default,
        Some(Channels::One(value)) => [*value; 3],
        Some(Channels::Each(values)) => *values,
    }
}

fn height_width(key: &str, size: &Size) -> Result<(u64, u64)> {
    let (height, width) = match size {
        Size::Number(edge) => (*edge, *edge),
        Size::List([height, width]) => (*height, *width),
        Size::Object(SizeObject { shortest_edge: None, height: Some(height), width: Some(width) }) => (*height, *width),
        Size::Object(_) => {
            let supported = if key == "size" { "height and width, or shortest_edge" } else { "height and width" };
            return Err(Error::key(key, format!("is not supported; only {supported} are")));
        }
    };
    Ok((checked(key, height)?, checked(key, width)?))
}

fn checked(key: &str, size: i64) -> Result<u64> {
    check_sizes(&[(key, size)])?;
    Ok(size.unsigned_abs())
}

/// Makes pixel values of pictures.
#[derive(Debug)]
pub struct ImageProcessor {
    /// Whether pixels of a transparent colour become white.
    converts: bool,
    target: Option<Target>,
    filter: Filter,
    /// Height and width.
    crop: Option<(u64, u64)>,
    values: Box<[[f32; 256]; 3]>,
    path: String,
}

impl ImageProcessor {
    /// Reads the configuration in the file `name` of a folder.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Config`] if a key has a value that is wrong or not supported.
    pub fn open(folder: &Folder, name: &str) -> Result<Self> {
        let config: ProcessorConfig = config::read(folder, name)?;
        Ok(Self {
            converts: config.do_convert_rgb != Some(false),
            target: config.target()?,
            filter: config.filter()?,
            crop: config.crop()?,
            values: config.values()?,
            path: folder.path_of(name),
        })
    }

    /// Checks that pictures come out as high and wide as the image encoder takes them, as far as that is known before
    /// there are pictures.
    ///
    /// # Errors
    /// [`Error::Config`] if they do not.
    pub fn check_size(&self, image_size: usize) -> Result<()> {
        let size = image_size as u64;
        let (key, found) = match (self.crop, self.target) {
            (Some(found), _) => ("crop_size", found),
            (None, Some(Target::Exact { height, width })) => ("size", (height, width)),
            _ => return Ok(()),
        };
        if found == (size, size) {
            return Ok(());
        }
        let (height, width) = found;
        let predicate = format!("is {height} x {width}, and the image encoder takes {size} x {size} pixels");
        Err(Error::key(key, predicate).with_path(&self.path).with_hint(Hint::Other("take the model's own".into())))
    }

    /// The pixel values of an encoded picture, `(3, size, size)` row by row, which the image encoder takes. `permit` is
    /// asked once the header is read, and what it returns is kept until the picture is decoded and cropped.
    ///
    /// # Errors
    /// What is wrong with the picture, as a predicate.
    pub fn pixel_values<P>(
        &self,
        bytes: &[u8],
        size: usize,
        permit: impl FnOnce(&Header) -> P,
    ) -> Result<Vec<f32>, String> {
        let header = Header::read(bytes)?;
        let _permit = permit(&header);
        let cropped = self.crop(header.decode()?)?;
        let (height, width) = (cropped.height, cropped.width);
        if (height, width) != (size, size) {
            return Err(format!(
                "is {height} x {width} pixels when it is processed, and the image encoder takes {size} x {size}"
            ));
        }
        Ok(self.normalize(&cropped))
    }

    /// Resizes a picture and crops it, or pads it with black, around its centre.
    pub(crate) fn crop(&self, mut picture: Picture) -> Result<Picture, String> {
        if let Some(key) = picture.color_key.filter(|_| self.converts) {
            let (pixels, _) = picture.pixels.as_chunks_mut();
            pixels.iter_mut().filter(|pixel| **pixel == key).for_each(|pixel| *pixel = [255; 3]);
        }
        let own = (picture.height as u64, picture.width as u64);
        let resized = match self.target {
            None => own,
            Some(Target::Exact { height, width }) => (height, width),
            Some(Target::ShortestEdge(edge)) => with_shortest_edge(own, edge),
        };
        let crop = self.crop.unwrap_or(resized);
        let (rows, top) = window(resized.0, crop.0);
        let (columns, left) = window(resized.1, crop.1);
        let is_whole = (rows.end - rows.start, columns.end - columns.start) == crop;
        let part = resize(&picture, (resized.1, resized.0), columns, rows, self.filter, MAX_BYTES);
        let part = part.ok_or("is too long and narrow to be resized")?;
        if is_whole { Ok(part) } else { Ok(pad(&part, crop, (top, left))) }
    }

    /// The pixel values of a picture, `(3, height, width)`.
    pub(crate) fn normalize(&self, picture: &Picture) -> Vec<f32> {
        let mut pixel_values = Vec::with_capacity(picture.pixels.len());
        for (channel, values) in self.values.iter().enumerate() {
            let levels = picture.pixels.iter().skip(channel).step_by(3);
            pixel_values.extend(levels.map(|level| values[usize::from(*level)]));
        }
        pixel_values
    }
}

/// The height and width whose shorter edge is `edge` long.
fn with_shortest_edge((height, width): (u64, u64), edge: u64) -> (u64, u64) {
    let (short, long) = (height.min(width), height.max(width));
    // A division of Python's, which gives a float.
    let long = ((edge * long) as f64 / short as f64) as u64;
    if width <= height { (long, edge) } else { (edge, long) }
}

/// The pixels of an axis that a crop around its centre keeps, and where they are in the crop.
fn window(len: u64, crop: u64) -> (std::ops::Range<u64>, u64) {
    if crop <= len {
        let start = (len - crop) / 2;
        return (start..start + crop, 0);
    }
    // transformers rounds up what comes before, in the padding, and down where the crop begins.
    (0..len, (crop - len).div_ceil(2))
}

fn pad(picture: &Picture, (height, width): (u64, u64), (top, left): (u64, u64)) -> Picture {
    let [height, width, top, left] = [height, width, top, left].map(|length| length as usize);
    let mut pixels = vec![0; height * width * 3];
    for row in 0..picture.height {
        let start = ((top + row) * width + left) * 3;
        pixels[start..start + picture.width * 3].copy_from_slice(picture.row(row));
    }
    Picture { width, height, pixels, color_key: None }
}
