//! The decoder of the built-in model: a CLIP image embedding to a small picture of up to four things on a plain
//! background. It remembers what things look like, upright and large; an embedding says which of them are in the picture,
//! by attention to their keys, and in which pose.
//!
//! Source: `scripts/emoji/decoder.py`.

use super::layers::{LayerNorm, Linear};
use crate::error::Result;
use crate::weights::checkpoint::{Checkpoint, Weights};
use tch::{Kind, Tensor};

/// The shortest length that embeddings are divided by: torch's `normalize`.
const MIN_LENGTH: f64 = 1e-12;

/// The shortest vector that says an angle.
const MIN_ANGLE: f64 = 1e-6;

/// Colours with alpha multiplied in, and alpha.
const RGBA: i64 = 4;

/// Numbers of a pose: whether the thing is there, x and y of its middle, the logarithm of its size, sine and cosine of its
/// angle, and whether it is mirrored; the first and the last as logits. Places are in half pictures from the
/// middle, sizes in whole ones.
const POSE: i64 = 7;

/// Pixels of a picture are means of so many places across and down: a small sprite has more pixels than it covers.
const SAMPLES: i64 = 2;

/// What attention's scores are multiplied with: a mixture of two things looks like neither.
const SHARPNESS: f64 = 8.0;

/// The sizes of a [`Decoder`], all of which the shapes of its weights tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderConfig {
    /// The embedding dimension.
    pub dim: i64,
    /// Width of the residual layers.
    pub width: i64,
    /// Number of residual layers.
    pub layers: i64,
    /// The most things in a picture.
    pub slots: i64,
    /// Width of a key.
    pub key_width: i64,
    /// Number of things that it knows.
    pub things: i64,
    /// Numbers that each is remembered by.
    pub latent_width: i64,
    /// Height and width of a sprite in pixels.
    pub sprite: i64,
    /// Width of the convolutions.
    pub channels: i64,
}

impl DecoderConfig {
    /// Height and width of a picture in pixels, which no shape tells.
    pub const PIXELS: i64 = 96;

    /// The sizes of a checkpoint. Those that a missing tensor would tell are 0, and [`Decoder::load`] reports it.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let size = |name: &str, axis: usize| {
            checkpoint.shape(name).and_then(|shape| shape.get(axis).copied()).unwrap_or_default()
        };
        let is_there = |layer: &i64| checkpoint.shape(&format!("arranger.trunk.{layer}.norm.weight")).is_some();
        let pixels = size("sprites.components.weight", 0) / RGBA;
        Self {
            dim: size("arranger.mean", 0),
            width: size("arranger.embed.weight", 0),
            layers: (0..).take_while(is_there).count() as i64,
            slots: size("arranger.poses.weight", 0) / POSE,
            key_width: size("arranger.keys.weight", 1),
            things: size("arranger.keys.weight", 0),
            latent_width: size("sprites.values.weight", 0),
            sprite: (pixels as f64).sqrt().round() as i64,
            channels: size("sprites.first.weight", 0),
        }
    }
}

/// The network.
#[derive(Debug)]
pub struct Decoder {
    arranger: Arranger,
    sprites: SpriteMemory,
    config: DecoderConfig,
}

