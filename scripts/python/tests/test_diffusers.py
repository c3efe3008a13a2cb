"""PriorPipeline in the place of diffusers' KandinskyV22PriorPipeline, on pipelines with random weights."""

import copy
import tempfile
import unittest
from pathlib import Path

import numpy
import torch
from diffusers import KandinskyV22PriorPipeline
from PIL import Image
from prior_embed import PriorPipeline
from tools.built import ROOT
from tools.models import decoders
from tools.models.pipelines import Spec, save_pipeline
from tools.models.weights import set_up

from .common import rgb_picture

PROMPTS = ["a red apple", "two cats", "rain on a roof"]
STEPS = 5


def setUpModule():
    """Silent libraries, and one thread: quickest for networks as small as these."""
    set_up()


def seeded(seed, draws=0):
    """A generator, perhaps one that was used."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn(draws, generator=generator)
    return generator


class DiffusersTest(unittest.TestCase):
    """The same model in both."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        save_pipeline(Spec(seed=3, width=decoders.DIM), Path(folder.name))
        cls.theirs = KandinskyV22PriorPipeline.from_pretrained(folder.name, torch_dtype=torch.float32)
        cls.theirs.set_progress_bar_config(disable=True)
        cls.ours = PriorPipeline.from_pretrained(folder.name, torch_dtype=torch.float32)
        cls.addClassCleanup(cls.ours.close)
        cls.dim = decoders.DIM

    def assert_close(self, ours, theirs):
        """Within 1e-4 of the largest value, as everywhere."""
        for mine, other in zip(ours.to_tuple(), theirs.to_tuple()):
            self.assertEqual((type(mine), mine.dtype, mine.shape), (type(other), other.dtype, other.shape))
            difference, largest = (mine - other).abs().max(), other.abs().max()
            self.assertLess(float(difference / largest), 1e-4)

    def both(self, method="__call__", generator=lambda: None, **arguments):
        """What both give and what their generators draw next."""
        outputs, drawn = [], []
        for pipeline in (self.ours, self.theirs):
            torch.manual_seed(99)
            own = generator()
            outputs.append(getattr(pipeline, method)(generator=own, num_inference_steps=STEPS, **arguments))
            generators = own if isinstance(own, list) else [own]
            drawn.append([torch.randn(3, generator=one) for one in generators])
        self.assert_close(*outputs)
        for mine, other in zip(*drawn):
            self.assertTrue(torch.equal(mine, other), "the generators are not where diffusers leaves them")
        return outputs[0]

    def test_generators_draw_what_they_draw_in_diffusers(self):
        for name, generator in (
            ("none", lambda: None),
            ("one", lambda: seeded(1)),
            ("one that was used", lambda: seeded(1, 37)),
            ("a list of one", lambda: [seeded(1, 5)]),
            ("one a row", lambda: [seeded(seed, seed % 2 * 19) for seed in range(6)]),
        ):
            with self.subTest(name):
                self.both(generator=generator, prompt=PROMPTS, num_images_per_prompt=2)
                half = [text[:4] for text in PROMPTS]
                twice = (lambda: [seeded(seed) for seed in range(12)]) if name == "one a row" else generator
                self.both(generator=twice, prompt=PROMPTS, negative_prompt=half, num_images_per_prompt=2)

    def test_arguments_mean_what_they_mean_in_diffusers(self):
        latents = torch.randn((4, self.dim), generator=seeded(8))
        for arguments in (
            dict(prompt="a red apple"),
            dict(prompt="a red apple", negative_prompt="blurry"),
            dict(prompt="a red apple", negative_prompt=""),
            dict(prompt="a red apple", guidance_scale=1.0),
            dict(prompt="a red apple", guidance_scale=7.5, num_images_per_prompt=4, latents=latents),
            dict(prompt=PROMPTS[:2], negative_prompt=["x", "y"], latents=latents),
        ):
            with self.subTest(arguments):
                self.both(generator=lambda: seeded(2), **arguments)

    def test_errors_are_of_the_same_kind(self):
        for arguments in (
            dict(prompt=5), dict(prompt="a", negative_prompt=5), dict(prompt="a", output_type="pil"),
            dict(prompt=["a", "b"], negative_prompt=["c"]), dict(prompt="a", latents=torch.zeros(2, self.dim)),
        ):  # fmt: skip
            for pipeline in (self.ours, self.theirs):
                with self.subTest(arguments), self.assertRaises(ValueError):
                    pipeline(num_inference_steps=2, **arguments)

    def test_numpy_and_tuples(self):
        mine = self.ours("a", generator=seeded(1), num_inference_steps=STEPS, output_type="np", return_dict=False)
        other = self.theirs("a", generator=seeded(1), num_inference_steps=STEPS, output_type="np", return_dict=False)
        self.assertIsInstance(mine, tuple)
        for one, another in zip(mine, other):
            self.assertEqual((one.dtype, one.shape), (another.dtype, another.shape))
            numpy.testing.assert_allclose(one, another, atol=1e-4)

    def test_tensors_go_where_they_are_wanted(self):
        ours = copy.copy(self.ours)
        image, negative = ours.to("cpu", torch.float16)("a", generator=seeded(1), num_inference_steps=2).to_tuple()
        self.assertEqual((image.dtype, negative.dtype), (torch.float16, torch.float16))

    def test_interpolate(self):
        with Image.open(rgb_picture()) as picture:
            picture.load()
        for arguments in (
            {},
            dict(negative_prior_prompt="rain"),
            dict(negative_prompt="snow", negative_prior_prompt="rain", guidance_scale=2.0),
            dict(negative_prompt="snow", num_images_per_prompt=2),
        ):
            with self.subTest(arguments):
                items = ["a red apple", picture, "two cats"]
                self.both(
                    "interpolate", lambda: seeded(4), images_and_prompts=items, weights=[0.3, 0.3, 0.4], **arguments
                )

    def test_other_kinds_of_models_take_seeds_and_what_generators_they_can(self):
        fixtures = ROOT / "tests" / "fixtures"
        for name, takes_used, takes_steps in (
            ("one_step/kandinsky22", True, False),
            ("autoregressive/small", False, False),
            ("pipelines/stable_unclip_layout", False, True),
        ):
            with self.subTest(name), PriorPipeline.from_pretrained(fixtures / name) as prior:
                expected = prior(PROMPTS, seed=3, output_type="np").image_embeds
                pid = prior._process().pid
                generators = [seeded(3 + row) for row in range(3)]
                numpy.testing.assert_array_equal(prior(PROMPTS, generator=generators).image_embeds.numpy(), expected)
                outputs = []
                for _ in range(2):
                    torch.manual_seed(9)
                    outputs.append(prior(PROMPTS).image_embeds)
                self.assertTrue(torch.equal(*outputs))
                refused = []
                for allowed, call in (
                    (takes_used, dict(generator=seeded(1, 5))),
                    (takes_steps, dict(num_inference_steps=2)),
                    (not name.startswith("one_step"), dict(guidance_scale=2.0)),
                ):
                    try:
                        prior("a", **call)
                    except ValueError:
                        refused.append(call)
                    self.assertEqual(call in refused, not allowed, call)
                self.assertEqual(prior._process().pid, pid)
        with self.assertRaisesRegex(ValueError, "latents"):
            PriorPipeline.from_pretrained(fixtures / "shap_e" / "shap_e")

    def test_a_script_draws_the_same_pictures_with_either(self):
        torch.manual_seed(0)
        decoder = decoders.kandinsky22()
        decoder.set_progress_bar_config(disable=True)

        def script(pipe_prior):
            torch.manual_seed(33)
            image_embeds, negative_image_embeds = pipe_prior(
                PROMPTS[:2], negative_prompt=["low quality", "blurry"], num_inference_steps=STEPS
            ).to_tuple()
            images = decoder(image_embeds=image_embeds, negative_image_embeds=negative_image_embeds, height=64,
            width=64,
                num_inference_steps=3, output_type="np").images  # fmt: skip
            generator = torch.Generator().manual_seed(5)
            out = pipe_prior("a hedgehog", generator=generator)
            more = decoder(
                **out, height=64, width=64, num_inference_steps=3, generator=generator, output_type="np"
            ).images
            return numpy.concatenate([images, more])

        ours, theirs = script(self.ours), script(self.theirs)
        self.assertEqual(ours.shape, theirs.shape)
        numpy.testing.assert_allclose(ours, theirs, atol=1e-3)
        self.assertGreater(numpy.abs(ours[0] - ours[1]).max(), 1e-2)
        pixels, others = ((picture * 255).round().astype(int) for picture in (ours, theirs))
        self.assertLessEqual(abs(pixels - others).max(), 1)


if __name__ == "__main__":
    unittest.main()
