"""What the tests share: the program, a small model, and a Python of its own for what happens to processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import unittest

import numpy
from PIL import Image
from tools.built import BINARY, ROOT, SCRIPTS

MODEL = ROOT / "tests" / "fixtures" / "pipelines" / "kandinsky22"
WITHOUT_IMAGE_ENCODER = MODEL.with_name("no_image_encoder")
PICTURES = ROOT / "tests" / "fixtures" / "images"
PATIENCE = 30  # seconds; no wait where all is well

os.environ.setdefault("PRIOR_EMBED_PROGRAM", str(BINARY))
PROGRAM = os.environ["PRIOR_EMBED_PROGRAM"]


def embed(folder, *options):
    """The arrays that the program itself writes."""
    out = folder / "out.npz"
    subprocess.run([PROGRAM, *map(str, options), "--out", out, "--overwrite", "--quiet"], check=True)
    with numpy.load(out) as arrays:
        return dict(arrays)


def rgb_picture():
    """The path of a picture without transparency."""
    for path in sorted(PICTURES.glob("*.png")):
        with Image.open(path) as picture:
            if picture.mode == "RGB":
                return path
    raise LookupError("no such picture")


def is_alive(pid):
    """Whether a process runs, or waits for its parent to ask."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


class ProcessTest(unittest.TestCase):
    """Asserts about processes."""

    def assert_ends(self, pid):
        """A process is gone, or soon will be."""
        deadline = time.monotonic() + PATIENCE
        while is_alive(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                self.fail("the program still runs")
            time.sleep(0.01)

    def start_python(self, code):
        """A Python with the package and MODEL."""
        text = f"from prior_embed import PriorPipeline\nMODEL = {str(MODEL)!r}\n" + textwrap.dedent(code)
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen([sys.executable, "-c", text], env=environment, encoding="utf-8",
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    def run_python(self, code, status=0):
        """What such a Python prints."""
        process = self.start_python(code)
        out, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, status, err)
        return out.strip()