impl Decoder {
    /// Reads the module from the root of its checkpoint.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, config: &DecoderConfig) -> Result<Self> {
        Ok(Self {
            arranger: Arranger::load(&weights.sub("arranger"), config)?,
            sprites: SpriteMemory::load(&weights.sub("sprites"), config)?,
            config: *config,
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// `embeds` `(rows, dim)` to pictures `(rows, 3, pixels, pixels)` in float32, from 0 to 1. The length of an embedding,
    /// which guidance changes, says nothing. A row whose length float32 does not hold becomes NaN.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn forward(&self, embeds: &Tensor) -> Result<Tensor> {
        let Arrangement { background, poses, queries } = self.arranger.forward(embeds)?;
        let side = SAMPLES * DecoderConfig::PIXELS;
        let background = background.f_clamp(0.0, 1.0)?.f_reshape([-1, RGBA - 1, 1, 1])?;
        let mut canvas = background.f_expand([-1, RGBA - 1, side, side], false)?;
        for slot in 0..self.config.slots {
            let scores = self.arranger.keys.forward(&queries.f_select(1, slot)?)?.f_mul_scalar(SHARPNESS)?;
            let sprites = self.sprites.forward(&scores.f_softmax(1, Kind::Float)?)?;
            canvas = paste(&sprites, &poses.f_select(1, slot)?, &canvas)?;
        }
        let size = [SAMPLES, SAMPLES];
        Ok(canvas.f_avg_pool2d(size, size, [0, 0], false, true, None)?)
    }
}

/// What embeddings say of their pictures.
struct Arrangement {
    /// `(rows, 3)`.
    background: Tensor,
    /// `(rows, slots, 7)`.
    poses: Tensor,
    /// `(rows, slots, key_width)`.
    queries: Tensor,
}

/// Reads it off them.
#[derive(Debug)]
struct Arranger {
    mean: Tensor,
    std: Tensor,
    embed: Linear,
    trunk: Vec<(LayerNorm, Linear)>,
    norm: LayerNorm,
    background: Linear,
    poses: Linear,
    queries: Linear,
    keys: Linear,
    slots: i64,
}

impl Arranger {
    fn load(weights: &Weights, config: &DecoderConfig) -> Result<Self> {
        let DecoderConfig { dim, width, layers, slots, key_width, things, .. } = *config;
        let linear = |name: &str, inputs, outputs| Linear::load(&weights.sub(name), inputs, outputs);
        let norm = |weights: &Weights| LayerNorm::load(&weights.sub("norm"), width, LayerNorm::DEFAULT_EPS);
        let layer = |layer: i64| {
            let weights = weights.sub("trunk").sub(&layer.to_string());
            Ok((norm(&weights)?, Linear::load(&weights.sub("linear"), width, width)?))
        };
        Ok(Self {
            mean: weights.tensor("mean", &[dim])?,
            std: weights.tensor("std", &[dim])?,
            embed: linear("embed", dim, width)?,
            trunk: (0..layers).map(layer).collect::<Result<_>>()?,
            norm: norm(weights)?,
            background: linear("background", width, RGBA - 1)?,
            poses: linear("poses", width, slots * POSE)?,
            queries: linear("queries", width, slots * key_width)?,
            keys: linear("keys", key_width, things)?,
            slots,
        })
    }

    fn forward(&self, embeds: &Tensor) -> Result<Arrangement> {
        let mut hidden = self.embed.forward(&self.standardize(embeds)?)?;
        for (norm, linear) in &self.trunk {
            hidden = gelu(&linear.forward(&norm.forward(&hidden)?)?)?.f_add(&hidden)?;
        }
        let hidden = self.norm.forward(&hidden)?;
        let of_slots = |linear: &Linear| -> Result<Tensor> {
            Ok(linear.forward(&hidden)?.f_unflatten(1, [self.slots, -1].as_slice())?)
        };
        Ok(Arrangement {
            background: self.background.forward(&hidden)?,
            poses: of_slots(&self.poses)?,
            queries: of_slots(&self.queries)?,
        })
    }

    /// The direction of each embedding, by the mean and the spread of those it was trained on.
    fn standardize(&self, embeds: &Tensor) -> Result<Tensor> {
        let squares = embeds.f_square()?.f_sum_dim_intlist([1].as_slice(), true, Kind::Float)?;
        // Divided by infinity, numbers that are too large would be 0.
        let lengths = squares.f_masked_fill(&squares.f_isinf()?, f64::NAN)?.f_sqrt()?.f_clamp_min(MIN_LENGTH)?;
        Ok(embeds.f_div(&lengths)?.f_sub(&self.mean)?.f_div(&self.std)?)
    }
}

/// What things look like: their leading principal components, and convolutions that make edges of these.
#[derive(Debug)]
struct SpriteMemory {
    values: Linear,
    components: Linear,
    convolutions: [Convolution; 3],
    sprite: i64,
}

impl SpriteMemory {
    fn load(weights: &Weights, config: &DecoderConfig) -> Result<Self> {
        let DecoderConfig { things, latent_width, sprite, channels, .. } = *config;
        let convolution =
            |name: &str, inputs, outputs, size| Convolution::load(&weights.sub(name), inputs, outputs, size);
        Ok(Self {
            values: Linear::load_without_bias(&weights.sub("values"), things, latent_width)?,
            components: Linear::load(&weights.sub("components"), latent_width, RGBA * sprite * sprite)?,
            convolutions: [
                convolution("first", RGBA, channels, 5)?,
                convolution("second", channels, channels, 3)?,
                convolution("third", channels, RGBA, 3)?,
            ],
            sprite,
        })
    }

