"""The shapes of the models that are timed, and where their folders with random weights lie."""

import json

from ..cache import cache_folder
from .children import BenchError, run_module

# Raised whenever models.py would write something else, so that older folders are made again.
RECIPE = 2

ALL_MERGES = 49152 - 256 - 2
# Arguments of models.pipelines.Spec, which needs torch and so is not imported here.
COMMON = {"as_trained": True, "image_encoder": False, "merges": ALL_MERGES}


def sampling(clip_sample_range):
    """The scheduler of all published models."""
    return {"variance_type": "fixed_small_log", "clip_sample": True, "clip_sample_range": clip_sample_range}


# The shape of a one-step prior that goes with another's text encoder.
ONE_STEP = {"karlo": "eclipse-karlo"}

SHAPES = {
    # kakaobrain/karlo-v1-alpha; CLIP ViT-L/14.
    "karlo": COMMON | {
        "seed": 10, "width": 768, "text_layers": 12, "text_heads": 12, "text_intermediate": 3072,
        "prior_heads": 32, "prior_head_dim": 64, "prior_layers": 20, "scheduler": sampling(10.0),
    },
    # kandinsky-community/kandinsky-2-2-prior; CLIP ViT-bigG/14.
    "kandinsky-2.2": COMMON | {
        "seed": 20, "width": 1280, "text_layers": 32, "text_heads": 20, "text_intermediate": 5120, "hidden_act": "gelu",
        "argmax_pooling": False, "pad_token": "!", "prior_heads": 32, "prior_head_dim": 64, "prior_layers": 20,
        "scheduler": sampling(5.0),
    },
    # ECLIPSE-Community/ECLIPSE_Karlo_Prior, a one-step prior; CLIP ViT-L/14.
    "eclipse-karlo": COMMON | {
        "seed": 40, "width": 768, "text_layers": 12, "text_heads": 12, "text_intermediate": 3072,
        "prior_heads": 16, "prior_head_dim": 32, "prior_layers": 10, "prior": {"additional_embeddings": 3},
    },
    # For seconds instead of minutes: shows that the scripts work and says nothing about speed.
    "tiny": COMMON | {
        "seed": 30, "width": 64, "text_layers": 2, "text_heads": 4, "text_intermediate": 256,
        "prior_heads": 4, "prior_head_dim": 32, "prior_layers": 2, "scheduler": sampling(10.0),
    },
}  # fmt: skip


def recipe(name):
    """What a folder was made from."""
    return {"recipe": RECIPE, "shape": SHAPES[name]}


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
