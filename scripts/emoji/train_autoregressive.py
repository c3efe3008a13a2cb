"""Trains the autoregressive prior on image embeddings and captions of the frozen CLIP. It resumes where it was stopped."""

import numpy as np
import torch
from torch import nn

from .autoregressive import AutoregressivePrior, Config
from .batches import Batches, encode, normalize
from .clip import EMBEDDING_DIM, MAX_LENGTH
from .sources import cache
from .train_prior import EPOCH, EpochImages, encode_captions
from .trained_clip import load_clip
from .training import Optimizer, Run, arguments, load_batches

SINGLES, GROUPS, GROUP_SIZE, CAPTIONS = 64, 11, 8, 1
"""A caption is run with all buckets of its picture, which costs ten times as much as one of the prior's denoising problems."""

DROPPED = 0.1
"""The share of captions that are emptied, for guidance."""
UNKNOWN, UNKNOWN_DROPPED = 0.1, 0.5
"""The shares of captions and of emptied ones whose dot product is not told. Guidance leads away from an empty caption without
one; drawn for itself, an empty caption has one as any other."""
DOT_PRODUCT = 0.1
"""The weight of a dot product's cross entropy beside a bucket's."""


def make_autoregressive():
    """A prior that fits the built-in CLIP. On its embeddings, 96 dimensions have 99.7 % of the variance, and 128 buckets a
    squared error of 0.02 % of it."""
    return AutoregressivePrior(Config(
        embedding_dim=EMBEDDING_DIM, embedding_proj_dim=EMBEDDING_DIM, encoder_hid_dim=EMBEDDING_DIM,
        num_embeddings=MAX_LENGTH,
    ))  # fmt: skip


def dot_products(images, text_embeds):
    """Of the unit vectors of pairs, `(n)`."""
    return nn.functional.cosine_similarity(images.float(), text_embeds.float(), dim=-1)


def losses(model, images, text_embeds, states, mask, dropped, generator):
    """`(loss, what it is made of)` of a batch: the cross entropy of buckets and of dot products.

    `images` `(n, dim)`, and what the prior sees of their captions: `text_embeds` `(n, dim)`, `states` `(n, L, width)`, `mask`
    `(n, L)`. `dropped` `(n)` says where these are of the empty caption.
    """
    config = model.config
    tokens = model.quantize(images)
    products = model.quantize_dot_products(dot_products(images, text_embeds))
    chance = torch.rand(len(images), generator=generator, device=generator.device).to(images.device)
    seen = products.masked_fill(chance < torch.where(dropped, UNKNOWN_DROPPED, UNKNOWN), model.unknown)
    product_logits, logits = model(states, mask, text_embeds, seen, tokens)
    entropy = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
    of_products = nn.functional.cross_entropy(product_logits.float(), products)
    quarters = entropy.detach().mean(0).tensor_split(min(4, config.num_tokens))
    made_of = {f"quarter_{at}": quarter.mean() for at, quarter in enumerate(quarters, 1)}
    loss = entropy.mean() + DOT_PRODUCT * of_products
    return loss, {"loss": loss.detach(), "entropy": entropy.detach().mean(), "dot_product": of_products.detach(), **made_of}


@torch.no_grad()
def some_pairs(world, towers, tokenizer):
    """Image and text embeddings of some thousand pictures and captions, always the same."""
    images, texts = [], []
    for batch in Batches(world, tokenizer, 1, 0, 16, 128, 64, 2):
        images.append(towers.image(pixel_values=normalize(batch["pictures"])).image_embeds)
        texts.append(towers.embed_texts(batch["captions"][0]))
    return torch.cat(images), torch.cat(texts)


def batch_losses(model, images, parts, generator):
    """The losses of a batch whose captions come in parts of about one length: their means over captions."""
    sums, count = {}, 0
    for part in parts:
        some = images[part.pictures]
        loss, made_of = losses(model, some, part.embeds, part.states, part.mask, part.dropped, generator)
        count += len(some)
        for name, value in {"total": loss, **made_of}.items():
            sums[name] = sums.get(name, 0.0) + value * len(some)
    means = {name: value / count for name, value in sums.items()}
    return means.pop("total"), means


def main():
    """Trains."""
    options = arguments(__doc__, 2500, rate=2e-3)
    world, tokenizer, towers = load_clip()
    model = make_autoregressive().train()
    run = Run(cache() / "run" / "autoregressive", model, Optimizer(model, 0.02), options.steps, options.rate)
    if run.step == 0:
        images, texts = some_pairs(world, towers, tokenizer)
        model.fit(images, dot_products(images, texts))
    empty, images = encode(tokenizer, [""]), EpochImages(towers, EPOCH)
    sizes = (SINGLES, GROUPS, GROUP_SIZE, CAPTIONS)
    for batch in load_batches(world, tokenizer, options.seed + 3, run, *sizes, epoch=EPOCH):
        rng = np.random.default_rng((options.seed, run.step))
        generator = torch.Generator().manual_seed(options.seed * 2**32 + run.step)
        embeds = images.of(run.step, batch)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                parts = list(encode_captions(towers.text, batch, empty, rng))
            loss, made_of = batch_losses(model, embeds, parts, generator)
        run.backward(loss, made_of)


if __name__ == "__main__":
    main()
