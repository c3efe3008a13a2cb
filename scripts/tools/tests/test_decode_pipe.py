"""prior-embed's output through a pipe into decode.py, as the README has it. Needs the binary: `cargo test` builds it."""

import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

import numpy as np

from ..built import BINARY, SCRIPTS
from .decode_script import embeddings, npy, read_picture


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
        side = len(picture)
        self.assertEqual(picture.shape, (side, side, 3))
        # The middle of it is red.
        middle = slice(3 * side // 8, 5 * side // 8)
        red, green, blue = picture[middle, middle].reshape(-1, 3).mean(0)
        self.assertGreater(red, 1.5 * max(green, blue))

    def test_pictures_are_those_of_the_program(self):
        rows = npy(embeddings(5))
        script = [sys.executable, SCRIPTS / "decode.py", "-", "--out", "-"]
        options = ("--scale", "3", "--columns", "2")
        commands = [*script, *options], [BINARY, "draw", "-", "--out", "-", *options]
        drawn = [subprocess.run(command, input=rows, capture_output=True, check=True).stdout for command in commands]
        np.testing.assert_array_equal(*map(read_picture, drawn))

    def test_the_index_names_emoji(self):
        command = [sys.executable, SCRIPTS / "decode.py", "-", "--nearest", "5"]
        done = subprocess.run(command, input=npy(embeddings(2)), capture_output=True, check=True)
        lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
        self.assertEqual([line[0] for line in lines], ["0"] * 5 + ["1"] * 5)
        entries = json.loads((SCRIPTS.parent / "assets" / "index" / "emoji.json").read_text(encoding="utf-8"))
        self.assertLessEqual({line[2] for line in lines}, {entry["name"] for entry in entries})
        captions = [BINARY, "draw", "-", "--out", os.devnull, "--captions"]
        done = subprocess.run(captions, input=npy(embeddings(2)), capture_output=True, check=True)
        self.assertEqual([line.split("\t") for line in done.stdout.decode().splitlines()], lines[::5])

    def test_a_prompt_finds_its_emoji(self):
        nearest = json.loads(self.decode("--nearest", "1", "--json"))
        self.assertIn("red apple", json.dumps(nearest))


class ServerTest(unittest.TestCase):
    """Embeddings from `prior-embed serve`."""

    @classmethod
    def setUpClass(cls):
        command = [BINARY, "serve", "--port", "0", "--api-key", "secret"]
        cls.server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        cls.addClassCleanup(cls.server.stdout.close)
        cls.addClassCleanup(cls.server.wait)
        cls.addClassCleanup(cls.server.terminate)
        # listening on http://127.0.0.1:PORT
        cls.url = cls.server.stdout.readline().split()[-1]

    def decode(self, *options, key="secret", status=0):
        """What decode.py does, and says."""
        command = [sys.executable, SCRIPTS / "decode.py", *options]
        done = subprocess.run(command, capture_output=True, env=os.environ | {"PRIOR_EMBED_API_KEY": key})
        self.assertEqual(done.returncode, status, done.stderr.decode())
        return done.stdout, done.stderr.decode()

    def ready(self):
        """Waits until the model is loaded."""
        for _ in range(600):
            try:
                return urllib.request.urlopen(f"{self.url}/health").status
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server does not get ready")

    def test_pictures_are_those_of_the_command_line(self):
        self.ready()
        prompts = ("--prompt", "a red apple", "--prompt", "a rocket")
        drawn, _ = self.decode("--server", self.url, *prompts, "--seed", "5", "--out", "-")
        with subprocess.Popen([BINARY, *prompts, "--seed", "5", "--out", "-", "--quiet"], stdout=subprocess.PIPE) as embed:
            piped = subprocess.run([sys.executable, SCRIPTS / "decode.py", "-", "--out", "-"], stdin=embed.stdout, capture_output=True)
        found, expected = (read_picture(png).astype(int) for png in (drawn, piped.stdout))
        self.assertLessEqual(abs(found - expected).max(), 1)

    def test_what_goes_wrong_is_one_line(self):
        self.ready()
        for options, key, status, words in [
            (("--server", self.url), "secret", 2, "--prompt"),
            ((), "secret", 2, "--server"),
            (("emb.npy", "--server", self.url), "secret", 2, "either"),
            (("--server", self.url, "--prompt", "a cat"), "wrong", 2, "PRIOR_EMBED_API_KEY"),
            (("--server", self.url, "--prompt", "cat " * 20000), "secret", 2, "refuses"),
            (("--server", "localhost", "--prompt", "a cat"), "secret", 2, "no address"),
            (("--server", "http://127.0.0.1:9", "--prompt", "a cat"), "secret", 1, "does not answer"),
        ]:
            _, message = self.decode(*options, "--out", "-", key=key, status=status)
            self.assertEqual(message.count("\n"), 1, message)
            self.assertIn(words, message)
