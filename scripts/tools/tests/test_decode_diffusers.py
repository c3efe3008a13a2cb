"""diffusers' decoders against diffusers itself."""

import copy
import shutil

import diffusers
import numpy as np
import torch

from ..models.weights import set_up
from .decode_pipelines import DIM, PROMPTS, SEED, STEPS, PipelineTest, change_index
from .decode_script import embeddings, npy


def setUpModule():
    """Silent libraries, and one thread: quickest for networks as small as these."""
    set_up()


class NoSteps(diffusers.UnCLIPScheduler):
    """Leaves what it is given as it is."""

    def set_timesteps(self, *_arguments, **_settings):
        """None at all."""
        self.timesteps = torch.empty(0)


class DiffusersTest(PipelineTest):
    """Decoders that take an embedding, and perhaps text."""

    names = ("kandinsky22", "kandinsky21", "karlo", "karlo_with_prior", "stable_unclip")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # As the published repositories have it, and this diffusers cannot load.
        for name in ("karlo", "karlo_with_prior"):
            change_index(cls.root / name, text_proj=["unclip", "UnCLIPTextProjModel"])

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
        options = ("--prompt", PROMPTS[1], "--height", "40", "--scale", "1", "--noise-level", "300")
        pictures = self.decode("stable_unclip", "rows.npz", *options)
        pipeline = self.pipelines["stable_unclip"]

        settings = dict(prompt=PROMPTS[1], height=40, num_inference_steps=STEPS, noise_level=300)

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