    /// Weights of things `(rows, things)` to sprites `(rows, 4, sprite, sprite)`, from 0 to 1.
    fn forward(&self, weights: &Tensor) -> Result<Tensor> {
        let rough = self.components.forward(&self.values.forward(weights)?)?;
        let rough = rough.f_reshape([-1, RGBA, self.sprite, self.sprite])?;
        let [first, second, third] = &self.convolutions;
        let hidden = gelu(&first.forward(&rough)?)?;
        let hidden = gelu(&second.forward(&hidden)?)?.f_add(&hidden)?;
        Ok(third.forward(&hidden)?.f_add(&rough)?.f_clamp(0.0, 1.0)?)
    }
}

/// A convolution with an odd kernel, and a border of zeros that keeps height and width.
#[derive(Debug)]
struct Convolution {
    weight: Tensor,
    bias: Tensor,
    border: i64,
}

impl Convolution {
    fn load(weights: &Weights, inputs: i64, outputs: i64, size: i64) -> Result<Self> {
        let weight = weights.tensor("weight", &[outputs, inputs, size, size])?;
        Ok(Self { weight, bias: weights.tensor("bias", &[outputs])?, border: size / 2 })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let border = [self.border, self.border];
        Ok(x.f_conv2d(&self.weight, Some(&self.bias), [1, 1], border, [1, 1], 1)?)
    }
}

/// Puts sprites `(rows, 4, height, width)` in their poses `(rows, 7)` onto pictures `(rows, 3, height, width)`.
fn paste(sprites: &Tensor, poses: &Tensor, canvas: &Tensor) -> Result<Tensor> {
    const BILINEAR: i64 = 0;
    const ZEROS: i64 = 0;
    let part = |place: i64| poses.f_select(1, place);
    let (x, y, sine, cosine) = (part(1)?, part(2)?, part(4)?, part(5)?);
    let length = sine.f_square()?.f_add(&cosine.f_square()?)?.f_sqrt()?.f_clamp_min(MIN_ANGLE)?;
    let scale = part(3)?.f_neg()?.f_exp()?.f_div(&length)?;
    let (sine, cosine) = (sine.f_mul(&scale)?, cosine.f_mul(&scale)?);
    let mirror = part(6)?.f_gt(0.0)?.f_to_kind(Kind::Float)?.f_mul_scalar(-2.0)?.f_add_scalar(1.0)?;
    // From a place on the canvas to one in the sprite.
    let x_of_middle = cosine.f_mul(&x)?.f_add(&sine.f_mul(&y)?)?.f_neg()?;
    let y_of_middle = sine.f_mul(&x)?.f_sub(&cosine.f_mul(&y)?)?;
    let across = Tensor::f_stack(&[&cosine, &sine, &x_of_middle], 1)?.f_mul(&mirror.f_unsqueeze(1)?)?;
    let down = Tensor::f_stack(&[&sine.f_neg()?, &cosine, &y_of_middle], 1)?;
    let matrices = Tensor::f_stack(&[&across, &down], 1)?;
    let grid = Tensor::f_affine_grid_generator(&matrices, canvas.size(), false)?;
    // Not the vectorized kernel: what it gathers with AVX2 is wrong in qemu's emulation, where the tests run too.
    let layer = sprites.f_internal_grid_sampler_2d_cpu_fallback(&grid, BILINEAR, ZEROS, false)?;
    let layer = layer.f_mul(&part(0)?.f_sigmoid()?.f_reshape([-1, 1, 1, 1])?)?;
    let (colors, alpha) = (layer.f_narrow(1, 0, RGBA - 1)?, layer.f_narrow(1, RGBA - 1, 1)?);
    Ok(canvas.f_mul(&alpha.f_neg()?.f_add_scalar(1.0)?)?.f_add(&colors)?)
}

/// GELU in its tanh approximation.
fn gelu(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_gelu("tanh")?)
}
