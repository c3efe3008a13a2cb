"""Decoders of diffusers with random weights, small enough to test with."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL, DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, KandinskyPipeline,
    KandinskyV22ControlnetPipeline, KandinskyV22InpaintPipeline, KandinskyV22Pipeline, StableDiffusionPipeline,
    StableDiffusionXLPipeline, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel, UNet2DModel,
    UnCLIPImageVariationPipeline, UnCLIPPipeline, UnCLIPScheduler, VQModel,
)  # fmt: skip
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, XLMRobertaTokenizer

from .pipelines import Spec, image_encoder, prior, save_tokenizer, text_config, text_encoder

DIM, TEXT_DIM = 24, 32
SPEC = Spec(seed=0, width=DIM)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CROSS_ATTENTION = dict(
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=8, resnet_time_scale_shift="scale_shift",
)  # fmt: skip


def clip_tokenizer():
    """The tokenizer of `Spec`'s pipelines."""
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(SPEC, Path(folder))
        return CLIPTokenizer.from_pretrained(folder)


def pictures():
    """`feature_extractor` and `image_encoder`, which decoding does not use."""
    return dict(feature_extractor=CLIPImageProcessorPil(size=14, crop_size=14), image_encoder=image_encoder(SPEC))


def movq(channels=(32, 64)):
    """Kandinsky's autoencoder, which halves the size once where the real one does three times."""
    plain = len(channels) - 1
    return VQModel(
        block_out_channels=channels, down_block_types=[*["DownEncoderBlock2D"] * plain, "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * plain], latent_channels=4, layers_per_block=1,
        norm_num_groups=8, norm_type="spatial", num_vq_embeddings=12, vq_embed_dim=4,
    )  # fmt: skip


def kandinsky22(pipeline=KandinskyV22Pipeline, in_channels=4, addition="image", **autoencoder):
    """Kandinsky 2.2's decoder."""
    unet = UNet2DConditionModel(
        in_channels=in_channels, out_channels=8, addition_embed_type=addition, encoder_hid_dim=DIM,
        encoder_hid_dim_type="image_proj", cross_attention_dim=TEXT_DIM, **CROSS_ATTENTION,
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, variance_type="learned_range")
    return pipeline(unet=unet, scheduler=scheduler, movq=movq(**autoencoder))


def kandinsky22_inpaint():
    """That for a picture with a mask."""
    return kandinsky22(KandinskyV22InpaintPipeline, in_channels=9)


def kandinsky22_controlnet():
    """That for a hint, which halves it three times."""
    return kandinsky22(KandinskyV22ControlnetPipeline, in_channels=8, addition="image_hint", channels=(32,) * 4)


def kandinsky21():
    """Kandinsky 2.1's decoder, which takes text too."""
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS, "<mask>"]
    scores = [(token, -float(at)) for at, token in enumerate(vocabulary)]
    tokenizer = XLMRobertaTokenizer(vocab=scores, model_max_length=77)
    config = MCLIPConfig(
        transformerDimSize=TEXT_DIM, imageDimSize=DIM, vocab_size=len(vocabulary), hidden_size=TEXT_DIM,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, max_position_embeddings=100,
    )  # fmt: skip
    config.transformerDimensions = TEXT_DIM
    unet = UNet2DConditionModel(
        in_channels=4, out_channels=8, addition_embed_type="text_image", addition_embed_type_num_heads=2,
        encoder_hid_dim=TEXT_DIM, encoder_hid_dim_type="text_image_proj", cross_attention_dim=DIM, **CROSS_ATTENTION,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False)
    return KandinskyPipeline(
        text_encoder=MultilingualCLIP(config).eval(), tokenizer=tokenizer, unet=unet, scheduler=scheduler, movq=movq()
    )


def karlo_parts():
    """What both of Karlo's pipelines have."""
    tokenizer = clip_tokenizer()
    text_proj = UnCLIPTextProjModel(clip_embeddings_dim=DIM, time_embed_dim=128, cross_attention_dim=TEXT_DIM)
    decoder = UNet2DConditionModel(
        sample_size=16, in_channels=3, out_channels=6, class_embed_type="identity", cross_attention_dim=TEXT_DIM,
        **CROSS_ATTENTION,
    )  # fmt: skip
    super_resolution = dict(
        sample_size=32, layers_per_block=1, block_out_channels=(32, 64), in_channels=6, out_channels=3,
        down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
    )  # fmt: skip
    sampling = dict(prediction_type="epsilon", num_train_timesteps=1000)
    return dict(
        tokenizer=tokenizer, text_encoder=text_encoder(SPEC),
        text_proj=text_proj, decoder=decoder,
        super_res_first=UNet2DModel(**super_resolution), super_res_last=UNet2DModel(**super_resolution),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range", **sampling),
        super_res_scheduler=UnCLIPScheduler(variance_type="fixed_small_log", **sampling),
    )  # fmt: skip


def karlo():
    """Karlo for variations of a picture."""
    return UnCLIPImageVariationPipeline(**karlo_parts(), **pictures())


def karlo_with_prior():
    """The whole of Karlo, whose prior passes on what it is given."""
    identity = prior(SPEC)
    identity.clip_mean.data.zero_()
    identity.clip_std.data.fill_(1)
    return UnCLIPPipeline(**karlo_parts(), prior=identity, prior_scheduler=UnCLIPScheduler())


def stable_diffusion():
    """Stable Diffusion, for an IP-Adapter."""
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(32, 64), layers_per_block=1,
        attention_head_dim=(2, 4), cross_attention_dim=TEXT_DIM,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text_config(replace(SPEC, width=TEXT_DIM))), tokenizer=clip_tokenizer(),
        unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl():
    """Stable Diffusion XL, whose text is of two encoders."""
    spec = replace(SPEC, width=TEXT_DIM)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(32, 64), layers_per_block=1,
        attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), use_linear_projection=True,
        cross_attention_dim=2 * TEXT_DIM, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT_DIM,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading")
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=CLIPTextModel(text_config(spec)), text_encoder_2=text_encoder(spec),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), unet=unet, scheduler=scheduler,
    )  # fmt: skip


def ip_adapter(unet, dim, tokens=4):
    """The weights of an IP-Adapter for a network, as its file has them: the embedding becomes so many tokens."""
    width = unet.config.cross_attention_dim
    layers = {}
    for number, name in enumerate(name for name in unet.attn_processors if name.endswith("attn2.processor")):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("k", "v"):
            layers[f"{2 * number + 1}.to_{part}_ip.weight"] = torch.randn(attention.inner_dim, width)
    projection = {"proj.weight": torch.randn(tokens * width, dim), "proj.bias": torch.randn(tokens * width),
                  "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}  # fmt: skip
    return {"image_proj": projection, "ip_adapter": layers}


def stable_unclip():
    """Stable unCLIP with the mean and scale of some embeddings."""
    tokenizer = clip_tokenizer()
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=DIM)
    torch.nn.init.normal_(normalizer.mean)
    torch.nn.init.uniform_(normalizer.std, 0.5, 2)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(32, 64), layers_per_block=1,
        attention_head_dim=(2, 4), class_embed_type="projection", projection_class_embeddings_input_dim=2 * DIM,
        cross_attention_dim=TEXT_DIM, use_linear_projection=True,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    return StableUnCLIPImg2ImgPipeline(
        **pictures(), image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"), tokenizer=tokenizer,
        text_encoder=CLIPTextModel(text_config(replace(SPEC, width=TEXT_DIM))), unet=unet, vae=vae,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False),
    )  # fmt: skip
