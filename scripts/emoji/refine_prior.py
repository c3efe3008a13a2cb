"""Trains the prior on, with the text tower as it is: `scripts/train-emoji` runs this after `train_prior`. It resumes where it
was stopped.

The cosine to the true embedding joins the loss, and a text tower that is only read costs a third of one that is trained.
"""

import numpy as np
import torch
from torch import nn

from .bank import Bank, what_is_shown
from .batches import encode
from .clip import EMBEDDING_DIM
from .sources import cache
from .train_prior import Denoiser, EpochImages, contrast, denoise, encode_captions, make_prior, make_scheduler
from .trained_clip import load_clip
from .training import Optimizer, Run, arguments, load_batches

SINGLES, GROUPS, GROUP_SIZE, CAPTIONS = 64, 11, 8, 3
CONTRAST, COSINE = 3.0, 3.0
"""The weights of telling pictures apart and of the cosine, beside the squared error. With 10 for the first, no more of the
right pictures are found, and cosines are 0.02 smaller."""
WHOLE = 0.5
"""The share of captions whose words are all shown. Of the others a random part is hidden, but never the end, which sums the
caption up: so the prior leans less on single words, among them those of templates that it has not seen before. The text
embedding is always shown."""


def hide_words(mask, generator):
    """A mask of the captions, `(captions, tokens)`, with some words hidden."""
    share = torch.rand(len(mask), 1, generator=generator)
    share *= torch.rand(len(mask), 1, generator=generator) >= WHOLE
    shown = torch.rand(mask.shape, generator=generator) >= share
    shown[torch.arange(len(mask)), mask.sum(1).long() - 1] = True
    return mask * shown


def losses(denoiser, scheduler, images, parts, shown, bank, generator):
    """`(loss, what it is made of)` of a batch."""
    found, prior = [], denoiser.prior
    for part in parts:
        part.mask = hide_words(part.mask, generator)
        _, predicted, clean = denoise(denoiser, scheduler, images, part, generator, problems=1)
        kept = ~part.dropped
        pictures, embeds = part.pictures[kept], (predicted * prior.clip_std + prior.clip_mean)[kept, 0]
        far = 1 - nn.functional.cosine_similarity(embeds, images[pictures])
        error = (predicted - clean).square().mean((1, 2))
        found.append((error, contrast(embeds, pictures, images, shown, bank), far))
    error, apart, far = (torch.cat(values) for values in zip(*found))
    loss = error.mean() + CONTRAST * apart.mean() + COSINE * far.mean()
    parts = {"error": error, "contrast": apart, "cosine": 1 - far}
    return loss, {name: values.detach().mean() for name, values in parts.items()}


def main():
    """Trains."""
    options = arguments(__doc__, 6000)
    world, tokenizer, towers = load_clip()
    denoiser = Denoiser(make_prior(), towers.text)
    denoiser.load_state_dict(torch.load(cache() / "run" / "prior" / "checkpoint.pt")["model"])
    denoiser.train().text.requires_grad_(False)
    denoiser.prior.clip_mean.requires_grad_(False), denoiser.prior.clip_std.requires_grad_(False)
    run = Run(cache() / "run" / "refined", denoiser, Optimizer(denoiser, 0.02), options.steps, options.rate)
    scheduler, bank = make_scheduler(), Bank(EMBEDDING_DIM)
    # Pictures do not come again: of 600 batches of them the prior began to learn the embeddings by heart.
    empty, images = encode(tokenizer, [""]), EpochImages(towers, options.steps)
    sizes = (SINGLES, GROUPS, GROUP_SIZE, CAPTIONS)
    for batch in load_batches(world, tokenizer, options.seed + 4, run, *sizes):
        rng = np.random.default_rng((options.seed, run.step))
        generator = torch.Generator().manual_seed(options.seed * 2**32 + run.step)
        embeds, shown = images.of(run.step, batch), what_is_shown(batch)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                parts = list(encode_captions(towers.text, batch, empty, rng))
            loss, made_of = losses(denoiser, scheduler, embeds, parts, shown, bank, generator)
        bank.add(embeds, shown)
        run.backward(loss, made_of)


if __name__ == "__main__":
    main()
