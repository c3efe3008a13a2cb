"""What the tests of diffusers' decoders share: small ones that are saved, and runs of the script on them."""

import contextlib
import json
import os
import shutil

import numpy as np
import torch

from ..models import decoders
from .decode_script import ScriptTest, embeddings, npy, npz

DIM = decoders.DIM
SEED, STEPS = 7, 2
PROMPTS = ["a red apple", "two cats"]


def change_index(folder, **entries):
    """Changes a pipeline's model_index.json; an entry that becomes None is left out, and its folder too."""
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8")) | entries
    for name in [name for name, entry in index.items() if entry is None]:
        del index[name]
        shutil.rmtree(folder / name)
    path.write_text(json.dumps(index), encoding="utf-8")


class PipelineTest(ScriptTest):
    """Saves small decoders, runs the script on them, and runs diffusers on the same embeddings."""

    names = ()
    """Of functions in `decoders`."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        torch.manual_seed(0)
        cls.pipelines = {}
        for name in cls.names:
            cls.pipelines[name] = getattr(decoders, name)()
            cls.pipelines[name].set_progress_bar_config(disable=True)
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                cls.pipelines[name].save_pretrained(cls.root / name)

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
        """What the script drew is what diffusers gives for each row: `run(row, **settings)`.

        But for a few numbers that another order of sums rounds to the other side.
        """
        for row, picture in enumerate(pictures):
            generator = torch.Generator().manual_seed(SEED + row)
            expected = run(row, generator=generator, output_type="np").images[0]
            self.assertGreater(picture.std(), 1)
            difference = np.abs(picture - (expected * 255).round())
            self.assertLessEqual(difference.max(), 1)
            self.assertLess(difference.mean(), 0.01)

    def embed(self, row):
        """A row as diffusers takes it."""
        return torch.from_numpy(self.rows[row : row + 1])
