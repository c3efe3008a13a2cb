#!/usr/bin/env python3
"""Tests of the autoregressive prior and its training: scripts/reference-python scripts/emoji/test_autoregressive.py. They need
no data, and half a minute on one core."""

import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True
import torch  # noqa: E402
from transformers import CLIPTextModelWithProjection, CLIPTokenizer  # noqa: E402

from emoji import autoregressive  # noqa: E402
from emoji.autoregressive import AutoregressivePrior, Config, draw, levels  # noqa: E402
from emoji.train_autoregressive import dot_products, losses, make_autoregressive  # noqa: E402
from tools.built import ROOT  # noqa: E402

MODEL = ROOT / "assets" / "emoji"
SMALL = dict(
    num_attention_heads=2, attention_head_dim=16, num_layers=2, embedding_dim=24, embedding_proj_dim=12, encoder_hid_dim=20,
    num_embeddings=9, num_tokens=10, num_buckets=32, num_dot_product_buckets=8,
)  # fmt: skip


def generator(seed):
    """A generator with a seed."""
    return torch.Generator().manual_seed(seed)


def small(**changes):
    """A small prior of random weights, with the code of random embeddings."""
    torch.manual_seed(0)
    prior = AutoregressivePrior(Config(**SMALL | changes)).eval()
    for weight in prior.transformer_blocks.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    images = torch.randn(500, prior.config.embedding_dim) * torch.linspace(2, 0.1, prior.config.embedding_dim) + 1
    return prior.fit(images, torch.rand(500)), images


def condition(count, lens, config):
    """Random states, mask and text embeddings."""
    mask = (torch.arange(max(lens)) < torch.tensor(lens)[:, None]).float()
    states = torch.randn(count, max(lens), config.encoder_hid_dim, generator=generator(1))
    return states, mask, torch.randn(count, config.embedding_proj_dim, generator=generator(2))


class CodeTest(unittest.TestCase):
    def test_buckets_of_an_embedding_lead_back_to_it(self):
        prior, images = small(num_tokens=24, num_buckets=256)
        again = prior.embed(prior.quantize(images))
        self.assertLess((again - images).square().mean(), 1e-4 * images.var())
        coarse, _ = small(num_tokens=12, num_buckets=8)
        error = (coarse.embed(coarse.quantize(images)) - images).square().sum()
        self.assertTrue(error < 0.2 * (images - images.mean(0)).square().sum())

    def test_dimensions_fall_in_variance_and_are_uncorrelated(self):
        prior, images = small()
        weight = prior.pca.weight
        scales = weight.square().sum(0)
        self.assertTrue((scales.diff() < 0).all())
        self.assertLess((weight.T @ weight - torch.diag(scales)).abs().max(), 1e-4 * scales[0])
        shares = torch.bincount(prior.quantize_dot_products(torch.rand(8000, generator=generator(5))), minlength=8) / 8000
        self.assertTrue((shares > 0.08).all(), shares)

    def test_levels_are_better_than_even_ones_and_quantiles(self):
        data, count = torch.randn(100000, generator=generator(0)), 64
        middles = (torch.arange(count) + 0.5) / count
        error = lambda some: (some[autoregressive.nearest(some, data)] - data).square().mean()
        best = error(levels(count))
        self.assertLess(best, 0.8 * error(torch.linspace(-4, 4, count)))
        self.assertLess(best, 0.8 * error(torch.special.ndtri(middles)))


class DrawTest(unittest.TestCase):
    def test_tokens_have_the_probabilities_of_their_logits(self):
        logits = torch.tensor([[0.0, 2.0, -1.0, 1.0]])
        uniforms = torch.rand(20000, generator=generator(0)).double()
        for temperature in (0.5, 1.0, 3.0):
            tokens, _ = draw(logits.expand(20000, 4), uniforms, temperature)
            shares = torch.bincount(tokens, minlength=4) / 20000
            self.assertLess((shares - (logits[0] / temperature).softmax(0)).abs().max(), 0.02)
        self.assertEqual(draw(logits, uniforms[:1], 0)[0].item(), 1)
        self.assertEqual(draw(logits, uniforms[:1], 1e-300)[0].item(), 1)


class SampleTest(unittest.TestCase):
    def test_one_token_after_the_other_has_the_logits_of_all_at_once(self):
        prior, _ = small()
        lens, config = (9, 1, 4, 6), prior.config
        states, mask, embeds = condition(4, lens, config)
        normals = torch.randn(4, 11, generator=generator(3))
        drawn, tokens, products, _ = prior.sample(states, mask, embeds, normals)
        with torch.no_grad():
            product_logits, logits = prior(states, mask, embeds, products, tokens)
        uniforms = torch.special.ndtr(normals.double())
        self.assertEqual(draw(product_logits, 0.5 + uniforms[:, 0] / 2, 1.0)[0].tolist(), products.tolist())
        for at in range(10):
            self.assertEqual(draw(logits[:, at], uniforms[:, at + 1], 1.0)[0].tolist(), tokens[:, at].tolist())
        # Without padding too.
        for row, length in enumerate(lens):
            at = slice(row, row + 1)
            alone, *_ = prior.sample(states[at, :length], mask[at, :length], embeds[at], normals[at])
            self.assertLess((alone - drawn[row]).abs().max(), 1e-5)

    def test_a_saved_prior_is_the_same(self):
        prior, _ = small()
        states, mask, embeds = condition(3, (2, 3, 4), prior.config)
        normals = torch.randn(3, 11, generator=generator(3))
        with tempfile.TemporaryDirectory() as folder:
            autoregressive.save(prior, Path(folder), torch.float32)
            again = autoregressive.load(Path(folder))
        of = (states, mask, embeds)
        first, second = (some.sample(*of, normals, 2.0, 0.7, of)[0] for some in (prior, again))
        self.assertTrue(torch.equal(first, second))

    def test_the_built_in_one_is_of_its_size(self):
        weights = sum(weight.numel() for weight in make_autoregressive().parameters())
        self.assertTrue(2.5e6 < weights < 3e6, weights)


