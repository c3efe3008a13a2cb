"""Pictures of earlier batches as wrong answers: possible where the image tower no longer changes."""

import torch

from .clip import SCALE

BANK = 4096
SHOWN = ("thing0", "thing1", "thing2", "layout")
"""Pictures with the same of these are no wrong answers for each other's captions."""


def what_is_shown(batch):
    """What a batch's pictures show, `(pictures, labels)`."""
    return torch.stack([batch["labels"][name] for name in SHOWN], 1)


class Bank:
    """Image embeddings of the last batches, of length 1, and what the pictures show."""

    def __init__(self, dim):
        self.embeds = torch.empty(0, dim)
        self.shown = torch.empty(0, len(SHOWN), dtype=torch.long)

    def scores(self, directions, shown):
        """Scores of captions, `(captions, ..., dim)` of length 1, against the pictures: minus infinity for those that show
        the same as the caption's own, `shown`."""
        same = (shown[:, None] == self.shown[None]).all(2)
        same = same.view(len(same), *[1] * (directions.ndim - 2), same.shape[1])
        return (SCALE * directions @ self.embeds.T).masked_fill(same, -torch.inf)

    def add(self, embeds, shown):
        """The oldest make room."""
        self.embeds = torch.cat([self.embeds, embeds])[-BANK:]
        self.shown = torch.cat([self.shown, shown])[-BANK:]
