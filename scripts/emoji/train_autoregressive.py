"""Trains the autoregressive prior on the pool of image embeddings and captions, with the text encoder of assets/emoji. It
resumes where it was stopped."""

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextModelWithProjection

from tools.built import ROOT

from .autoregressive import AutoregressivePrior, Config
from .batches import encode
from .clip import EMBEDDING_DIM, MAX_LENGTH
from .packages import cache
from .pool import Captions, Pool, load_captions
from .precision import reduced
from .train_prior import encode_captions
from .trained_clip import load_clip
from .training import Average, Optimizer, Run, arguments

UNKNOWN, UNKNOWN_DROPPED = 0.1, 0.5
"""The shares of captions and of emptied ones whose dot product is not told. Guidance leads away from an empty caption without
one; drawn for itself, an empty caption has one as any other."""
DOT_PRODUCT = 0.1
"""The weight of a dot product's cross entropy beside a bucket's."""
WORDS = 0.2
"""The weight of the lexicon's words beside captions."""


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
def some_dot_products(captions, pool, text, empty):
    """Of a few thousand captions and their pictures."""
    found = []
    for batch in captions:
        for part in encode_captions(text, batch["captions"], empty, np.random.default_rng(0)):
            found.append(dot_products(pool.embeds[batch["rows"][part.place]], part.texts))
    return torch.cat(found)


def of_parts(model, parts, images, generator):
    """The losses of captions in parts with these image embeddings, in their order: means over captions."""
    sums, count = {}, 0
    for part in parts:
        of_part = images[part.place], part.embeds, part.states, part.mask, part.dropped
        loss, made_of = losses(model, *of_part, generator)
        count += len(part.place)
        for name, value in {"total": loss, **made_of}.items():
            sums[name] = sums.get(name, 0.0) + value * len(part.place)
    means = {name: value / count for name, value in sums.items()}
    return means.pop("total"), means


def train(model, text, pool, empty, batches, run, seed):
    """Trains on batches of captions."""
    for batch in batches:
        rng = np.random.default_rng((seed, run.step))
        generator = torch.Generator().manual_seed(seed * 2**32 + run.step)
        with reduced():
            with torch.no_grad():
                captions, words = (list(encode_captions(text, batch[name], empty, rng)) for name in ("captions", "words"))
            loss, made_of = of_parts(model, captions, pool.embeds[batch["rows"]], generator)
            of_words, _ = of_parts(model, words, pool.embeds[batch["word_rows"]], generator)
        run.backward(loss + WORDS * of_words, {**made_of, "words": of_words.detach()})


def main():
    """Trains."""
    options = arguments(__doc__, 1500, rate=2e-3)
    world, tokenizer, towers = load_clip()
    pool, model = Pool(world, towers, tokenizer), make_autoregressive().train()
    # As it was written: the diffusion prior was trained with it.
    text = CLIPTextModelWithProjection.from_pretrained(ROOT / "assets" / "emoji" / "text_encoder", dtype=torch.float32).eval()
    empty = encode(tokenizer, [""])
    model.fit(pool.embeds, some_dot_products(Captions(world, pool, tokenizer, options.seed + 4, 0, 16), pool, text, empty))
    folder, optimizer, average = cache() / "run" / "autoregressive", Optimizer(model, 0.02), Average(model, 0.998)
    run = Run(folder, model, optimizer, options.steps, options.rate, average)
    train(model, text, pool, empty, load_captions(world, pool, tokenizer, options.seed + 3, run), run, options.seed)


if __name__ == "__main__":
    main()
