"""Trains the decoder on, with embeddings that the prior makes of captions among the others: `scripts/train-emoji` runs this last.
It resumes where it was stopped.

An embedding of the prior is not the mean of pictures' embeddings, however near it lies: what it gets wrong it gets wrong in its
own way, and the decoder learns to see through that.
"""

import numpy as np
import torch
from torch.nn.functional import normalize as direction

from .batches import encode
from .decoder import Decoder
from .sources import cache
from .train_decoder import PLAIN, make_pool, train
from .train_prior import Denoiser, make_prior
from .trained_clip import load_clip
from .training import Optimizer, Run, arguments
from .wordings import fill, pick_name, random_template

CAPTIONS = 8
"""Captions of an emoji."""


@torch.no_grad()
def predict(denoiser, texts, tokenizer, seed, batch=256):
    """The directions of the embeddings that the prior sees in noise: its first step tells nearly all that 25 do."""
    prior, generator, found = denoiser.prior, torch.Generator().manual_seed(seed), []
    for at in range(0, len(texts), batch):
        query = encode(tokenizer, texts[at : at + batch])
        output, mask = denoiser.text(**query), query["attention_mask"].float()
        noise = torch.randn(len(mask), 1, output.text_embeds.shape[1], generator=generator)
        timesteps = torch.full((len(mask), 1), 999)
        predicted = denoiser(noise, timesteps, output.text_embeds, output.last_hidden_state, mask)[:, 0]
        found.append(predicted * prior.clip_std + prior.clip_mean)
    return direction(torch.cat(found), dim=1)


def main():
    """Trains."""
    options = arguments(__doc__, 1200, rate=8e-4)
    world, tokenizer, towers = load_clip()
    denoiser = Denoiser(make_prior(), towers.text).eval()
    denoiser.load_state_dict(torch.load(cache() / "run" / "refined" / "checkpoint.pt")["model"])
    rng = np.random.default_rng((options.seed, 5))
    texts = [fill(random_template(rng), pick_name(one, rng)) for one in world.emoji for _ in range(CAPTIONS)]
    told = predict(denoiser, texts, tokenizer, options.seed).unflatten(0, (len(world.emoji), CAPTIONS))
    pool, decoder = make_pool(world, towers, options.seed + 3), Decoder()
    decoder.load_state_dict(torch.load(cache() / "run" / "decoder" / "checkpoint.pt")["model"])
    run = Run(cache() / "run" / "refined_decoder", decoder, Optimizer(decoder, 0.0), options.steps, options.rate)

    def batch_of(rng):
        """A batch of the pool with captions' embeddings in place of the mixtures that mean a plain picture."""
        embeds, pictures = pool.batch(rng)
        emoji = torch.from_numpy(rng.choice(len(told), PLAIN, replace=False))
        embeds[:PLAIN] = told[emoji, torch.from_numpy(rng.integers(CAPTIONS, size=PLAIN))]
        pictures[:PLAIN] = pool.singles[emoji, 0]
        return embeds, pictures

    train(run, decoder, batch_of, options.seed)


if __name__ == "__main__":
    main()
