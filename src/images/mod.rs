//! Pictures to pixels, as transformers makes them: `load_image`, then `CLIPImageProcessor`.
//!
//! ```text
//! bytes ──► decode: upright RGB, 8 bits ──► processor: resize, crop, rescale, normalize ──► (3, height, width) float32
//! ```
//!
//! transformers has two processors of that name. The reference is the one on Pillow, `CLIPImageProcessorPil`: the one
//! that a model which names no other gets where torchvision is not installed. torchvision's differs from it by a level
//! or two of 255.
//!
//! And the other way: pixels to a PNG ([`sheet`]).

mod color_key;
mod decode;
mod processor;
mod resample;
#[cfg(feature = "cli")]
mod sheet;

#[cfg(test)]
pub use decode::{Header, Picture};
pub use processor::ImageProcessor;
#[cfg(feature = "cli")]
pub use sheet::{Enlarging, Sheet};
