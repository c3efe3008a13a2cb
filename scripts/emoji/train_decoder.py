"""Trains what the decoder reads off embeddings: which things a picture shows, their poses and the background. It resumes where
it was stopped.

It learns from what the pool's pictures were made of: no picture need be drawn for that.
"""

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss
from torch.nn.functional import normalize as direction

from .batches import ABSENT, Batches
from .decoder import POSE, SLOTS, Arranger
from .drawing import CANVAS, color
from .packages import cache
from .pool import BATCHES as POOLED
from .pool import GROUP_SIZE, GROUPS, SEED, SINGLES, Pool
from .precision import reduced
from .trained_clip import load_clip
from .training import Average, Optimizer, Run, arguments

BATCH = 256
NOISE = 0.4
"""The prior's embeddings are not exact; neither are these, in standard deviations: so much at most."""
WEIGHTS = {"thing": 0.1, "background": 1.0, "there": 0.2, "pose": 2.0, "mirrored": 0.02}
"""Of the parts of the loss."""


def pose(placed):
    """What a decoder is to say of a thing."""
    angle = np.radians(placed.angle)
    half = CANVAS / 2
    return [1, placed.x / half - 1, placed.y / half - 1, np.log(placed.size / CANVAS), np.sin(angle), np.cos(angle), placed.mirrored]


def targets(world, tokenizer):
    """`(things, poses, backgrounds)` of the pool's pictures: `(pictures, slots)`, `(pictures, slots, 7)`, `(pictures, 3)`."""
    index = {key: at for at, key in enumerate(world.sprites.pictures)}
    recipes = Batches(world, tokenizer, SEED, 0, 1, SINGLES, GROUPS, GROUP_SIZE, 0)
    things, poses, backgrounds = [], [], []
    for drawn in range(POOLED):
        for sample in recipes.samples(np.random.default_rng((SEED, drawn)), np.random.default_rng(0)):
            empty = SLOTS - len(sample.objects)
            things.append([index[one.code, sample.style, one.tone] for one in sample.objects] + [ABSENT] * empty)
            poses.append([pose(one) for one in sample.objects] + [[0.0] * POSE] * empty)
            backgrounds.append(color(sample.background) / 255)
    return torch.tensor(things), torch.tensor(poses, dtype=torch.float32), torch.from_numpy(np.stack(backgrounds))


def losses(arranger, embeds, things, poses, backgrounds):
    """The parts of the loss, by name."""
    there = things != ABSENT
    with reduced():
        background, found, queries = arranger(embeds)
        scores = arranger.keys(queries[there])
    found = found.float()
    posed, wanted = found[there], poses[there]
    return {
        "thing": cross_entropy(scores.float(), things[there]),
        "background": (background.float() - backgrounds).abs().mean(),
        "there": binary_cross_entropy_with_logits(found[..., 0], there.float()),
        "pose": smooth_l1_loss(posed[:, 1:-1], wanted[:, 1:-1], beta=0.05),
        "mirrored": binary_cross_entropy_with_logits(posed[:, -1], wanted[:, -1]),
    }


def main():
    """Trains."""
    options = arguments(__doc__, 6000, rate=1.5e-3)
    world, tokenizer, towers = load_clip()
    pool, arranger = Pool(world, towers, tokenizer), Arranger()
    things, poses, backgrounds = targets(world, tokenizer)
    embeds = direction(pool.embeds, dim=1)
    arranger.mean.data, arranger.std.data = embeds.mean(0), embeds.std(0)
    run = Run(cache() / "run" / "decoder", arranger, Optimizer(arranger, 0.01), options.steps, options.rate, Average(arranger, 0.998))
    while run.step < run.steps:
        generator = torch.Generator().manual_seed(options.seed * 2**32 + run.step)
        rows = torch.randint(len(embeds), (BATCH,), generator=generator)
        noise = NOISE * torch.rand(len(rows), 1, generator=generator) * arranger.std
        told = embeds[rows] + noise * torch.randn(len(rows), embeds.shape[1], generator=generator)
        parts = losses(arranger, told, things[rows], poses[rows], backgrounds[rows])
        run.backward(sum(WEIGHTS[name] * part for name, part in parts.items()), {name: part.detach() for name, part in parts.items()})


if __name__ == "__main__":
    main()
