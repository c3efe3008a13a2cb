"""What the tests of decode.py share: a copy of it with a small index and a stand-in for the program that draws, and a folder
to run it in."""

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
from ..decoding.builtin import DIM

PIXELS = 6
EMOJI = [
    ("1F34E", "red apple", "food"),
    ("2764", "red heart", "symbols"),
    ("1F636-200D-1F32B-FE0F", "face in clouds", "smileys"),
    ("1F1EF-1F1F5", "flag of Japan", "flags"),
]


PROGRAM = """
import io, sys
import numpy as np
from PIL import Image
if sys.argv[1:] != "draw - --out - --scale 1 --columns 1 --quiet".split():
    sys.exit(f"prior-embed: error: what is {sys.argv[1:]}?")
rows = np.load(io.BytesIO(sys.stdin.buffer.read()))
sides = rows[:, :108].reshape(-1, 6, 6, 3)
levels = ((np.tanh(sides) + 1) * 127.5).round().astype(np.uint8)
Image.fromarray(levels.reshape(-1, 6, 3)).save(sys.stdout.buffer, "PNG")
"""
"""A program that draws a row's first numbers."""


def drawn(rows):
    """What that program draws."""
    return ((np.tanh(rows[:, : 3 * PIXELS**2]) + 1) * 127.5).round().reshape(-1, PIXELS, PIXELS, 3)


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
    (assets / "index").mkdir(parents=True)
    program = root / "target" / "release" / "prior-embed"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\n{PROGRAM}", encoding="utf-8")
    program.chmod(0o755)
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
        self.environment["CARGO_TARGET_DIR"] = str(self.project / "target")

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
