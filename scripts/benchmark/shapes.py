"""The shapes of the models that are timed, and where their folders with random weights lie."""

import json
from dataclasses import asdict, dataclass

from cache_folder import cache_folder

from .children import BenchError, run_module

# Raised whenever models.py would write something else, so that older folders are made again.
RECIPE = 1


@dataclass(frozen=True)
class Shape:
    """A prior and the text encoder before it. Both have the embedding's width in all published models."""

    prior_heads: int
    prior_head_dim: int
    prior_layers: int
    embedding_dim: int
    text_layers: int
    text_heads: int
    text_intermediate: int
    hidden_act: str
    eos_token_id: int
    pad_token: str
    clip_sample_range: float
    seed: int


END = "<|endoftext|>"
# An `eos_token_id` of 2 is what old configurations say, and means: pool at the highest token id.
SHAPES = {
    # kakaobrain/karlo-v1-alpha; CLIP ViT-L/14.
    "karlo": Shape(32, 64, 20, 768, 12, 12, 3072, "quick_gelu", 2, END, 10.0, 1),
    # kandinsky-community/kandinsky-2-2-prior; CLIP ViT-bigG/14.
    "kandinsky-2.2": Shape(32, 64, 20, 1280, 32, 20, 5120, "gelu", 49407, "!", 5.0, 2),
    # For seconds instead of minutes: shows that the scripts work and says nothing about speed.
    "tiny": Shape(4, 32, 2, 64, 2, 4, 256, "quick_gelu", 2, END, 10.0, 3),
}


def recipe(name):
    """What a folder was made from."""
    return {"recipe": RECIPE, "shape": asdict(SHAPES[name])}


def ensure_model(name):
    """The folder of a shape's model in float32, made if it is not there or was made by another recipe."""
    folder = cache_folder() / "bench" / f"{name}-f32"
    if read_recipe(folder) != recipe(name):
        run_module("models", name, folder)
        if read_recipe(folder) != recipe(name):
            raise BenchError(f"no model of shape {name} came to be in the cache; remove its bench folder and try again")
    return folder


def read_recipe(folder):
    """What a folder says it was made from, or None."""
    try:
        return json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def weight_header(path):
    """The header of a safetensors file: name to shape, without reading the weights."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
