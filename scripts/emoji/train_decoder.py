"""Trains the decoder on pictures and their embeddings. It resumes where it was stopped.

A prior's embedding of a short caption is about the mean of what the caption may show: both styles, all backgrounds. So the
decoder is given mixtures too, and is to draw the picture that most of the mixture is, or a plain one where none is: a sharp
picture of one of the possible things, not a blurred one of all.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize as direction

from .batches import normalize, scene_group, single
from .decoder import Decoder
from .sources import STYLES, cache
from .trained_clip import load_clip
from .training import Optimizer, Run, arguments

VARIANTS, SCENES = 7, 6000
"""Pictures of an emoji in each style, beside a plain one; pictures of scenes."""
BATCH, PLAIN, OF_SCENES = 128, 48, 24
"""Pictures a step; those among them that are plain ones of one emoji, and that are scenes."""
OTHERS = 4
"""Variants of the same emoji in a mixture, beside the one to be drawn."""
NOISE = 0.15
"""The prior's embeddings are not exact; neither are these, in standard deviations."""


@dataclass
class Pool:
    """All pictures, and the directions of their embeddings."""

    singles: torch.Tensor
    """`(emoji, 2 * (1 + VARIANTS), 3, 64, 64)` uint8: the plain one in the first style, in the second, then the others."""
    scenes: torch.Tensor
    embeds: torch.Tensor
    """`(emoji, 2 * (1 + VARIANTS), dim)`."""
    scene_embeds: torch.Tensor

    def batch(self, rng):
        """`(embeds, pictures)` of one step."""
        emoji, variants = self.embeds.shape[:2]
        count = BATCH - OF_SCENES
        chosen = torch.from_numpy(rng.choice(emoji, count, replace=False))
        main = torch.from_numpy(rng.integers(variants, size=count))
        share = torch.from_numpy(rng.uniform(0.6, 1.0, size=(count, 1))).float()
        main[:PLAIN], share[:PLAIN] = 0, torch.from_numpy(rng.uniform(0.0, 1.0, size=(PLAIN, 1))).float()
        others = torch.from_numpy(rng.integers(variants, size=(count, OTHERS)))
        rest = self.embeds[chosen[:, None], others].mean(1)
        mixed = share * self.embeds[chosen, main] + (1 - share) * rest
        scenes = torch.from_numpy(rng.choice(len(self.scenes), OF_SCENES, replace=False))
        embeds = torch.cat([mixed, self.scene_embeds[scenes]])
        return direction(embeds, dim=1), torch.cat([self.singles[chosen, main], self.scenes[scenes]])


@torch.no_grad()
def embed(towers, pictures):
    """Directions of image embeddings, in bfloat16's precision."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [towers.image(pixel_values=normalize(part)).image_embeds for part in pictures.split(256)]
    return direction(torch.cat(parts).float(), dim=1)


def make_pool(world, towers, seed):
    """Draws the pictures: always the same of one seed."""
    drawn = []
    for at, emoji in enumerate(world.emoji):
        drawn += [world.sprites.draw((255.0,) * 3, [(emoji.code, None, 56, 32, 32)], style) for style in STYLES]
        for variant in range(VARIANTS):
            for style in STYLES:
                rng = np.random.default_rng((seed, at, variant))
                drawn.append(single(world, emoji, rng, rng, 0, style).draw())
    rng, scenes = np.random.default_rng((seed, 1)), []
    while len(scenes) < SCENES:
        scenes += [sample.draw() for sample in scene_group(world, 2, rng, rng, 0)]
    stack = lambda pictures: torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    singles, scenes = stack(drawn), stack(scenes)
    by_emoji = lambda rows: rows.unflatten(0, (len(world.emoji), -1))
    return Pool(by_emoji(singles), scenes, by_emoji(embed(towers, singles)), embed(towers, scenes))


def edges(pictures):
    """Differences between neighbours, across and down."""
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def train(run, decoder, batch_of, seed):
    """All steps that are left of a run; `batch_of` draws a step's `(embeds, pictures)`."""
    while run.step < run.steps:
        embeds, pictures = batch_of(np.random.default_rng((seed, run.step)))
        generator = torch.Generator().manual_seed(seed * 2**32 + run.step)
        embeds = embeds + NOISE * decoder.std * torch.randn(embeds.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = decoder(embeds)
        drawn, pictures = drawn.float(), normalize(pictures)
        plain = (drawn - pictures).abs().mean()
        sharp = sum((a - b).abs().mean() for a, b in zip(edges(drawn), edges(pictures)))
        run.backward(plain + sharp, {"pixels": plain.detach(), "edges": sharp.detach()})


def main():
    """Trains."""
    options = arguments(__doc__, 9000, rate=2e-3)
    world, _, towers = load_clip()
    pool, decoder = make_pool(world, towers, options.seed + 3), Decoder()
    run = Run(cache() / "run" / "decoder", decoder, Optimizer(decoder, 0.0), options.steps, options.rate)
    if run.step == 0:
        everything = torch.cat([pool.embeds.flatten(0, 1), pool.scene_embeds])
        decoder.mean.data, decoder.std.data = everything.mean(0), everything.std(0)
    train(run, decoder, pool.batch, options.seed)


if __name__ == "__main__":
    main()
