"""The image embeddings of many pictures, made once by the trained image tower, and batches of captions for them.

What a picture shows is drawn anew from its seed whenever captions are wanted: so each pass over the pool has captions of its own.
"""

import os

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from .bank import SHOWN
from .batches import Batches, by_length, normalize
from .lexicon import Lexicon
from .packages import cache
from .precision import reduced
from .wordings import choose

SINGLES, GROUPS, GROUP_SIZE = 128, 8, 16
SIZE = SINGLES + GROUPS * GROUP_SIZE
"""Pictures a batch; the first are single emoji."""
BATCHES = 600
SEED = 7
PART = 64
"""Pictures that are embedded at once."""
WORDS = 48
"""Words and definitions of the lexicon in a batch of captions."""


class Pool:
    """Embeddings `(BATCHES * SIZE, dim)` float32, and what the pictures show, by name."""

    def __init__(self, world, towers, tokenizer):
        folder = cache() / "run" / "pool"
        if not (folder / "embeds.npy").is_file():
            make(world, towers, tokenizer, folder)
        self.embeds = torch.from_numpy(np.load(folder / "embeds.npy")).float()
        with np.load(folder / "labels.npz") as saved:
            self.labels = {name: torch.from_numpy(saved[name]).long() for name in saved}
        self.shown = torch.stack([self.labels[name] for name in SHOWN], 1)
        single = torch.arange(len(self.embeds)) % SIZE < SINGLES
        rows = single.nonzero()[:, 0]
        order = self.labels["thing0"][rows].argsort(stable=True)
        counts = torch.bincount(self.labels["thing0"][rows], minlength=len(world.emoji))
        self.of_emoji = [part.numpy() for part in rows[order].split(counts.tolist())]
        """The rows that show each emoji alone."""

    def emoji_means(self):
        """The mean direction of the embeddings of each emoji alone, `(emoji, dim)`."""
        directions = torch.nn.functional.normalize(self.embeds, dim=1)
        means = torch.stack([directions[torch.from_numpy(rows)].mean(0) for rows in self.of_emoji])
        return torch.nn.functional.normalize(means, dim=1)


@torch.no_grad()
def make(world, towers, tokenizer, folder):
    """Draws and embeds all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    batches = Batches(world, tokenizer, SEED, 0, BATCHES, SINGLES, GROUPS, GROUP_SIZE, 0)
    embeds, labels = [], {}
    for batch in DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4):
        with reduced():
            # A few at a time stay in the processor's cache.
            for part in normalize(batch["pictures"]).split(PART):
                embeds.append(towers.image(pixel_values=part).image_embeds.half())
        for name, values in batch["labels"].items():
            labels.setdefault(name, []).append(values.short())
    np.savez(folder / "labels.npz", **{name: torch.cat(values).numpy() for name, values in labels.items()})
    np.save(folder / "new.npy", torch.cat(embeds).numpy())
    os.replace(folder / "new.npy", folder / "embeds.npy")


def in_parts(seed, first, last, parts, begin):
    """Batches `first` to `last` of a run, `parts` of them from one of the pool, which come in another order each time. Batch i
    is the same in every run.

    `begin(drawn, rng)` begins one of the pool; what it returns makes of places in that one, and an `rng`, a batch.
    """
    for at in range(first // parts, -(-last // parts)):
        order = np.random.default_rng((seed, at // BATCHES, 1)).permutation(BATCHES)
        make_of = begin(int(order[at % BATCHES]), np.random.default_rng((seed, at, 2)))
        mixed = np.random.default_rng((seed, at, 3)).permutation(SIZE)
        for part, places in enumerate(mixed.reshape(parts, -1)):
            if first <= at * parts + part < last:
                yield make_of(places, np.random.default_rng((seed, at, 4, part)))


class Captions(IterableDataset):
    """Batches of captions for the pool's pictures, and of words.

    `rows` has the row in the pool of each caption's picture; `word_rows` that of a picture that each word may mean;
    `meant` the emoji that it may mean, and `probability` how much.
    """

    def __init__(self, world, pool, tokenizer, seed, first, last, parts=1):
        self.world, self.pool, self.tokenizer = world, pool, tokenizer
        self.seed, self.first, self.last, self.parts = seed, first, last, parts
        self.lexicon = Lexicon(world.emoji)
        self.recipes = Batches(world, tokenizer, SEED, 0, 1, SINGLES, GROUPS, GROUP_SIZE, 1)

    def __iter__(self):
        return in_parts(self.seed, self.first, self.last, self.parts, self.begin)

    def begin(self, drawn, rng):
        """New captions for a batch of the pool."""
        samples = self.recipes.samples(np.random.default_rng((SEED, drawn)), rng)
        return lambda places, rng: {
            "captions": by_length(self.tokenizer, [samples[place].texts[0] for place in places]),
            "rows": drawn * SIZE + torch.from_numpy(places),
            **self.words(rng),
        }

    def words(self, rng):
        """Words, and what they may mean."""
        places = self.lexicon.sample(WORDS // self.parts, rng)
        rows = [choose(rng, self.pool.of_emoji[at]) for at in self.lexicon.meant(places, rng)]
        return {
            "words": by_length(self.tokenizer, [self.lexicon.texts[at] for at in places]),
            "word_rows": torch.tensor(np.array(rows)),
            "meant": torch.from_numpy(self.lexicon.emoji[places].astype(np.int64)),
            "probability": torch.from_numpy(self.lexicon.probability[places]),
        }


def load_captions(world, pool, tokenizer, seed, run, parts=1):
    """The batches that are left of a run, made by a process of their own."""
    captions = Captions(world, pool, tokenizer, seed, run.step, run.steps, parts)
    return DataLoader(captions, batch_size=None, num_workers=1, prefetch_factor=4)
