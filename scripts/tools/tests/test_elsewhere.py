"""prior-embed's outputs in other programs: diffusers' IP-Adapters, and a node of ComfyUI. Needs the binary."""

import importlib.util
import subprocess
import sys
import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

from ..built import BINARY, SCRIPTS
from ..models import decoders
from ..models.weights import set_up

PROMPTS = ["a red apple", "two cats", "rain"]


def setUpModule():
    """Silent libraries, and one thread: quickest for networks as small as these."""
    set_up()


class OutputTest(unittest.TestCase):
    """Embeds prompts in formats of others."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def embed(self, name, *options):
        """A file of the embeddings of `PROMPTS`."""
        prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
        subprocess.run([BINARY, *prompts, "--steps", "2", "--quiet", "--out", self.folder / name, *options], check=True)
        return self.folder / name


class IpAdapterTest(OutputTest):
    """A file of `--format ipadpt` goes into diffusers as it is."""

    def test_torch_loads_a_list_of_one_tensor(self):
        for options, dtype in ((), torch.float32), (("--out-dtype", "f16", "--normalize"), torch.float16):
            rows = torch.from_numpy(np.load(self.embed("rows.npy", "--overwrite", *options)))
            for name in ("rows.ipadpt", "rows.pt"):
                loaded = torch.load(self.embed(name, "--format", "ipadpt", "--overwrite", *options), weights_only=True)
                self.assertIsInstance(loaded, list)
                (embeds,) = loaded
                self.assertEqual((embeds.shape, embeds.dtype), ((2, *rows.shape), dtype))
                negative, positive = embeds.chunk(2)
                self.assertFalse(negative.any())
                self.assertTrue(torch.equal(positive[0], rows))
        mapped = torch.load(self.folder / "rows.ipadpt", weights_only=True, mmap=True)
        self.assertTrue(torch.equal(mapped[0], embeds))

    def test_a_pipeline_takes_it(self):
        rows = torch.from_numpy(np.load(self.embed("rows.npy")))
        embeds = torch.load(self.embed("rows.ipadpt"), weights_only=True)
        torch.manual_seed(0)
        pipeline = decoders.stable_diffusion()
        pipeline.set_progress_bar_config(disable=True)
        pipeline.unet._load_ip_adapter_weights([decoders.ip_adapter(pipeline.unet, rows.shape[1])])

        def draw(embeds, pictures=1):
            generators = [torch.Generator().manual_seed(7) for _ in range(pictures)]
            return pipeline([""] * pictures, ip_adapter_image_embeds=embeds, guidance_scale=3.0, num_inference_steps=2,
                generator=generators, height=32, width=32, output_type="np").images  # fmt: skip

        # All rows guide a picture together, whatever their order, and every picture of a call.
        together = draw(embeds)[0]
        for picture in (*draw(embeds, 2), draw([embeds[0].flip(1)])[0]):
            np.testing.assert_allclose(picture, together, atol=1e-4)
        # One guides it alone.
        alone = [draw([embeds[0][:, row : row + 1]])[0] for row in range(len(rows))]
        for row, picture in zip(rows, alone):
            np.testing.assert_array_equal(draw([torch.stack([torch.zeros_like(row), row])[:, None]])[0], picture)
            self.assertGreater(np.abs(picture - together).max(), 1e-3)
        self.assertGreater(np.abs(alone[0] - alone[1]).max(), 1e-3)


class Output:
    """`comfy.clip_vision.Output`: attributes by key."""

    def __getitem__(self, key):
        return getattr(self, key)

    def __setitem__(self, key, value):
        setattr(self, key, value)


class ComfyTest(OutputTest):
    """The node, with what it takes of ComfyUI replaced."""

    def setUp(self):
        super().setUp()
        names = ("comfy", "comfy.clip_vision", "folder_paths")
        comfy, clip_vision, folder_paths = modules = [types.ModuleType(name) for name in names]
        comfy.clip_vision, clip_vision.Output = clip_vision, Output
        folder_paths.get_annotated_filepath = lambda name: str(self.folder / name)
        with mock.patch.dict(sys.modules, dict(zip(names, modules))):
            spec = importlib.util.spec_from_file_location("prior_embed_node", SCRIPTS / "comfyui" / "__init__.py")
            node = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(node)
        (self.node,) = node.NODE_CLASS_MAPPINGS.values()

    def load(self, **inputs):
        """What the node gives, called as ComfyUI calls it."""
        self.assertEqual(set(inputs), set(self.node.INPUT_TYPES()["required"]))
        return dict(zip(self.node.RETURN_TYPES, getattr(self.node(), self.node.FUNCTION)(**inputs)))

    def test_a_row_is_the_output_of_an_image_encoder(self):
        expected = load_file(self.embed("embs.safetensors", "--provenance", self.folder / "p.json"))["image_embeds"]
        self.embed("half.npy", "--out-dtype", "f16")
        for file, bound in (("embs.safetensors", 0), ("half.npy", 1e-2)):
            for row in range(len(PROMPTS)):
                output = self.load(file=file, row=row)["CLIP_VISION_OUTPUT"]
                self.assertIsInstance(output, Output)
                self.assertEqual((output.image_embeds.shape, output.image_embeds.dtype), ((1, expected.shape[1]), torch.float32))
                self.assertLessEqual((output.image_embeds[0] - expected[row]).abs().max(), bound)
                self.assertIsNone(output.last_hidden_state)
        with self.assertRaisesRegex(ValueError, "embs.safetensors has rows 0 to 2, and no row 3"):
            self.load(file="embs.safetensors", row=3)
