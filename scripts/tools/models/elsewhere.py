"""Components from elsewhere in the place of a pipeline's own."""

import torch
from diffusers import PriorTransformer
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from .pipelines import Spec, image_encoder, save_pipeline, save_tokenizer, text_encoder

KINDS = {
    "prior": PriorTransformer,
    "text_encoder": CLIPTextModelWithProjection,
    "image_encoder": CLIPVisionModelWithProjection,
    "tokenizer": CLIPTokenizer,
}
WEIGHTS = {
    "prior": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "image_encoder": "model.safetensors",
}


def save_clip(spec, folder):
    """A whole `CLIPModel` with its tokenizer beside it, all at the root, as openai/clip-vit-large-patch14 has them."""
    text, image = text_encoder(spec), image_encoder(spec)
    parts = {"text_config": text.config.to_dict(), "vision_config": image.config.to_dict()}
    clip = CLIPModel(CLIPConfig(**parts, projection_dim=spec.width))
    clip.load_state_dict(text.state_dict() | image.state_dict(), strict=False)
    save_tokenizer(spec, folder)
    clip.save_pretrained(folder)


def load(name, folder):
    """A component in float32."""
    options = {} if name == "tokenizer" else {"dtype": torch.float32}
    return KINDS[name].from_pretrained(folder, **options)


def option(name):
    """The option that takes a component from elsewhere."""
    return "--" + name.replace("_", "-")


def random_other(draw, spec, names):
    """A pipeline some of whose components fit into another one."""
    merges = draw.randint(0, 400)
    if "text_encoder" in names and "tokenizer" not in names:
        merges = spec.merges + draw.randint(0, 40)
    if "tokenizer" in names and "text_encoder" not in names:
        merges = max(0, spec.merges - draw.randint(0, 40))
    return Spec(
        seed=draw.getrandbits(31),
        width=spec.width,
        max_length=spec.max_length,
        text_heads=draw.choice([1, spec.text_heads]),
        text_layers=draw.randint(1, 4),
        hidden_act=draw.choice(["gelu", "quick_gelu"]),
        argmax_pooling=draw.random() < 0.5,
        prior_heads=draw.randint(1, 6),
        prior_head_dim=draw.randint(2, 16),
        prior_layers=draw.randint(1, 4),
        prior={"time_embed_act_fn": draw.choice(["silu", "gelu"]), "norm_in_type": draw.choice([None, "layer"])},
        merges=merges,
        pad_token=draw.choice(["<|endoftext|>", "!"]),
        tokenizer_json=draw.random() < 0.5,
        dtype=draw.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16]),
    )


def replace_components(draw, spec, pipeline, work):
    """Replaces some of a pipeline's components; returns prior-embed's options for it, and what they are."""
    names = draw.sample(list(KINDS), draw.randint(1, len(KINDS)))
    other = random_other(draw, spec, names)
    model, clip = work / "elsewhere", work / "clip"
    save_pipeline(other, model)
    save_clip(other, clip)
    options, replaced = [], []
    for name in names:
        place = draw.choice(["component", "model", "file", "clip"])
        if place == "clip" and name == "prior" or place == "file" and name == "tokenizer":
            place = "component"
        folder = clip if place == "clip" else model / name
        path = {"model": model, "file": folder / WEIGHTS.get(name, "")}.get(place, folder)
        pipeline.register_modules(**{name: load(name, folder)})
        options += [option(name), str(path)]
        replaced.append(f"{name} of a {place}")
    return options, replaced
