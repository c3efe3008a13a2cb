"""Inputs of all kinds, and wrong usage."""

import json
import os
import pty

import numpy as np

from ..decoding.builtin import DIM
from .decode_script import ScriptTest, embeddings, npy, npz, read_picture


class InputTest(ScriptTest):
    """What can be read."""

    def test_every_form_of_the_same_numbers(self):
        rows = embeddings(2).astype(np.float16)
        expected = self.succeed("-", "--out", "-", stdin=npy(rows.astype(np.float32)))
        self.write("rows.dat", npz(image_embeds=rows, negative_image_embeds=rows, other=np.arange(3)))
        self.assertEqual(self.succeed("rows.dat", "--out", "-"), expected)
        for form in (rows, rows.astype(np.float64), rows.astype(">f4"), np.asfortranarray(rows)):
            self.assertEqual(self.succeed("-", "--out", "-", stdin=npy(form)), expected)
        self.assertEqual(read_picture(self.succeed("-", "--out", "-", stdin=npy(rows[0]))).shape[:2], (24, 24))

    def test_what_cannot_be_read(self):
        rows, whole = embeddings(2), npy(embeddings(2))
        one_bad = rows.copy()
        one_bad[1, 3] = np.nan
        archive = npz(image_embeds=rows)
        damaged = archive.replace(rows.tobytes()[:8], b"12345678")
        for text, content in (
            ("empty", b""),
            ("neither .npy nor .npz", b"hello"),
            ("neither .npy nor .npz", b"\x93NUM"),
            ("cut off", whole[:-1]),
            ("cut off", whole[:20]),
            ("cut off", b"\x93NUMPY"),
            ("cut off", b"PK\x03\x04"),
            ("cut off", archive[: len(archive) // 2]),
            ("cut off", damaged),
            ("cut off", whole.replace(b"(2, 192)", b"(9, 10**9)")),
            ("cut off", whole.replace(b"'shape'", b"'__b__'")),
            ("Python objects", npy(np.array([{}, None]))),
            ("Python objects", npz(image_embeds=np.array([{}, None]))),
            ("no array image_embeds (it has a, b)", npz(a=rows, b=rows)),
            ("no array image_embeds (it has nothing)", npz()),
            ("int64", npy(np.ones((2, DIM), np.int64))),
            ("<U1", npy(np.array([["a"]]))),
            ("complex64", npy(rows.astype(np.complex64))),
            ("(2, 192, 1)", npy(rows[..., None])),
            ("shape ()", npy(np.float32(1))),
            ("(0, 192)", npy(rows[:0])),
            ("(2, 0)", npy(rows[:, :0])),
            ("row 1", npy(one_bad)),
            ("row 0", npy(rows.astype(np.float64) * 1e300)),
            ("too large", npy(np.full((1, DIM), 3e38, np.float32))),
            ("192 numbers, and those in standard input have 193", npy(embeddings(2, DIM + 1))),
            ("negative_image_embeds", npz(image_embeds=rows, negative_image_embeds=rows[:, 1:])),
            ("negative_image_embeds", npz(image_embeds=rows, negative_image_embeds=one_bad)),
        ):
            with self.subTest(text, content=content[:200]):
                self.fail_with(text, "-", "--out", "a.png", stdin=content)
        self.fail_with("192 numbers", "-", "--nearest", "1", stdin=npy(embeddings(2, DIM + 1)))

    def test_files_that_are_none(self):
        self.fail_with("No such file", "none.npy", "--out", "a.png")
        self.fail_with("No such file", "", "--out", "a.png")
        self.fail_with("folder", ".", "--out", "a.png")

    def test_a_terminal_is_neither_input_nor_output(self):
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, theirs)
        self.fail_with("terminal", "-", "--out", "a.png", stdin=theirs)
        status, _, err = self.run_script("-", "--out", "-", stdout=theirs)
        self.assertEqual(status, 2)
        self.assertIn("terminal", err)


class UsageTest(ScriptTest):
    """Options that are wrong or do not go together. None of these runs gets as far as its input."""

    def test_help(self):
        out = self.succeed("--help").decode()
        for text in ("image_embeds", "--nearest", "kakaobrain/karlo-v1-alpha-image-variations", "--negative-embeds"):
            self.assertIn(text, out)

    def test_wrong_usage(self):
        for text, *arguments in (
            ("INPUT",), ("nothing to do", "-"), ("--outt", "-", "--outt", "a.png"),
            ("PNG", "-", "--out", "a.jpg"), ("PNG", "-", "--out", ""),
            ("--nearest", "-", "--out", "-", "--nearest", "2"), ("--columns", "-", "--out", "a.png", "--columns", "-1"),
            ("--nearest", "-", "--out", "a.png", "--json"), ("--scale", "-", "--out", "a.png", "--scale", "0"),
            ("--scale", "-", "--out", "a.png", "--scale", "1.5"),
            ("--filter", "-", "--out", "a.png", "--filter", "cubic"), ("--nearest", "-", "--nearest", "0"),
            ("--steps", "-", "--out", "a.png", "--steps", "5"), ("--seed", "-", "--out", "a.png", "--seed", "0"),
            ("--prompt", "-", "--out", "a.png", "--prompt", ""), ("--device", "-", "--out", "a.png", "--device", "cpu"),
            ("--device", "-", "--out", "a.png", "--decoder", "karlo", "--device", "tpu"),
            ("--device", "-", "--out", "a.png", "--decoder", "karlo", "--device", "cuda:x"),
            ("--guidance-scale", "-", "--out", "a.png", "--decoder", "karlo", "--guidance-scale", "nan"),
            ("--seed", "-", "--out", "a.png", "--decoder", "karlo", "--seed", "-1"),
            ("one size", "-", "--out", "a.png", "--decoder", "karlo", "--height", "64"),
            ("multiples of 8", "-", "--out", "a.png", "--decoder", "stable-unclip", "--height", "100"),
            ("--prompt", "-", "--out", "a.png", "--decoder", "kandinsky-2.1"),
            ("--prompt", "-", "--out", "a.png", "--decoder", "kandinsky-2.2", "--prompt", "a"),
            ("--negative-embeds", "-", "--out", "a.png", "--decoder", "karlo", "--negative-embeds", "a.npy"),
            ("standard input", "-", "--out", "a.png", "--decoder", "kandinsky-2.2", "--negative-embeds", "-"),
        ):  # fmt: skip
            with self.subTest(arguments):
                self.fail_with(text, *arguments)

    def test_folders_that_are_no_decoder(self):
        folder = self.folder / "model"
        folder.mkdir()
        self.write("file", b"")

        def refused(text, name="model"):
            self.fail_with(text, "-", "--out", "a.png", "--decoder", name)

        for name in ("karlo2", "file", "", "none/karlo"):
            refused("neither a folder nor one of emoji, karlo", name)
        refused("model_index.json")
        for content in (b"", b"[]", b"\xff", b'"KandinskyV22Pipeline"'):
            self.write("model/model_index.json", content)
            refused("model_index.json")
        for index, text in (
            ({}, "None"),
            ({"_class_name": "KandinskyV22PriorPipeline"}, "a prior and no decoder"),
            ({"_class_name": "StableDiffusionPipeline"}, "StableDiffusionPipeline"),
            ({"_class_name": ["KandinskyV22Pipeline"]}, "no decoder"),
            ({"_class_name": "KandinskyV22Pipeline"}, "no whole decoder"),
        ):
            self.write("model/model_index.json", json.dumps(index).encode())
            refused(text)
