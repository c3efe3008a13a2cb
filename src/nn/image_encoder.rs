//! CLIP's image tower with its projection: pixel values to image embeddings.
//!
//! Source: transformers 5.23 `models/clip/modeling_clip.py`, `CLIPVisionModelWithProjection`.

use super::clip::{Encoder, EncoderConfig, part_of_clip};
use super::layers::attention::AttentionRanges;
use super::layers::{LayerNorm, Linear};
use crate::config::{Config, check_sizes};
use crate::error::{Error, Result};
use crate::json::Json;
use crate::weights::checkpoint::Weights;
use serde::Deserialize;
use tch::Tensor;

/// The maximum element count of an image, 256 times that of the largest CLIP (560 pixels): a small file can ask for any
/// size.
const MAX_ELEMENTS: i64 = 1 << 28;

/// `config.json` of a `CLIPVisionModelWithProjection`, or its part in that of a `CLIPModel`; defaults as in
/// transformers' `CLIPVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ImageEncoderConfig {
    /// Width of a token.
    pub hidden_size: i64,
    /// Width inside the MLP.
    pub intermediate_size: i64,
    /// Width of `image_embeds`.
    pub projection_dim: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Number of colour channels.
    pub num_channels: i64,
    /// Height and width of an image in pixels.
    pub image_size: i64,
    /// Height and width of a patch in pixels. Incomplete patches at the right and lower edge are dropped.
    pub patch_size: i64,
    /// The MLP's activation, `quick_gelu` or `gelu`.
    pub hidden_act: String,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
}

impl Default for ImageEncoderConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl ImageEncoderConfig {
    fn encoder(&self) -> EncoderConfig {
        EncoderConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act.clone(),
            layer_norm_eps: self.layer_norm_eps,
        }
    }

    /// The number of patches in an image, plus one for the class token.
    pub fn num_positions(&self) -> i64 {
        let patches = self.image_size / self.patch_size;
        patches * patches + 1
    }
}

impl Config for ImageEncoderConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = false;

    fn part(whole: Json) -> Json {
        part_of_clip(whole, "vision_config")
    }

    fn validate(&self) -> Result<()> {
        check_sizes(&[
            ("projection_dim", self.projection_dim),
            ("num_channels", self.num_channels),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
        ])?;
        if self.patch_size > self.image_size {
            let (patch, image) = (self.patch_size, self.image_size);
            return Err(Error::key("patch_size", format!("is {patch}, which is larger than image_size ({image})")));
        }
        let elements = self.num_channels.saturating_mul(self.image_size).saturating_mul(self.image_size);
        if elements > MAX_ELEMENTS {
            let (channels, size) = (self.num_channels, self.image_size);
            let predicate = format!("is {size}: with {channels} channels an image would have {elements} elements");
            return Err(Error::key("image_size", format!("{predicate}, the maximum is {MAX_ELEMENTS}")));
        }
        self.encoder().validate()
    }
}

/// `CLIPVisionModelWithProjection`.
#[derive(Debug)]
pub struct ImageEncoder {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
    config: ImageEncoderConfig,
}

impl ImageEncoder {
    /// The prefixes of the other tensors of a whole `CLIPModel`.
    pub const REST_OF_CLIP: [&str; 3] = ["text_model.", "text_projection.", "logit_scale"];

    /// Reads the module from the root of its checkpoint.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, config: &ImageEncoderConfig) -> Result<Self> {
        weights.ignore(&Self::REST_OF_CLIP);
        let model = weights.sub("vision_model");
        let embeddings = model.sub("embeddings");
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let patch_shape = [width, config.num_channels, config.patch_size, config.patch_size];
        let position_shape = [config.num_positions(), width];
        let projection = weights.sub("visual_projection");
        Ok(Self {
            class_embedding: embeddings.tensor("class_embedding", &[width])?,
            patch_embedding: embeddings.sub("patch_embedding").tensor("weight", &patch_shape)?,
            position_embedding: embeddings.sub("position_embedding").tensor("weight", &position_shape)?,
            // The misspelling is the checkpoint's.
            pre_layrnorm: LayerNorm::load(&model.sub("pre_layrnorm"), width, eps)?,
            encoder: Encoder::load(&model.sub("encoder"), &config.encoder())?,
            post_layernorm: LayerNorm::load(&model.sub("post_layernorm"), width, eps)?,
            visual_projection: Linear::load_without_bias(&projection, width, config.projection_dim)?,
            config: config.clone(),
        })
    }

    /// Encodes `pixel_values` `(batch, num_channels, image_size, image_size)`, of any float type and device, to
    /// `image_embeds` `(batch, projection_dim)`.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let like = &self.patch_embedding;
        let pixel_values = pixel_values.f_to_device(like.device())?.f_to_kind(like.kind())?;
        let hidden_states = self.pre_layrnorm.forward(&self.embed(&pixel_values)?)?;
        let (batch, tokens, width) = hidden_states.size3()?;
        let seen = AttentionRanges::full(&vec![tokens; batch as usize], hidden_states.device())?;
        let hidden_states = self.encoder.forward(hidden_states.f_reshape([batch * tokens, width])?, &seen)?;
        let class_states = hidden_states.f_reshape([batch, tokens, width])?.f_select(1, 0)?;
        let pooled = self.post_layernorm.forward(&class_states)?;
        self.visual_projection.forward(&pooled)
    }

    /// The embedding of a black image, `(1, projection_dim)`, which diffusers' Kandinsky prior pipelines return as the
    /// negative embedding without a negative prompt (`get_zero_embed`).
    ///
    /// # Errors
    /// If memory runs out.
    pub fn zero_embed(&self) -> Result<Tensor> {
        let size = self.config.image_size;
        let like = &self.patch_embedding;
        let black = Tensor::f_zeros([1, self.config.num_channels, size, size], (like.kind(), like.device()))?;
        self.forward(&black)
    }

    /// The class token and one token per patch, with their positions: `(batch, num_positions, hidden_size)`.
    fn embed(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let batch = pixel_values.size4()?.0;
        let stride = [self.config.patch_size; 2];
        let bias: Option<&Tensor> = None;
        let patches = pixel_values.f_conv2d(&self.patch_embedding, bias, stride, [0, 0], [1, 1], 1)?;
        let patches = patches.f_flatten(2, 3)?.f_transpose(1, 2)?;
        let class = self.class_embedding.f_expand([batch, 1, self.config.hidden_size], false)?;
        Ok(Tensor::f_cat(&[class, patches], 1)?.f_add(&self.position_embedding)?)
    }
}
