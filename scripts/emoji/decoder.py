"""A small decoder: an embedding to a picture of 96 x 96 pixels with up to four things on a plain background.

It remembers what all things look like, upright and large, as sprites; an embedding says which of them are in the picture, by
attention to their keys, and in which pose. So it learns what a thing looks like once and not in every place, and its
edges are as sharp in any of them.
"""

import torch
from torch import nn
from torch.nn.functional import affine_grid, avg_pool2d, gelu, grid_sample, normalize

from .clip import EMBEDDING_DIM
from .drawing import CANVAS

WIDTH, LAYERS, SLOTS, KEY_WIDTH = 1024, 2, 4, 96
THINGS, LATENT_WIDTH, SPRITE, CHANNELS = 16412, 192, 64, 32
"""Sprites, the numbers that each is remembered by, its height and width in pixels, and the width of what sharpens it."""
RGBA = 4
POSE = 7
"""Whether a thing is there, x and y of its middle, the logarithm of its size, sine and cosine of its angle, and whether it is
mirrored; the first and the last as logits. Places are in half canvases from the middle, sizes in whole ones."""
SHARPNESS = 8.0
"""What attention's scores are multiplied with: a mixture of two things looks like neither."""
SAMPLES = 2
"""Pixels of the canvas are means of so many places across and down."""


class Block(nn.Module):
    """A residual layer."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden):
        """`(batch, width)` to the same."""
        return hidden + gelu(self.linear(self.norm(hidden)), approximate="tanh")


class Arranger(nn.Module):
    """What an embedding says of a picture."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(EMBEDDING_DIM), requires_grad=False)
        self.std = nn.Parameter(torch.ones(EMBEDDING_DIM), requires_grad=False)
        self.embed = nn.Linear(EMBEDDING_DIM, WIDTH)
        self.trunk = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.background = nn.Linear(WIDTH, 3)
        self.poses = nn.Linear(WIDTH, SLOTS * POSE)
        self.queries = nn.Linear(WIDTH, SLOTS * KEY_WIDTH)
        self.keys = nn.Linear(KEY_WIDTH, THINGS)

    def forward(self, embeds):
        """The background `(batch, 3)`, poses `(batch, slots, 7)` and queries `(batch, slots, key)` of embeddings. An embedding's
        length, which guidance changes, says nothing."""
        hidden = self.embed((normalize(embeds, dim=1) - self.mean) / self.std)
        for block in self.trunk:
            hidden = block(hidden)
        hidden = self.norm(hidden)
        return self.background(hidden), self.poses(hidden).unflatten(1, (SLOTS, POSE)), self.queries(hidden).unflatten(1, (SLOTS, KEY_WIDTH))


class SpriteMemory(nn.Module):
    """What things look like: their leading principal components, and convolutions that make edges of these."""

    def __init__(self):
        super().__init__()
        self.values = nn.Linear(THINGS, LATENT_WIDTH, bias=False)
        self.components = nn.Linear(LATENT_WIDTH, RGBA * SPRITE * SPRITE)
        self.first = nn.Conv2d(RGBA, CHANNELS, 5, padding=2)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.third = nn.Conv2d(CHANNELS, RGBA, 3, padding=1)

    def forward(self, latents):
        """`(batch, latent)` to `(batch, 4, sprite, sprite)` from 0 to 1, or a little outside: colours with alpha multiplied in, and
        alpha."""
        rough = self.components(latents).view(-1, RGBA, SPRITE, SPRITE)
        hidden = gelu(self.first(rough), approximate="tanh")
        hidden = hidden + gelu(self.second(hidden), approximate="tanh")
        return rough + self.third(hidden)


class Decoder(nn.Module):
    """`src/nn/decoder.rs` is the same."""

    def __init__(self):
        super().__init__()
        self.arranger, self.sprites = Arranger(), SpriteMemory()

    def forward(self, embeds):
        """`(batch, dim)` to `(batch, 3, 96, 96)`, from 0 to 1."""
        background, poses, queries = self.arranger(embeds)
        canvas = background.clamp(0, 1)[..., None, None].expand(-1, -1, SAMPLES * CANVAS, SAMPLES * CANVAS)
        for slot in range(SLOTS):
            weights = (SHARPNESS * self.arranger.keys(queries[:, slot])).softmax(1)
            canvas = paste(self.sprites(self.sprites.values(weights)), poses[:, slot], canvas)
        return avg_pool2d(canvas, SAMPLES)


def paste(sprites, poses, canvas):
    """Puts a sprite in its pose onto each canvas `(batch, 3, height, width)`."""
    there, x, y, log_size, sine, cosine, mirrored = poses.unbind(1)
    length = (sine.square() + cosine.square()).sqrt().clamp_min(1e-6)
    scale = (-log_size).exp()
    sine, cosine = sine / length * scale, cosine / length * scale
    # From a place on the canvas to one in the sprite.
    mirror = torch.where(mirrored > 0, -1.0, 1.0)
    across = torch.stack([mirror * cosine, mirror * sine, -mirror * (cosine * x + sine * y)], 1)
    down = torch.stack([-sine, cosine, sine * x - cosine * y], 1)
    grid = affine_grid(torch.stack([across, down], 1), canvas.shape, align_corners=False)
    layer = grid_sample(sprites.clamp(0, 1), grid, mode="bilinear", align_corners=False)
    layer = layer * there.sigmoid()[:, None, None, None]
    return canvas * (1 - layer[:, 3:]) + layer[:, :3]
