"""prior-embed's output through a pipe into decode.py, as the README has it. Needs the binary: `cargo test` builds it."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from ..built import BINARY, SCRIPTS
from .decode_script import read_picture


class PipeTest(unittest.TestCase):
    """With the model, the decoder and the index that are shipped."""

    def decode(self, *options):
        """What decode.py prints about a red apple."""
        command = [sys.executable, SCRIPTS / "decode.py", "-", *options]
        with subprocess.Popen([BINARY, "--prompt", "a red apple", "--out", "-", "--quiet"], stdout=subprocess.PIPE) as embed:
            done = subprocess.run(command, stdin=embed.stdout, capture_output=True)
        self.assertEqual((embed.returncode, done.returncode), (0, 0), done.stderr.decode())
        return done.stdout

    def test_a_prompt_becomes_a_picture(self):
        with tempfile.TemporaryDirectory() as folder:
            self.decode("--out", Path(folder) / "apple.png")
            picture = read_picture((Path(folder) / "apple.png").read_bytes())
        self.assertEqual(picture.shape, (256, 256, 3))
        # The middle of it is red.
        red, green, blue = picture[96:160, 96:160].reshape(-1, 3).mean(0)
        self.assertGreater(red, 1.5 * max(green, blue))

    def test_a_prompt_finds_its_emoji(self):
        nearest = json.loads(self.decode("--nearest", "1", "--json"))
        self.assertIn("red apple", json.dumps(nearest))
