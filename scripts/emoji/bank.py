"""Pictures of earlier batches as wrong answers: possible where the image tower no longer changes."""

import torch

from .clip import cosines

BANK = 4096
SHOWN = ("thing0", "thing1", "thing2", "layout")
"""Pictures with the same of these are no wrong answers for each other's captions."""


class Bank:
    """Image embeddings of the last batches, and what the pictures show."""

    def __init__(self, dim):
        self.embeds = torch.empty(0, dim)
        self.shown = torch.empty(0, len(SHOWN), dtype=torch.long)

    def cosines(self, embeds, shown):
        """Of embeddings made from captions, `(captions, dim)`, and the pictures: minus infinity for those that show the same
        as the caption's own, `shown`."""
        same = (shown[:, None] == self.shown[None]).all(2)
        return cosines(embeds, self.embeds).masked_fill(same, -torch.inf)

    def add(self, embeds, shown):
        """The oldest make room."""
        self.embeds = torch.cat([self.embeds, embeds])[-BANK:]
        self.shown = torch.cat([self.shown, shown])[-BANK:]
