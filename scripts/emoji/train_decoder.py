"""Trains the decoder on pictures and their embeddings. It resumes where it was stopped."""

import torch

from .batches import normalize
from .decoder import Decoder
from .sources import cache
from .trained_clip import load_clip, some_embeds, statistics
from .training import Optimizer, Run, arguments, load_batches

SINGLES, GROUPS, GROUP_SIZE = 288, 80, 2
NOISE = 0.15
"""The prior's embeddings are not exact; neither are these, in standard deviations."""


def edges(pictures):
    """Differences between neighbours, across and down."""
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def main():
    """Trains."""
    options = arguments(__doc__, 500, rate=2e-3)
    world, tokenizer, towers = load_clip()
    decoder = Decoder()
    run = Run(cache() / "run" / "decoder", decoder, Optimizer(decoder, 0.0), options.steps, options.rate)
    if run.step == 0:
        mean, std = statistics(some_embeds(world, towers, tokenizer))
        decoder.mean.data, decoder.std.data = mean[0], std[0]
    for batch in load_batches(world, tokenizer, options.seed + 3, run, SINGLES, GROUPS, GROUP_SIZE):
        generator = torch.Generator().manual_seed(options.seed * 2**32 + run.step)
        pictures = normalize(batch["pictures"])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            embeds = towers.image(pixel_values=pictures).image_embeds.float()
        embeds += NOISE * decoder.std * torch.randn(embeds.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = decoder(embeds)
        drawn = drawn.float()
        plain = (drawn - pictures).abs().mean()
        sharp = sum((a - b).abs().mean() for a, b in zip(edges(drawn), edges(pictures)))
        run.backward(plain + sharp, {"pixels": plain.detach(), "edges": sharp.detach()})


if __name__ == "__main__":
    main()