class LearningTest(unittest.TestCase):
    """Captions that each mean one of two embeddings, alike but for a side."""

    CAPTIONS = ("a red apple", "a blue car", "two cats")
    STEPS, BATCH = 260, 96

    @classmethod
    def setUpClass(cls):
        torch.manual_seed(0)
        tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
        tower = CLIPTextModelWithProjection.from_pretrained(MODEL / "text_encoder", dtype=torch.float32).eval()
        with torch.no_grad():
            inputs = tokenizer([*cls.CAPTIONS, ""], padding=True, return_tensors="pt")
            output = tower(**inputs)
        cls.states, cls.mask, cls.embeds = output.last_hidden_state, inputs["attention_mask"].float(), output.text_embeds
        dim = cls.embeds.shape[1]
        # Of each caption, two embeddings.
        cls.modes = torch.randn(3, 2, dim) * torch.linspace(2, 0.02, dim) + 0.5
        config = Config(
            num_attention_heads=4, attention_head_dim=16, num_layers=2, embedding_dim=dim, embedding_proj_dim=dim,
            encoder_hid_dim=cls.states.shape[2], num_tokens=6, num_buckets=24, num_dot_product_buckets=8,
        )  # fmt: skip
        cls.prior = AutoregressivePrior(config)
        images, texts = cls.data(2000, generator(1))
        cls.prior.fit(images, dot_products(images, cls.embeds[texts]))
        optimizer = torch.optim.AdamW(cls.prior.parameters(), lr=3e-3)
        cls.history = []
        for step in range(cls.STEPS):
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / cls.STEPS)
            draws = generator(100 + step)
            images, texts = cls.data(cls.BATCH, draws)
            dropped = torch.rand(cls.BATCH, generator=draws) < 0.1
            texts = texts.masked_fill(dropped, 3)
            of = (cls.embeds[texts], cls.states[texts], cls.mask[texts], dropped)
            loss, made_of = losses(cls.prior, images, *of, draws)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cls.history.append({name: value.item() for name, value in made_of.items()})
        cls.prior.eval()

    @classmethod
    def data(cls, count, draws):
        """Embeddings and their captions."""
        texts, sides = (torch.randint(high, (count,), generator=draws) for high in (3, 2))
        modes = cls.modes[texts, sides]
        return modes + 0.1 * torch.randn(modes.shape, generator=draws), texts

    def sample(self, caption, count=200, quantile=0.0, **options):
        """Embeddings of a caption, and the caption and side that they are nearest to."""
        self.prior.config.dot_product_quantile = quantile
        of = lambda text: (self.states[[text] * count], self.mask[[text] * count], self.embeds[[text] * count])
        normals = torch.randn(count, self.prior.config.num_tokens + 1, generator=generator(7))
        embeds, *_ = self.prior.sample(*of(caption), normals, unconditional=of(3), **options)
        near = torch.cdist(embeds, self.modes.flatten(0, 1)).argmin(1)
        return embeds, near // 2, near % 2

    def test_it_learns(self):
        first, last = self.history[0], self.history[-1]
        self.assertLess(last["entropy"], 0.7 * first["entropy"])
        self.assertLess(last["dot_product"], first["dot_product"])

    def test_the_caption_is_obeyed_and_both_sides_are_drawn(self):
        for caption in range(3):
            _, found, sides = self.sample(caption)
            self.assertGreater((found == caption).float().mean(), 0.9)
            self.assertTrue(0.3 < sides[found == caption].float().mean() < 0.7, sides.float().mean())

    def test_without_a_caption_every_one_is_drawn(self):
        _, found, _ = self.sample(3)
        shares = torch.bincount(found, minlength=3) / len(found)
        self.assertTrue((shares > 0.15).all(), shares)

    def test_the_top_half_of_dot_products_brings_embeddings_nearer_to_the_caption(self):
        for caption in range(3):
            near = lambda quantile: dot_products(self.sample(caption, quantile=quantile)[0], self.embeds[[caption]]).mean()
            self.assertGreater(near(0.5), near(0.0))

    def test_guidance_keeps_to_the_caption_and_temperature_zero_to_one_embedding(self):
        for caption in range(3):
            _, guided, _ = self.sample(caption, guidance_scale=3.0)
            _, plain, _ = self.sample(caption)
            self.assertGreaterEqual((guided == caption).float().mean(), (plain == caption).float().mean() - 0.01)
            _, found, sides = self.sample(caption, temperature=0.0)
            self.assertEqual(set(found.tolist()), {caption})
            self.assertEqual(len(set(sides.tolist())), 1)


if __name__ == "__main__":
    unittest.main()
