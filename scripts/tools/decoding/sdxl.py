"""Stable Diffusion XL, which an IP-Adapter lets take embeddings."""

from pathlib import Path

from .decoder import Decoder
from ..problem import Problem

REPOSITORY, FOLDER, FILE = "h94/IP-Adapter", "sdxl_models", "ip-adapter_sdxl.safetensors"
"""The adapter for embeddings of CLIP's ViT-bigG; that for ViT-H has another name there."""
GUIDANCE_SCALE = 5.0
"""diffusers' default."""


class Sdxl(Decoder):
    """StableDiffusionXLPipeline with an IP-Adapter."""

    def load(self):
        from diffusers import StableDiffusionXLPipeline

        pipeline = self.from_pretrained(StableDiffusionXLPipeline, image_encoder=None, feature_extractor=None)
        source, folder, file = REPOSITORY, FOLDER, FILE
        if self.options.ip_adapter is not None:
            path = Path(self.options.ip_adapter)
            source, folder, file = str(path.parent), "", path.name
        pipeline.load_ip_adapter(source, subfolder=folder, weight_name=file, image_encoder_folder=None)
        if self.options.ip_adapter_scale is not None:
            pipeline.set_ip_adapter_scale(self.options.ip_adapter_scale)
        return pipeline

    @property
    def dim(self):
        from diffusers.models.embeddings import ImageProjection

        (projection,) = self.pipeline.unet.encoder_hid_proj.image_projection_layers
        if not isinstance(projection, ImageProjection):
            name = self.options.ip_adapter or FILE
            raise Problem(f'"{name}" takes the hidden states of an image encoder, and no embeddings; give an adapter '
                          f"like {FILE} of {REPOSITORY}")  # fmt: skip
        return projection.image_embeds.in_features

    def settings(self, embed, _negative, prompt):
        import torch

        scale = GUIDANCE_SCALE if self.options.guidance_scale is None else self.options.guidance_scale
        # A distilled network is told the scale, and has no second pass to guide with.
        has_guidance = scale > 1 and self.pipeline.unet.config.time_cond_proj_dim is None
        # As with a picture: the negative embedding is zeros, and comes first.
        embeds = torch.stack([torch.zeros_like(embed), embed]) if has_guidance else embed[None]
        return {"ip_adapter_image_embeds": [embeds], "prompt": prompt} | self.sampling() | {"guidance_scale": scale}
