"""What the tests of decode.py share: a copy of it with a small decoder and index, and a folder to run it in."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from ..built import SCRIPTS
from ..decoding.builtin import HEADS, Decoder

DIM, PIXELS = 12, 6
EMOJI = [
    ("1F34E", "red apple", "food"),
    ("2764", "red heart", "symbols"),
    ("1F636-200D-1F32B-FE0F", "face in clouds", "smileys"),
    ("1F1EF-1F1F5", "flag of Japan", "flags"),
]


def random_weights(dim=DIM, width=4 * HEADS, side=2, patch=PIXELS // 2, seed_width=5, detail_width=7, layers=2):
    """Weights of a decoder."""
    rng = np.random.default_rng(1)
    shape = Decoder.__new__(Decoder)
    shape.dim, shape.width, shape.side, shape.patch = dim, width, side, patch
    shape.seed_width, shape.detail_width, shape.layers = seed_width, detail_width, layers
    shape.channels, shape.edge_channels = 4, 6
    weights = {name: 0.3 * rng.standard_normal(size, np.float32) for name, size in shape.shapes().items()}
    return weights | {"std": 1 + weights["std"] ** 2}


def index_tensors():
    """Emoji number i has direction i in the first style, and direction i + 4 in the second."""
    unit = np.eye(DIM, dtype=np.float16)
    return {"google": 3 * unit[: len(EMOJI)], "twitter": 5 * unit[4 : 4 + len(EMOJI)]}


def make_project(root):
    """The script and what it needs, in a folder of its own."""
    scripts, assets = root / "scripts", root / "assets"
    others = shutil.ignore_patterns("benchmark", "fixtures", "models", "tests", "__pycache__")
    shutil.copytree(SCRIPTS / "tools", scripts / "tools", ignore=others)
    shutil.copytree(SCRIPTS / "python" / "prior_embed", scripts / "python" / "prior_embed", ignore=others)
    for name in ("decode.py", "requirements.txt"):
        shutil.copy(SCRIPTS / name, scripts / name)
    for name in ("decoder", "index"):
        (assets / name).mkdir(parents=True)
    save_file(random_weights(), assets / "decoder" / "decoder.safetensors")
    save_file(index_tensors(), assets / "index" / "index.safetensors")
    entries = [dict(zip(("code", "name", "group"), emoji)) for emoji in EMOJI]
    (assets / "index" / "emoji.json").write_text(json.dumps(entries), encoding="utf-8")


def embeddings(rows, dim=DIM):
    """Random embeddings."""
    return np.random.default_rng(rows).standard_normal((rows, dim), np.float32)


def npy(array):
    """The bytes of an .npy."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays):
    """The bytes of an .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class ScriptTest(unittest.TestCase):
    """Runs the script in an empty folder."""

    python = sys.executable

    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.root = Path(temporary.name).resolve()
        cls.project = cls.root / "project"
        make_project(cls.project)

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name).resolve()
        self.environment = {
            key: value for key, value in os.environ.items()
            if not key.startswith("PIP_") and key not in ("PYTHONPATH", "HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY")
        }  # fmt: skip
        # One thread is quickest where pictures are this small.
        self.environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}

    def start(self, *arguments, **settings):
        """Starts the script."""
        settings = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": self.environment, **settings}
        command = [str(self.python), str(self.project / "scripts" / "decode.py"), *map(str, arguments)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, cwd=self.folder, **settings)

    def run_script(self, *arguments, stdin=b"", **settings):
        """`(status, standard output, standard error)`. `stdin`: what to send there, or a file's number."""
        is_file = isinstance(stdin, int)
        process = self.start(*arguments, **settings, **({"stdin": stdin} if is_file else {}))
        out, err = process.communicate(None if is_file else stdin, timeout=300)
        err = err.decode()
        self.assertNotIn("Traceback", err)
        return process.returncode, out, err

    def succeed(self, *arguments, **settings):
        """Standard output of a run that says nothing else."""
        status, out, err = self.run_script(*arguments, **settings)
        self.assertEqual((status, err), (0, ""))
        return out

    def fail_with(self, text, *arguments, status=2, **settings):
        """A run that fails with one line, and leaves nothing."""
        before = self.files()
        found, out, err = self.run_script(*arguments, **settings)
        self.assertEqual((found, out), (status, b""), err)
        self.assertRegex(err, r"\Adecode: [^\n]+\n\Z")
        self.assertIn(text, err)
        self.assertEqual(self.files(), before)

    def files(self):
        """All in the folder, with what is in them."""
        return {path: path.read_bytes() if path.is_file() else None for path in self.folder.rglob("*")}

    def names(self):
        """The names of all in the folder."""
        return sorted(path.name for path in self.folder.iterdir())

    def write(self, name, content):
        """A file in the folder."""
        path = self.folder / name
        path.write_bytes(content)
        return path

    def picture(self, name):
        """A picture in the folder, as an array."""
        return read_picture((self.folder / name).read_bytes())


def read_picture(content):
    """A PNG as an array."""
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        if (picture.format, picture.mode) != ("PNG", "RGB"):
            raise AssertionError(f"{picture.format} {picture.mode}")
        return np.asarray(picture)
