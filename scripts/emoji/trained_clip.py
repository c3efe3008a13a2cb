"""The trained CLIP, as the prior and the decoder learn from it: turned, and frozen."""

import torch

from .batches import Batches, World, classes, normalize
from .clip import Towers
from .sources import cache
from .vocabulary import CLIPTokenizer


def turned():
    """Where the turned towers lie."""
    return cache() / "run" / "clip" / "turned.pt"


def load_clip():
    """`(world, tokenizer, towers)` of the trained CLIP, frozen."""
    world, tokenizer = World(), CLIPTokenizer.from_pretrained(cache() / "run" / "tokenizer")
    towers = Towers(tokenizer, classes(world))
    towers.load_state_dict(torch.load(turned()))
    return world, tokenizer, towers.eval().requires_grad_(False)


@torch.no_grad()
def some_embeds(world, towers, tokenizer):
    """Image embeddings of some thousand pictures, always the same."""
    batches = Batches(world, tokenizer, 1, 0, 16, 128, 64, 2)
    return torch.cat([towers.image(pixel_values=normalize(batch["pictures"])).image_embeds for batch in batches])


@torch.no_grad()
def turn(towers, images):
    """Turns both towers' embeddings, and what reads them, so that the numbers of an image embedding are uncorrelated. All
    cosines stay. The prior's scale has a factor for each number: after the turn it can raise the directions that vary
    little, by which like things are told apart."""
    axes = torch.linalg.eigh(torch.cov(images.double().T)).eigenvectors.T.flip(0)
    # Which way an axis points is free: always the same way.
    axes *= axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    for projection in (towers.image.visual_projection, towers.text.text_projection):
        projection.weight.copy_(axes @ projection.weight.double())
    for reader in (*towers.image_heads.heads.values(), *towers.text_heads.heads.values(), towers.thumbnail[0]):
        reader.weight.copy_(reader.weight.double() @ axes.T)


def statistics(images):
    """The prior's scale, from image embeddings: their mean, and the geometric mean of each number's standard deviation
    and the average one, `(1, dim)`. Divided by it, what varies little counts for more than in a cosine and for less than
    what varies much: in full measure it would be mostly noise to learn."""
    deviation = images.std(0, keepdim=True)
    return images.mean(0, keepdim=True), (deviation * deviation.mean()).sqrt()
