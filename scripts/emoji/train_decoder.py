"""Trains the decoder on pictures and their embeddings. It resumes where it was stopped."""

import argparse

import torch
from torch.utils.data import DataLoader

from .batches import Batches, World, normalize
from .decoder import Decoder
from .sources import cache
from .train_prior import load_towers, statistics
from .training import Run, optimizer
from .vocabulary import CLIPTokenizer

SINGLES, GROUPS, GROUP_SIZE = 288, 80, 2
NOISE = 0.15
"""The prior's embeddings are not exact; neither are these, in standard deviations."""


def edges(pictures):
    """Differences between neighbours, across and down."""
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def main():
    """Trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    world = World()
    tokenizer = CLIPTokenizer.from_pretrained(cache() / "run" / "tokenizer")
    towers = load_towers(world, tokenizer)
    decoder = Decoder()
    run = Run(cache() / "run" / "decoder", decoder, optimizer(decoder, 0.0), options.steps, options.rate)
    if run.step == 0:
        mean, std = statistics(towers, world, tokenizer, options.seed)
        decoder.mean.data, decoder.std.data = mean[0], std[0]
        torch.set_num_threads(2)
    batches = Batches(world, tokenizer, options.seed + 3, run.step, options.steps, SINGLES, GROUPS, GROUP_SIZE)
    for batch in DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4):
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
