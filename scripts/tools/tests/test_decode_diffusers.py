"""diffusers' decoders against diffusers itself."""

import contextlib
import copy
import json
import os
import shutil

import diffusers
import numpy as np
import torch

from ..models import decoders
from ..models.weights import set_up
from .decode_script import ScriptTest, embeddings, npy, npz

DIM = decoders.DIM
SEED, STEPS = 7, 2
PROMPTS = ["a red apple", "two cats"]


def setUpModule():
    """Silent libraries, and one thread: quickest for networks as small as these."""
    set_up()


def change_index(folder, **entries):
    """Changes a pipeline's model_index.json; an entry that becomes None is left out, and its folder too."""
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8")) | entries
    for name in [name for name, entry in index.items() if entry is None]:
        del index[name]
        shutil.rmtree(folder / name)
    path.write_text(json.dumps(index), encoding="utf-8")


class NoSteps(diffusers.UnCLIPScheduler):
    """Leaves what it is given as it is."""

    def set_timesteps(self, *_arguments, **_settings):
        """None at all."""
        self.timesteps = torch.empty(0)


class DiffusersTest(ScriptTest):
    """Saves small decoders, runs the script on them, and runs diffusers on the same embeddings."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        torch.manual_seed(0)
        cls.pipelines = {}
        for name in ("kandinsky22", "kandinsky21", "karlo", "karlo_with_prior", "stable_unclip"):
            cls.pipelines[name] = getattr(decoders, name)()
            cls.pipelines[name].set_progress_bar_config(disable=True)
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                cls.pipelines[name].save_pretrained(cls.root / name)
        # As the published repositories have it, and this diffusers cannot load.
        for name in ("karlo", "karlo_with_prior"):
            change_index(cls.root / name, text_proj=["unclip", "UnCLIPTextProjModel"])

    def setUp(self):
        super().setUp()
        self.rows, self.negative = embeddings(2, DIM), embeddings(2, DIM)[::-1]
        self.write("rows.npz", npz(image_embeds=self.rows, negative_image_embeds=self.negative))
        self.write("rows.npy", npy(self.rows))
        self.write("negative.npy", npy(self.negative[0]))

    def decode(self, name, source, *arguments):
        """The pictures of both rows."""
        self.succeed(source, "--decoder", self.root / name, "--out-dir", "out", "--steps", STEPS, "--seed", SEED,
            "--overwrite", *arguments)  # fmt: skip
        return [self.picture(f"out/{row:05}.png") for row in range(2)]

    def assert_same(self, pictures, run):
        """What the script drew is what diffusers gives for each row: `run(row, **settings)`."""
        for row, picture in enumerate(pictures):
            generator = torch.Generator().manual_seed(SEED + row)
            expected = run(row, generator=generator, output_type="np").images[0]
            self.assertGreater(picture.std(), 1)
            np.testing.assert_array_equal(picture, (expected * 255).round().astype(np.uint8))

    def embed(self, row):
        """A row as diffusers takes it."""
        return torch.from_numpy(self.rows[row : row + 1])

    def test_kandinsky22(self):
        pipeline = self.pipelines["kandinsky22"]
        negative = torch.from_numpy(self.negative.copy())
        pictures = self.decode("kandinsky22", "rows.npz", "--height", "40", "--width", "16", "--guidance-scale", "3")
        self.assertEqual(pictures[0].shape, (40, 16, 3))
        settings = dict(height=40, width=16, num_inference_steps=STEPS, guidance_scale=3.0)

        def alone(row, **more):
            return pipeline(self.embed(row), negative[row : row + 1], **settings, **more)

        self.assert_same(pictures, alone)
        # The same as all rows at once with a list of generators, as prior-embed has it.
        generators = [torch.Generator().manual_seed(SEED + row) for row in range(2)]
        rows = torch.from_numpy(self.rows)
        together = pipeline(rows, negative, generator=generators, output_type="np", **settings).images
        self.assertLess(np.abs(together * 255 - np.stack(pictures)).max(), 1)

    def test_kandinsky22_without_guidance_needs_no_negative_embeddings(self):
        # A pipeline that was saved together with its prior.
        shutil.copytree(self.root / "kandinsky22", self.folder / "combined")
        prior = {"prior_prior": ["diffusers", "PriorTransformer"], "prior_tokenizer": ["transformers", "CLIPTokenizer"]}
        change_index(self.folder / "combined", _class_name="KandinskyV22CombinedPipeline", **prior)
        size = ("--height", "16", "--width", "16")
        pictures = self.decode(self.folder / "combined", "rows.npy", *size, "--guidance-scale", "1")
        settings = dict(height=16, width=16, num_inference_steps=STEPS, guidance_scale=1.0)
        pipeline = self.pipelines["kandinsky22"]
        self.assert_same(pictures, lambda row, **more: pipeline(self.embed(row), None, **settings, **more))

    def test_kandinsky21(self):
        size = ("--height", "16", "--width", "16")
        prompts = ("--prompt", PROMPTS[0], "--prompt", PROMPTS[1])
        pictures = self.decode("kandinsky21", "rows.npy", *size, *prompts, "--negative-embeds", "negative.npy")
        negative = torch.from_numpy(self.negative[:1].copy())
        pipeline = self.pipelines["kandinsky21"]
        settings = dict(height=16, width=16, num_inference_steps=STEPS)

        def run(row, **more):
            return pipeline(PROMPTS[row], self.embed(row), negative, **settings, **more)

        self.assert_same(pictures, run)

    def test_karlo_without_text(self):
        pictures = self.decode("karlo", "rows.npz")
        pipeline = self.pipelines["karlo"]

        def run(row, **settings):
            return pipeline(image_embeddings=self.embed(row), decoder_num_inference_steps=STEPS, **settings)

        self.assert_same(pictures, run)

    def test_karlo_with_text(self):
        pictures = self.decode("karlo_with_prior", "rows.npy", "--prompt", PROMPTS[0], "--guidance-scale", "4")
        # The whole of Karlo, with a prior that takes no step from what it starts with: the embedding.
        pipeline = self.pipelines["karlo_with_prior"]
        pipeline.prior_scheduler = NoSteps()

        def run(row, **settings):
            return pipeline(
                PROMPTS[0], prior_latents=self.embed(row), decoder_num_inference_steps=STEPS,
                decoder_guidance_scale=4.0, **settings,
            )  # fmt: skip

        self.assert_same(pictures, run)

    def test_stable_unclip(self):
        pictures = self.decode("stable_unclip", "rows.npz", "--prompt", PROMPTS[1], "--height", "40", "--scale", "1")
        pipeline = self.pipelines["stable_unclip"]

        settings = dict(prompt=PROMPTS[1], height=40, num_inference_steps=STEPS)

        def run(row, **more):
            return pipeline(image_embeds=self.embed(row), **settings, **more)

        self.assert_same(pictures, run)

    def test_stable_unclip_for_text_in_half_precision(self):
        # The pipeline for text, which has a prior in place of an image encoder.
        shutil.copytree(self.root / "stable_unclip", self.folder / "text")
        prior = {"prior": ["diffusers", "PriorTransformer"], "prior_tokenizer": ["transformers", "CLIPTokenizer"]}
        changes = {"_class_name": "StableUnCLIPPipeline", "image_encoder": None, "feature_extractor": None}
        change_index(self.folder / "text", **changes, **prior)
        pictures = self.decode(self.folder / "text", "rows.npz", "--dtype", "bf16", "--device", "cpu")
        pipeline = copy.deepcopy(self.pipelines["stable_unclip"]).to(torch.bfloat16)

        def run(row, **settings):
            return pipeline(prompt="", image_embeds=self.embed(row).bfloat16(), num_inference_steps=STEPS, **settings)

        self.assert_same(pictures, run)

    def test_what_goes_wrong(self):
        self.write("other.npy", npy(embeddings(2, DIM + 1)))
        self.write("three.npy", npy(embeddings(3, DIM)))
        damaged = self.root / "damaged"
        shutil.copytree(self.root / "kandinsky22", damaged)
        (damaged / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        with_guidance = ("--guidance-scale", "1.5")
        for status, text, source, name, *arguments in (
            (2, "prior-embed --out FILE.npz", "rows.npy", "kandinsky22"),
            (2, "--negative-embeds FILE", "rows.npy", "kandinsky21", "--prompt", "a", *with_guidance),
            (2, "does not go with", "rows.npy", "kandinsky22", "--negative-embeds", "other.npy"),
            (2, "does not go with", "rows.npy", "kandinsky22", "--negative-embeds", "three.npy"),
            (2, "No such file", "rows.npy", "kandinsky22", "--negative-embeds", "none.npy"),
            (2, f"{DIM} numbers", "other.npy", "karlo"),
            (2, "there are 3 prompts", "rows.npy", "karlo", "--prompt", "a", "--prompt", "b", "--prompt", "c"),
            (2, "has no cuda:99", "rows.npz", "kandinsky22", "--device", "cuda:99"),
            (1, "is it whole?", "rows.npz", "damaged"),
        ):
            with self.subTest(text, name=name):
                self.fail_with(text, source, "--decoder", self.root / name, "--out", "a.png", *arguments, status=status)

    def test_names_know_the_length_of_their_embeddings(self):
        for name, dim in (("karlo", 768), ("kandinsky-2.2", 1280), ("stable-unclip", 768)):
            self.fail_with(f"{dim} numbers", "rows.npz", "--decoder", name, "--out", "a.png")
