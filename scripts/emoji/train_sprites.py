"""Makes the decoder's memory of what things look like: principal components, and convolutions trained to make edges of them.
It resumes where it was stopped."""

import numpy as np
import torch
from PIL import Image

from .batches import World
from .decoder import LATENT_WIDTH, SPRITE, SpriteMemory
from .packages import cache
from .precision import reduced
from .training import Average, Optimizer, Run, arguments

BATCH = 64
EDGES = 1.0
"""The weight of the distance of edges beside that of colours."""


class SpriteTable:
    """The pictures of all things as sprites, `(things, 4, SPRITE, SPRITE)` uint8."""

    def __init__(self, pictures):
        self.index = {key: at for at, key in enumerate(pictures)}
        self.pixels = torch.empty(len(pictures), 4, SPRITE, SPRITE, dtype=torch.uint8)
        for at, picture in enumerate(pictures.values()):
            # With alpha multiplied in.
            small = Image.fromarray(np.array(picture)).convert("RGBa").resize((SPRITE, SPRITE), Image.Resampling.BOX)
            self.pixels[at] = torch.from_numpy(np.array(small)).permute(2, 0, 1)

    def of(self, things):
        """From 0 to 1."""
        return self.pixels[things].float() / 255


@torch.no_grad()
def principal_components(sprites, pixels):
    """Sets the values of all things, and what they are values of."""
    rows = pixels.flatten(1).float() / 255
    mean = rows.mean(0)
    rows -= mean
    _, _, components = torch.svd_lowrank(rows, q=2 * LATENT_WIDTH, niter=2)
    components = components[:, :LATENT_WIDTH]
    values = rows @ components
    # Of one size, so that float16 has them all as exactly.
    scale = values.std(0)
    sprites.values.weight.copy_((values / scale).T)
    sprites.components.weight.copy_(components * scale)
    sprites.components.bias.copy_(mean)


def edges(pictures):
    """Differences between neighbours, across and down."""
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def main():
    """Trains."""
    options = arguments(__doc__, 2500, rate=3e-3)
    table, sprites = SpriteTable(World().sprites.pictures), SpriteMemory()
    folder = cache() / "run" / "sprites"
    if not (folder / "checkpoint.pt").is_file():
        principal_components(sprites, table.pixels)
        torch.nn.init.zeros_(sprites.third.weight), torch.nn.init.zeros_(sprites.third.bias)
    sprites.values.requires_grad_(False), sprites.components.requires_grad_(False)
    run = Run(folder, sprites, Optimizer(sprites, 0.0), options.steps, options.rate, Average(sprites, 0.99))
    while run.step < run.steps:
        generator = torch.Generator().manual_seed(options.seed * 2**32 + run.step)
        things = torch.randint(len(table.pixels), (BATCH,), generator=generator)
        with reduced():
            drawn = sprites(sprites.values.weight[:, things].T)
        true = table.of(things)
        colors, sharp = (drawn.float() - true).abs().mean(), sum((a - b).abs().mean() for a, b in zip(edges(drawn.float()), edges(true)))
        run.backward(colors + EDGES * sharp, {"colors": colors.detach(), "edges": sharp.detach()})


if __name__ == "__main__":
    main()
