//! The decoder of the built-in model: a CLIP image embedding to a small picture.
//!
//! A transformer over the patches of the picture, whose channels become colours in two convolutions; in the first
//! edition of the weights they are colours already.
//!
//! Source: `scripts/emoji/decoder.py`, which trains it.

use super::layers::attention::attention;
use super::layers::{LayerNorm, Linear};
use crate::error::Result;
use crate::weights::checkpoint::{Checkpoint, Weights};
use tch::{Kind, Tensor};

/// Attention heads, which no shape tells.
const HEADS: i64 = 4;

/// The shortest length that embeddings are divided by: torch's `normalize`.
const MIN_LENGTH: f64 = 1e-12;

/// Red, green, blue.
const RGB: i64 = 3;

/// The sizes of a [`Decoder`], all of which the shapes of its weights tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderConfig {
    /// The embedding dimension.
    pub dim: i64,
    /// Width of a patch in the transformer.
    pub width: i64,
    /// Width of what a patch starts from.
    pub seed_width: i64,
    /// Width inside the MLP that adds detail to it.
    pub detail_width: i64,
    /// Patches in a row and in a column.
    pub side: i64,
    /// Height and width of a patch in pixels.
    pub patch: i64,
    /// Number of blocks.
    pub layers: i64,
    /// Channels of the map that the patches make, and of what the first convolution makes of it.
    pub channels: Option<(i64, i64)>,
}

impl DecoderConfig {
    /// The sizes of a checkpoint. Those that a missing tensor would tell are 0, and [`Decoder::load`] reports it.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let size = |name: &str, axis: usize| checkpoint.shape(name).and_then(|shape| shape.get(axis).copied());
        let root = |square: i64| (square as f64).sqrt().round() as i64;
        let channels = size("edges.weight", 1).zip(size("edges.weight", 0));
        let layers = (0..).take_while(|layer| size(&format!("blocks.{layer}.norm1.weight"), 0).is_some()).count();
        let pixels = size("pixels.weight", 0).unwrap_or(0);
        Self {
            dim: size("mean", 0).unwrap_or(0),
            width: size("positions", 1).unwrap_or(0),
            seed_width: size("widen.weight", 1).unwrap_or(0),
            detail_width: size("detail.0.weight", 0).unwrap_or(0),
            side: root(size("positions", 0).unwrap_or(0)),
            patch: root(pixels / channels.map_or(RGB, |(channels, _)| channels.max(1))),
            layers: layers as i64,
            channels,
        }
    }

    /// Height and width of a picture in pixels.
    pub fn pixels(&self) -> i64 {
        self.side * self.patch
    }
}

/// The network.
#[derive(Debug)]
pub struct Decoder {
    mean: Tensor,
    std: Tensor,
    seed: Linear,
    detail: [Linear; 3],
    widen: Linear,
    whole: Linear,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    pixels: Linear,
    /// `edges` and `colors`.
    convolutions: Option<[Convolution; 2]>,
    config: DecoderConfig,
}

