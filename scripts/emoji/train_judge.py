"""Trains the judge: a classifier that names the emoji in a picture, and by which decoded pictures are judged.

It learns from true pictures alone and shares nothing with the model: neither weights nor the decoder's pictures. `evaluate`
trains it where it is missing. It resumes where it was stopped.
"""

import torch
from torch import nn

from .batches import World, classes, normalize
from .clip import embed_pictures, image_tower
from .packages import cache
from .precision import reduced
from .training import Average, Optimizer, Run, arguments, load_batches, trained

NAMES = ("thing0", "thing1", "thing2")
SINGLES, GROUPS, GROUP_SIZE = 192, 8, 8
PATCHES, MASKED = 32, 0.8
STEPS = 2000


class Judge(nn.Module):
    """A vision transformer with a head for each thing in reading order."""

    def __init__(self, count):
        super().__init__()
        self.tower = image_tower()
        self.heads = nn.ModuleList(nn.Linear(self.tower.config.projection_dim, count) for _ in NAMES)

    def forward(self, pixels, patches=None):
        """`[(pictures, emoji + 1)]` scores for each thing."""
        embeds = embed_pictures(self.tower, pixels, patches)
        return [head(embeds) for head in self.heads]

    @torch.no_grad()
    def names(self, pictures, batch=256):
        """The emoji in uint8 pictures `(n, 96, 96, 3)`, by number: `(n, things)`; one more than the last is none."""
        pixels = normalize(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        return torch.cat([torch.stack([scores.argmax(1) for scores in self(part)], 1) for part in pixels.split(batch)])


def load_judge(world):
    """The trained judge."""
    return trained("judge", Judge(classes(world)["thing0"]))


def train(steps, rate=2e-3, seed=0):
    """Trains, or goes on."""
    world = World()
    judge = Judge(classes(world)["thing0"]).train()
    run = Run(cache() / "run" / "judge", judge, Optimizer(judge, 0.05), steps, rate, Average(judge, 0.995))
    for batch in load_batches(world, None, seed + 9, run, SINGLES, GROUPS, GROUP_SIZE, 0):
        patches = PATCHES if run.step < MASKED * steps else None
        with reduced():
            scores = judge(normalize(batch["pictures"]), patches)
            losses = [nn.functional.cross_entropy(s, batch["labels"][name]) for s, name in zip(scores, NAMES)]
        right = (scores[0].argmax(1) == batch["labels"]["thing0"]).float().mean()
        run.backward(sum(losses), {"loss": losses[0].detach(), "right": right})


def main():
    """Trains."""
    options = arguments(__doc__, STEPS, rate=2e-3)
    train(options.steps, options.rate, options.seed)


if __name__ == "__main__":
    main()
