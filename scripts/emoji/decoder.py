"""A small decoder: an embedding to a picture of 96 x 96 pixels, 12 x 12 patches at a time."""

import torch
from torch import nn

from .clip import EMBEDDING_DIM
from .drawing import CANVAS

PATCH, WIDTH, HEADS, LAYERS, SEED_WIDTH, DETAIL_WIDTH = 12, 256, 4, 2, 32, 1280
CHANNELS, EDGE_CHANNELS = 8, 12
"""Of the map that the patches make, and of the convolutions that make a picture of it."""
SIDE = CANVAS // PATCH
PATCHES = SIDE**2


class Block(nn.Module):
    """A transformer block, norms first."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, hidden):
        """`(batch, patches, width)` to the same."""
        batch, patches, _ = hidden.shape
        query, key, value = self.qkv(self.norm1(hidden)).view(batch, patches, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5
        mixed = scores.softmax(-1).to(value.dtype) @ value
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(batch, patches, WIDTH))
        return hidden + self.down(nn.functional.gelu(self.up(self.norm2(hidden)), approximate="tanh"))


class Decoder(nn.Module):
    """`src/nn/decoder.rs` is the same."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(EMBEDDING_DIM), requires_grad=False)
        self.std = nn.Parameter(torch.ones(EMBEDDING_DIM), requires_grad=False)
        self.seed = nn.Linear(EMBEDDING_DIM, PATCHES * SEED_WIDTH)
        # Run once a picture, not once a patch: the cheapest place to know by heart what things look like.
        self.detail = nn.Sequential(
            nn.Linear(EMBEDDING_DIM, DETAIL_WIDTH), nn.GELU(approximate="tanh"),
            nn.Linear(DETAIL_WIDTH, DETAIL_WIDTH), nn.GELU(approximate="tanh"),
            nn.Linear(DETAIL_WIDTH, PATCHES * SEED_WIDTH),
        )  # fmt: skip
        self.widen = nn.Linear(SEED_WIDTH, WIDTH)
        self.whole = nn.Linear(EMBEDDING_DIM, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(PATCHES, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.pixels = nn.Linear(WIDTH, CHANNELS * PATCH * PATCH)
        # Patches do not see where their neighbours' edges end.
        self.edges = nn.Conv2d(CHANNELS, EDGE_CHANNELS, 3, padding=1)
        self.colors = nn.Conv2d(EDGE_CHANNELS, 3, 3, padding=1)

    def forward(self, embeds):
        """`(batch, 192)` to `(batch, 3, 96, 96)`, from -1 to 1. An embedding's length, which guidance changes, says nothing."""
        embeds = (nn.functional.normalize(embeds, dim=1) - self.mean) / self.std
        seeds = (self.seed(embeds) + self.detail(embeds)).view(-1, PATCHES, SEED_WIDTH)
        hidden = self.widen(seeds) + self.whole(embeds)[:, None] + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        patches = self.pixels(self.norm(hidden)).view(-1, SIDE, SIDE, CHANNELS, PATCH, PATCH)
        features = patches.permute(0, 3, 1, 4, 2, 5).reshape(-1, CHANNELS, CANVAS, CANVAS)
        return self.colors(nn.functional.gelu(self.edges(features), approximate="tanh"))
