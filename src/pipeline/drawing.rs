//! Pictures of embeddings, by the built-in model's own decoder.

use super::builtin::{DECODER_WEIGHTS, drawing_files};
use crate::error::Hint;
use crate::nn::decoder::{Decoder, DecoderConfig};
use crate::weights::checkpoint::{Checkpoint, Placement};
use crate::weights::precision::Precision;
use crate::{Error, Result};
use ndarray::{Array4, ArrayView2};
use tch::{Device, Kind, Tensor};

/// What messages call it.
const NAME: &str = "the built-in decoder";

/// The built-in model's decoder, on the CPU in float32.
#[derive(Debug)]
pub struct BuiltinDecoder(Decoder);

impl BuiltinDecoder {
    /// Rows to draw at a time.
    pub const BATCH: usize = 64;

    /// Loads it.
    ///
    /// # Errors
    /// [`Error::File`] if this build has none.
    pub fn open() -> Result<Self> {
        Self::of(&checkpoint()?)
    }

    /// The decoder of a checkpoint.
    ///
    /// # Errors
    /// If tensors are missing, or of other shapes than the decoder's.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let config = DecoderConfig::of(checkpoint);
        let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
        checkpoint.build("", placement, |weights| Decoder::load(weights, &config)).map(Self)
    }

    /// Height and width of its pictures in pixels.
    pub fn side(&self) -> usize {
        size(DecoderConfig::PIXELS)
    }

    /// The embedding dimension that it takes, and the height and width of its pictures; reads no weights.
    ///
    /// # Errors
    /// As [`BuiltinDecoder::open`].
    pub fn sizes() -> Result<(usize, usize)> {
        let config = DecoderConfig::of(&checkpoint()?);
        Ok((size(config.dim), size(DecoderConfig::PIXELS)))
    }

    /// Draws embeddings, `(rows, dim)`, the first of which messages call row `first`: `(rows, height, width, 3)`, red,
    /// green and blue from 0 to 255. An embedding's length says nothing.
    ///
    /// # Errors
    /// [`Error::Option`] if the embeddings have another dimension, or numbers that are no embedding's.
    pub fn draw(&self, first: u64, embeds: ArrayView2<f32>) -> Result<Array4<u8>> {
        let config = self.0.config();
        let (dim, side, rows) = (size(config.dim), self.side(), embeds.nrows());
        if embeds.ncols() != dim {
            let found = embeds.ncols();
            let reason = format!("rows of {found} numbers, and {NAME} takes the built-in model's, which have {dim}");
            return Err(Error::Option { option: "embeds", reason });
        }
        let shape = (rows, side, side, 3);
        let mut bytes = vec![0; rows * side * side * 3];
        if rows > 0 {
            let values: Vec<f32> = embeds.iter().copied().collect();
            let embeds = Tensor::f_from_slice(&values)?.f_reshape([rows as i64, dim as i64])?;
            let pixels = tch::no_grad(|| self.0.forward(&embeds))?;
            let finite = Vec::<bool>::try_from(pixels.f_isfinite()?.f_flatten(1, -1)?.f_all_dim(1, false)?)?;
            if let Some((row, _)) = (first..).zip(finite).find(|(_, is_finite)| !is_finite) {
                let reason = format!("row {row} is no embedding of the built-in model: its numbers are too large");
                return Err(Error::Option { option: "embeds", reason });
            }
            let levels = pixels.f_clamp(0.0, 1.0)?.f_mul_scalar(255.0)?.f_round()?;
            let levels = levels.f_to_kind(Kind::Uint8)?.f_permute([0, 2, 3, 1])?.f_contiguous()?;
            let len = bytes.len();
            levels.f_copy_data_u8(&mut bytes, len)?;
        }
        Array4::from_shape_vec(shape, bytes).map_err(|error| Error::Internal(error.to_string()))
    }
}

fn size(length: i64) -> usize {
    usize::try_from(length).unwrap_or(0)
}

fn checkpoint() -> Result<Checkpoint> {
    let folder = drawing_files().ok_or_else(|| {
        let hint = "build the program from its repository, with the feature draw";
        Error::file(NAME, "is not in this build").with_hint(Hint::Other(hint.into()))
    })?;
    Checkpoint::open_file(&folder, DECODER_WEIGHTS)
}
