"""Pictures, grids, the nearest emoji, and outputs that are whole or not there."""

import fcntl
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import termios
import time
import unittest

import numpy as np

from ..decoding.nearest import Emoji
from ..decoding.builtin import BATCH, DIM
from .decode_script import EMOJI, PIXELS, ScriptTest, drawn, embeddings, npy, npz, read_picture


def unread(pipe):
    """How many bytes in a pipe nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


class PictureTest(ScriptTest):
    """One row or several, from any kind of input to any kind of output."""

    def test_from_standard_input_to_a_file_and_to_standard_output(self):
        content = npy(embeddings(1))
        self.assertEqual(self.succeed("-", "--out", "apple.png", stdin=content), b"")
        self.assertEqual(self.picture("apple.png").shape, (4 * PIXELS, 4 * PIXELS, 3))
        written = (self.folder / "apple.png").read_bytes()
        self.assertEqual(self.succeed("-", "-o", "-", stdin=content), written)
        self.assertEqual(self.names(), ["apple.png"])

    def test_the_picture_is_what_the_decoder_gives(self):
        rows = embeddings(3)
        self.succeed("-", "--out-dir", "pictures", "--scale", "1", stdin=npy(rows))
        for at, expected in enumerate(drawn(rows)):
            np.testing.assert_array_equal(self.picture(f"pictures/{at:05}.png"), expected)

    def test_rows_are_drawn_part_by_part(self):
        rows = embeddings(BATCH + 3)
        strip = read_picture(self.succeed("-", "--out", "-", "--scale", "1", "--columns", "1", stdin=npy(rows)))
        np.testing.assert_array_equal(strip.reshape(-1, PIXELS, PIXELS, 3), drawn(rows))

    def test_enlarging(self):
        content = npy(embeddings(1))
        small = read_picture(self.succeed("-", "--out", "-", "--scale", "1", stdin=content))
        self.assertEqual(small.shape, (PIXELS, PIXELS, 3))
        blocks = read_picture(self.succeed("-", "--out", "-", "--scale", "3", "--filter", "nearest", stdin=content))
        np.testing.assert_array_equal(blocks, small.repeat(3, axis=0).repeat(3, axis=1))
        smooth = read_picture(self.succeed("-", "--out", "-", "--scale", "3", stdin=content))
        self.assertEqual(smooth.shape, blocks.shape)
        self.assertTrue((smooth != blocks).any())


class GridTest(ScriptTest):
    """Several rows in one picture."""

    def test_row_by_row(self):
        content = npy(embeddings(5))
        self.succeed("-", "--out", "grid.png", "--out-dir", "each", "--scale", "1", stdin=content)
        grid = self.picture("grid.png")
        self.assertEqual(grid.shape, (2 * PIXELS, 3 * PIXELS, 3))
        cells = [grid[y : y + PIXELS, x : x + PIXELS] for y in (0, PIXELS) for x in (0, PIXELS, 2 * PIXELS)]
        for at in range(5):
            np.testing.assert_array_equal(cells[at], self.picture(f"each/{at:05}.png"))
        self.assertTrue((cells[5] == 255).all())

    def test_columns(self):
        content = npy(embeddings(5))
        for columns, width, height in ((1, 1, 5), (2, 2, 3), (5, 5, 1), (100, 5, 1)):
            grid = read_picture(self.succeed("-", "--out", "-", "--scale", "2", "--columns", columns, stdin=content))
            self.assertEqual(grid.shape, (2 * PIXELS * height, 2 * PIXELS * width, 3), columns)

    def test_a_grid_too_large_is_refused(self):
        self.fail_with("--out-dir", "-", "--out", "grid.png", "--scale", "64", stdin=npy(embeddings(3500)))


class NearestTest(ScriptTest):
    """The names of emoji."""

    def test_as_text_and_as_json(self):
        rows = np.zeros((3, DIM), np.float32)
        rows[0, [0, 1]] = 2, 1  # between the first style of the apple and of the heart
        rows[1, [7, 6]] = 1, -1e30  # the second style of the flag; the square of a number has no place in float32
        expected = "0\t🍎\tred apple\t0.8944\n0\t❤️\tred heart\t0.4472\n"
        out = self.succeed("-", "--nearest", "2", stdin=npy(rows)).decode()
        self.assertTrue(out.startswith(expected), out)
        self.assertEqual(len(out.splitlines()), 6)
        out = self.succeed("-", "--nearest", "9", "--json", stdin=npy(rows))
        objects = [json.loads(line) for line in out.splitlines()]
        self.assertEqual([found["row"] for found in objects], [0, 1, 2])
        self.assertEqual([len(found["nearest"]) for found in objects], [len(EMOJI)] * 3)
        apple = {"emoji": "🍎", "code": "1F34E", "name": "red apple", "group": "food", "score": 0.894427}
        self.assertEqual(objects[0]["nearest"][0], apple)
        self.assertEqual({emoji["score"] for emoji in objects[2]["nearest"]}, {0.0})

    def test_with_a_picture(self):
        out = self.succeed("-", "--nearest", "1", "--out", "apple.png", stdin=npy(np.eye(DIM, dtype=np.float32)[:1]))
        self.assertEqual(out.decode(), "0\t🍎\tred apple\t1.0000\n")
        self.assertEqual(self.names(), ["apple.png"])

    def test_in_a_locale_without_emoji(self):
        self.environment |= {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
        self.assertIn("🍎", self.succeed("-", "--nearest", "4", stdin=npy(embeddings(1))).decode())

    def test_characters(self):
        for code, characters in (("1F34E", "🍎"), ("2764", "❤️"), ("2764-FE0F-200D-1F525", "❤️‍🔥"), ("A9", "©️")):
            self.assertEqual(Emoji(code, "", "").characters, characters)


class OutputTest(ScriptTest):
    """Outputs that are there already, or cannot be written."""

    def test_nothing_is_replaced_without_overwrite(self):
        content = npy(embeddings(2))
        self.write("a.png", b"mine")
        (self.folder / "each").mkdir()
        self.write("each/00001.png", b"mine")
        self.fail_with("a.png", "-", "--out", "a.png", stdin=content)
        self.fail_with("00001.png", "-", "--out-dir", "each", stdin=content)
        self.fail_with("00001.png", "-", "--out-dir", "each", "--out", "b.png", stdin=content)
        self.succeed("-", "--out", "a.png", "--out-dir", "each", "--overwrite", stdin=content)
        self.assertEqual(self.picture("a.png").shape, (4 * PIXELS, 8 * PIXELS, 3))
        self.assertEqual(self.picture("each/00001.png").shape, (4 * PIXELS, 4 * PIXELS, 3))

    def test_other_files_in_the_folder_stay(self):
        (self.folder / "each").mkdir()
        self.write("each/00002.png", b"mine")
        self.succeed("-", "--out-dir", "each", stdin=npy(embeddings(2)))
        self.assertEqual((self.folder / "each" / "00002.png").read_bytes(), b"mine")
        self.succeed("-", "--out-dir", "new/folder", stdin=npy(embeddings(2)))
        self.assertEqual(len(list((self.folder / "new" / "folder").iterdir())), 2)

    def test_a_folder_as_out(self):
        content, two = npy(embeddings(2)), ["00000.png", "00001.png"]
        (self.folder / "there").mkdir()
        for name in ("there", "new/"):
            self.succeed("-", "--out", name, stdin=content)
            self.assertEqual(sorted(path.name for path in (self.folder / name).iterdir()), two)
        self.fail_with("00000.png", "-", "--out", "there", stdin=content)
        self.fail_with("leave one of them out", "-", "--out", "new/", "--out-dir", "other", stdin=content)

    def test_where_nothing_can_be_written(self):
        content = npy(embeddings(1))
        (self.folder / "folder.png").mkdir()
        self.write("file", b"")
        os.mkfifo(self.folder / "pipe.png")
        for text, *arguments in (
            ("folder", "--out", "none/a.png"), ("folder", "--out", "folder.png"), ("folder", "--out", "file/a.png"),
            ("regular", "--out", "pipe.png"), ("no folder", "--out-dir", "file"),
            ("Not a directory", "--out-dir", "file/a"),
        ):  # fmt: skip
            with self.subTest(arguments):
                self.fail_with(text, "-", *arguments, stdin=content)

    def test_a_disk_that_fills_up_leaves_nothing(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

        self.write("a.png", b"mine")
        for name in ("a.png", "b.png"):
            self.fail_with("cannot write", "-", "--out", name, "--overwrite", status=1, stdin=npy(embeddings(1)),
                preexec_fn=limit)  # fmt: skip

    def test_a_link_and_the_permissions(self):
        self.write("target.png", b"mine")
        (self.folder / "link.png").symlink_to("target.png")
        old = os.umask(0o027)
        self.addCleanup(os.umask, old)
        self.succeed("-", "--out", "link.png", "--overwrite", stdin=npy(embeddings(1)))
        self.assertTrue((self.folder / "link.png").is_symlink())
        self.assertEqual(self.picture("target.png").shape[2], 3)
        self.assertEqual(stat.S_IMODE((self.folder / "target.png").stat().st_mode), 0o640)

    def test_a_reader_that_goes_away_is_no_error(self):
        for arguments in (("--nearest", "4"), ("--out", "-")):
            reading, writing = os.pipe()
            os.close(reading)
            with os.fdopen(writing) as pipe:
                self.assertEqual(self.succeed("-", *arguments, stdin=npy(embeddings(900)), stdout=pipe), None)

    @unittest.skipUnless(os.path.exists("/dev/full"), "only Linux has /dev/full")
    def test_a_standard_output_that_is_full(self):
        with open("/dev/full", "wb") as full:
            status, _, err = self.run_script("-", "--out", "-", stdin=npy(embeddings(1)), stdout=full)
        self.assertEqual((status, err), (1, "decode: cannot write to standard output: No space left on device\n"))

    def test_an_interruption_is_no_traceback(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            process = self.start("-", "--out", "a.png", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
            process.stdin.write(b"\x93NUMPY")
            process.stdin.flush()
            while unread(process.stdin):
                self.assertIsNone(process.poll())
                time.sleep(0.01)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            self.assertEqual((process.returncode, err, self.names()), (128 + number, b"", []))

    def test_assets_that_are_damaged(self):
        for text, name, arguments in (
            ("index", "index/index.safetensors", ("--nearest", "1")),
            ("index", "index/emoji.json", ("--nearest", "1")),
        ):
            path = self.project / "assets" / name
            content = path.read_bytes()
            try:
                for damaged in (content[:-1], b"", b"[]"):
                    path.write_bytes(damaged)
                    self.fail_with(text, "-", *arguments, status=1, stdin=npz(image_embeds=embeddings(1)))
                path.unlink()
                self.fail_with(text, "-", *arguments, status=1, stdin=npz(image_embeds=embeddings(1)))
            finally:
                path.write_bytes(content)

    def test_a_program_that_fails_or_is_not_there(self):
        program, content = self.project / "target" / "release" / "prior-embed", npy(embeddings(1))
        whole = program.read_bytes()
        self.addCleanup(program.write_bytes, whole)
        program.write_text("#!/bin/sh\necho 'prior-embed: error: no luck; try again' >&2\nexit 1\n", encoding="utf-8")
        self.fail_with("decode: no luck; try again", "-", "--out", "a.png", status=1, stdin=content)
        program.write_text("", encoding="utf-8")
        self.fail_with("cannot run", "-", "--out", "a.png", status=1, stdin=content)
        program.chmod(0o644)
        self.addCleanup(program.chmod, 0o755)
        self.fail_with("could not be built", "-", "--out", "a.png", status=1, stdin=content)