impl Decoder {
    /// Reads the module from the root of its checkpoint.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, config: &DecoderConfig) -> Result<Self> {
        let DecoderConfig { dim, width, seed_width, detail_width, side, patch, layers, channels } = *config;
        let linear = |name: &str, inputs, outputs| Linear::load(&weights.sub(name), inputs, outputs);
        let seeds = side * side * seed_width;
        let convolution = |name: &str, inputs, outputs| Convolution::load(&weights.sub(name), inputs, outputs);
        let convolutions = match channels {
            Some((channels, edges)) => {
                Some([convolution("edges", channels, edges)?, convolution("colors", edges, RGB)?])
            }
            None => None,
        };
        let block = |layer: i64| Block::load(&weights.sub("blocks").sub(&layer.to_string()), width);
        Ok(Self {
            mean: weights.tensor("mean", &[dim])?,
            std: weights.tensor("std", &[dim])?,
            seed: linear("seed", dim, seeds)?,
            detail: [
                linear("detail.0", dim, detail_width)?,
                linear("detail.2", detail_width, detail_width)?,
                linear("detail.4", detail_width, seeds)?,
            ],
            widen: linear("widen", seed_width, width)?,
            whole: linear("whole", dim, width)?,
            positions: weights.tensor("positions", &[side * side, width])?,
            blocks: (0..layers).map(block).collect::<Result<_>>()?,
            norm: LayerNorm::load(&weights.sub("norm"), width, LayerNorm::DEFAULT_EPS)?,
            pixels: linear("pixels", width, channels.map_or(RGB, |(channels, _)| channels) * patch * patch)?,
            convolutions,
            config: *config,
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// `embeds` `(rows, dim)` to pictures `(rows, 3, pixels, pixels)` in float32, from -1 to 1 or a little outside. The
    /// length of an embedding, which guidance changes, says nothing. A row whose length float32 does not hold becomes
    /// NaN.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn forward(&self, embeds: &Tensor) -> Result<Tensor> {
        let DecoderConfig { width, seed_width, side, .. } = self.config;
        let embeds = self.standardize(embeds)?;
        let [first, second, third] = &self.detail;
        let detail = third.forward(&gelu(&second.forward(&gelu(&first.forward(&embeds)?)?)?)?)?;
        let seeds = self.seed.forward_add(&embeds, &detail)?.f_reshape([-1, side * side, seed_width])?;
        let whole = self.whole.forward(&embeds)?.f_reshape([-1, 1, width])?;
        let hidden = self.widen.forward(&seeds)?.f_add(&whole)?.f_add(&self.positions)?;
        let hidden = self.blocks.iter().try_fold(hidden, |hidden, block| block.forward(&hidden))?;
        let features = self.map(&self.pixels.forward(&self.norm.forward(&hidden)?)?)?;
        match &self.convolutions {
            Some([edges, colors]) => colors.forward(&gelu(&edges.forward(&features)?)?),
            None => Ok(features),
        }
    }

    /// The direction of each embedding, by the mean and the spread of those it was trained on.
    fn standardize(&self, embeds: &Tensor) -> Result<Tensor> {
        let squares = embeds.f_square()?.f_sum_dim_intlist([1].as_slice(), true, Kind::Float)?;
        // Divided by infinity, numbers that are too large would be 0.
        let lengths = squares.f_masked_fill(&squares.f_isinf()?, f64::NAN)?.f_sqrt()?.f_clamp_min(MIN_LENGTH)?;
        Ok(embeds.f_div(&lengths)?.f_sub(&self.mean)?.f_div(&self.std)?)
    }

    /// `(rows, patches, channels · patch · patch)` to `(rows, channels, pixels, pixels)`.
    fn map(&self, patches: &Tensor) -> Result<Tensor> {
        let DecoderConfig { side, patch, channels, .. } = self.config;
        let channels = channels.map_or(RGB, |(channels, _)| channels);
        let grid = patches.f_reshape([-1, side, side, channels, patch, patch])?.f_permute([0, 3, 1, 4, 2, 5])?;
        Ok(grid.f_reshape([-1, channels, side * patch, side * patch])?)
    }
}

/// A transformer block, norms first.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    out: Linear,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
    width: i64,
}

impl Block {
    fn load(weights: &Weights, width: i64) -> Result<Self> {
        let norm = |name: &str| LayerNorm::load(&weights.sub(name), width, LayerNorm::DEFAULT_EPS);
        let linear = |name: &str, inputs, outputs| Linear::load(&weights.sub(name), inputs, outputs);
        Ok(Self {
            norm1: norm("norm1")?,
            qkv: linear("qkv", width, 3 * width)?,
            out: linear("out", width, width)?,
            norm2: norm("norm2")?,
            up: linear("up", width, 4 * width)?,
            down: linear("down", 4 * width, width)?,
            width,
        })
    }

    /// `(rows, patches, width)` to the same shape.
    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(hidden)?)?;
        let part = |place: i64| qkv.f_narrow(2, place * self.width, self.width);
        let mixed = attention(&part(0)?, &part(1)?, &part(2)?, HEADS, None)?;
        let hidden = self.out.forward_add(&mixed, hidden)?;
        let lifted = gelu(&self.up.forward(&self.norm2.forward(&hidden)?)?)?;
        self.down.forward_add(&lifted, &hidden)
    }
}

/// A 3 x 3 convolution with a border of zeros.
#[derive(Debug)]
struct Convolution {
    weight: Tensor,
    bias: Tensor,
}

impl Convolution {
    fn load(weights: &Weights, inputs: i64, outputs: i64) -> Result<Self> {
        let weight = weights.tensor("weight", &[outputs, inputs, 3, 3])?;
        Ok(Self { weight, bias: weights.tensor("bias", &[outputs])? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_conv2d(&self.weight, Some(&self.bias), [1, 1], [1, 1], [1, 1], 1)?)
    }
}

/// GELU in its tanh approximation.
fn gelu(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_gelu("tanh")?)
}
