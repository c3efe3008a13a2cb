"""The trained CLIP, as the prior and the decoder learn from it: frozen."""

import torch

from .batches import World, classes
from .clip import Towers
from .packages import cache
from .vocabulary import CLIPTokenizer


def load_clip():
    """`(world, tokenizer, towers)` of the trained CLIP, frozen."""
    world, tokenizer = World(), CLIPTokenizer.from_pretrained(cache() / "run" / "tokenizer")
    towers = Towers(tokenizer, classes(world))
    towers.load_state_dict(torch.load(cache() / "run" / "clip" / "checkpoint.pt")["model"])
    return world, tokenizer, towers.eval().requires_grad_(False)
