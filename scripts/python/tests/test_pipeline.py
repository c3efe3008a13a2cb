"""PriorPipeline without torch: its numbers are the program's, and its process never outlives it."""

import gc
import io
import json
import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

import numpy
from PIL import Image
from prior_embed import PriorError, PriorInputError, PriorPipeline

from .common import MODEL, PATIENCE, PROGRAM, WITHOUT_IMAGE_ENCODER, ProcessTest, embed, is_alive, rgb_picture

PROMPTS = ["a red apple", "two cats"]


class PipelineTest(ProcessTest):
    """A pipeline for all tests, which leave it as it was."""

    @classmethod
    def setUpClass(cls):
        cls.prior = PriorPipeline.from_pretrained(MODEL)
        cls.addClassCleanup(cls.prior.close)

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def embed(self, *options):
        """The arrays that the program itself writes."""
        return embed(self.folder, "--model", MODEL, *options)

    def assert_equal(self, output, arrays):
        """Bit for bit."""
        for name in ("image_embeds", "negative_image_embeds"):
            numpy.testing.assert_array_equal(output[name], arrays[name])

    def pid(self, prior):
        """Its process."""
        return prior._process().pid


class CallTest(PipelineTest):
    """The arguments of a call, and their errors."""

    def test_numbers_are_the_programs(self):
        prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        out = self.prior(PROMPTS, seed=7, output_type="np")
        self.assertEqual((out.image_embeds.dtype, out.image_embeds.shape), ("float32", (2, self.prior.embedding_dim)))
        self.assert_equal(out, self.embed(*prompts, "--seed", 7))
        self.assertIs(out[0], out["image_embeds"])
        self.assertEqual(dict(**out).keys(), {"image_embeds", "negative_image_embeds"})
        settings = ("--steps", 5, "--guidance-scale", 2.5, "--samples-per-prompt", 3)
        image, negative = self.prior(PROMPTS, ["rain", "rain"], 3, 5, 7, None, 2.5, "np", return_dict=False)
        expected = self.embed(*prompts, "--seed", 7, "--negative-prompt", "rain", *settings)
        self.assert_equal({"image_embeds": image, "negative_image_embeds": negative}, expected)
        self.assert_equal(
            self.prior("a red apple", output_type="np", seed=2**64 - 1), self.embed(*prompts[:2], "--seed", 2**64 - 1)
        )

    def test_latents_and_seeds_of_rows(self):
        latents = numpy.sin(numpy.arange(4 * self.prior.embedding_dim)).reshape(4, -1).astype("float32")
        numpy.save(self.folder / "latents.npy", latents)
        prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        expected = self.embed(*prompts, "--seed", 7, "--negative-prompt", "", "--latents", self.folder / "latents.npy")
        out = self.prior(PROMPTS, ["", ""], generator=[7, 8, 9, 10], latents=latents, output_type="np")
        self.assert_equal(out, expected)
        swapped = self.prior(
            PROMPTS[::-1], ["", ""], generator=[8, 7, 10, 9], latents=latents[[1, 0, 3, 2]], output_type="np"
        )
        self.assert_equal(swapped, {name: array[::-1] for name, array in expected.items()})

    def test_without_seeds_rows_are_random(self):
        one, other = (self.prior(PROMPTS[:1] * 2, output_type="np").image_embeds for _ in range(2))
        self.assertFalse(numpy.array_equal(one, other) or numpy.array_equal(one[0], one[1]))

    def test_a_model_without_an_image_encoder(self):
        with PriorPipeline.from_pretrained(WITHOUT_IMAGE_ENCODER) as prior:
            self.assertIsNone(prior("a", seed=0, output_type="np").negative_image_embeds)
            out = prior(PROMPTS, ["x", "y"], seed=3, output_type="np")
            one = embed(self.folder, "--model", WITHOUT_IMAGE_ENCODER, "-p", PROMPTS[1], "-n", "y", "--seed", 4)
            numpy.testing.assert_array_equal(out.image_embeds[1], one["image_embeds"][0])
            of_negative = embed(self.folder, "--model", WITHOUT_IMAGE_ENCODER, "-p", "y", "-n", "y", "--seed", 6)
            numpy.testing.assert_array_equal(out.negative_image_embeds[1], of_negative["image_embeds"][0])

    def test_what_does_not_fit_is_refused_and_the_process_stays(self):
        pid, dim = self.pid(self.prior), self.prior.embedding_dim
        for error, words, call in (
            (ValueError, "a text or a list of texts, not int", dict(prompt=5)),
            (ValueError, "holds NoneType", dict(prompt=["a", None])),
            (ValueError, "nothing to do", dict(prompt=[])),
            (ValueError, "nothing to do", dict(num_images_per_prompt=0)),
            (ValueError, "surrogate", dict(prompt="a\ud800")),
            (ValueError, "batch size 2", dict(negative_prompt=["a", "b"])),
            (ValueError, "between 1 and 1000", dict(num_inference_steps=1001)),
            (ValueError, "between 1 and 1000", dict(num_inference_steps=0)),
            (TypeError, "integer", dict(num_inference_steps=2.5)),
            (ValueError, "finite", dict(guidance_scale=float("nan"))),
            (ValueError, "not 'pil'", dict(output_type="pil")),
            (ValueError, "whole number", dict(seed=0.5)),
            (ValueError, "between 0 and", dict(seed=-1)),
            (ValueError, "between 0 and", dict(seed=2**64 - 1, num_images_per_prompt=2)),
            (ValueError, "exclude each other", dict(seed=1, generator=1)),
            (ValueError, "a list of 2, and the call has 3 rows", dict(generator=[1, 2], num_images_per_prompt=3)),
            (ValueError, f"shape (1, 3), and the call's rows take (1, {dim})", dict(latents=numpy.zeros((1, 3)))),
            (ValueError, "not finite", dict(latents=numpy.full((1, dim), numpy.nan))),
        ):
            with self.subTest(call), self.assertRaises(error) as raised:
                self.prior(**{"prompt": "a", "output_type": "np", **call})
            self.assertIn(words, str(raised.exception))
        self.assertEqual(self.pid(self.prior), pid)

    def test_a_model_or_option_that_does_not_fit_is_refused_in_one_line(self):
        for arguments, words in (
            (dict(model=self.folder), "has no prior"),
            (dict(model=MODEL, dtype="f12"), "f12"),
            (dict(model=MODEL, scheduler="x"), "x"),
        ):
            with self.subTest(arguments), self.assertRaises(ValueError) as raised:
                PriorPipeline.from_pretrained(**arguments)("a", output_type="np")
            self.assertIsInstance(raised.exception, PriorInputError)
            self.assertIn(words, str(raised.exception))
            self.assertEqual((len(str(raised.exception).splitlines()), raised.exception.exit_code), (1, 2))

    def test_options_reach_the_program(self):
        with PriorPipeline.from_pretrained(MODEL, scheduler="ddim", dtype="f32", threads=1, batch_size=2) as prior:
            out = prior(PROMPTS, seed=1, num_inference_steps=4, output_type="np")
        prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        self.assert_equal(out, self.embed(*prompts, "--seed", 1, "--steps", 4, "--scheduler", "ddim"))

    def test_warnings_are_logged(self):
        with self.assertLogs("prior_embed", logging.WARNING) as logs:
            self.prior("word " * 200, seed=0, output_type="np")
            deadline = time.monotonic() + PATIENCE
            while not logs.output and time.monotonic() < deadline:
                time.sleep(0.01)
        self.assertIn("77 tokens", logs.output[0])

    def test_the_built_in_model_needs_no_name(self):
        with PriorPipeline.from_pretrained() as prior:
            out = prior("a red apple", seed=0, num_inference_steps=2, output_type="np")
        self.assert_equal(out, embed(self.folder, "-p", "a red apple", "--steps", 2))


class IterTest(PipelineTest):
    """Any number of rows."""

    def test_rows_come_in_order_with_settings_of_their_own(self):
        rows = ["a red apple", {"prompt": "two cats", "seed": 5}, {"prompt": "rain", "num_inference_steps": 3},
                {"prompt": "snow", "negative_prompt": "sun", "guidance_scale": 2}]  # fmt: skip
        found = list(self.prior.embed_iter(rows, seed=10))
        self.assertEqual(
            [(row.prompt, row.seed) for row in found],
            [("a red apple", 10), ("two cats", 5), ("rain", 12), ("snow", 13)],
        )
        for row, options in zip(found, ((), (), ("--steps", 3), ("--negative-prompt", "sun", "--guidance-scale", 2))):
            expected = self.embed("--prompt", row.prompt, "--seed", row.seed, *options)
            numpy.testing.assert_array_equal(row.image_embeds, expected["image_embeds"][0])
            if "--negative-prompt" not in options:
                numpy.testing.assert_array_equal(row.negative_image_embeds, expected["negative_image_embeds"][0])

    def test_numbers_are_those_of_a_pipe(self):
        rows = [{"prompt": prompt, "negative_prompt": "rain"} for prompt in PROMPTS]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        command = [
            PROGRAM,
            "--model",
            MODEL,
            "--seed",
            "3",
            "-f",
            "-",
            "--format-in",
            "jsonl",
            "-o",
            "-",
            "--format",
            "npz",
        ]
        piped = subprocess.run(command, input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout
        expected = numpy.load(io.BytesIO(piped))
        for number, row in enumerate(self.prior.embed_iter(rows, seed=3)):
            for name in ("image_embeds", "negative_image_embeds"):
                numpy.testing.assert_array_equal(getattr(row, name), expected[name][number])

    def test_no_more_rows_are_taken_than_are_wanted(self):
        taken = 0

        def rows():
            nonlocal taken
            for _ in range(300):
                taken += 1
                yield "cat"

        for given, _ in enumerate(self.prior.embed_iter(rows(), num_inference_steps=2, prefetch=16), start=1):
            self.assertLessEqual(taken - given, 16)
            self.assertLessEqual(self.prior._process().pending, 16)
        self.assertEqual(given, 300)
        taken = 0
        for given, _ in enumerate(self.prior.embed_iter(rows(), num_inference_steps=2, prefetch=1), start=1):
            self.assertEqual(taken, given)
            if given == 5:
                break

    def test_calls_and_threads_share_the_process(self):
        expected = self.prior("cat", seed=3, num_inference_steps=3, output_type="np").image_embeds[0]
        wrong = []

        def work():
            for row in self.prior.embed_iter([{"prompt": "cat", "seed": 3}] * 40, num_inference_steps=3, prefetch=7):
                nested = self.prior("cat", seed=3, num_inference_steps=3, output_type="np").image_embeds[0]
                if not (numpy.array_equal(row.image_embeds, expected) and numpy.array_equal(nested, expected)):
                    wrong.append(row)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            self.assertFalse(thread.is_alive())
        self.assertEqual(wrong, [])

    def test_rows_before_a_bad_one_are_given(self):
        given = []
        with self.assertRaisesRegex(ValueError, "row 2: 'text' is none of prompt, "):
            for row in self.prior.embed_iter(["a", "b", {"text": "c"}, "d"]):
                given.append(row.prompt)
        self.assertEqual(given, ["a", "b"])
        for row, words in (({"seed": 1}, "a text"), ({"prompt": "a", "seed": -1}, "between 0"), (None, "None"),
                           ({"prompt": "a", "num_inference_steps": 5000}, "1 and 1000")):  # fmt: skip
            with self.subTest(row), self.assertRaisesRegex(ValueError, words):
                list(self.prior.embed_iter([row]))
        with self.assertRaisesRegex(ValueError, "prefetch"):
            self.prior.embed_iter([], prefetch=0)

    def test_an_error_of_the_rows_is_passed_on(self):
        def rows():
            yield "a"
            raise KeyError("the database is gone")

        with self.assertRaisesRegex(KeyError, "database"):
            list(self.prior.embed_iter(rows()))
        self.prior("a", output_type="np")


class InterpolateTest(PipelineTest):
    """Mixes."""

    def test_mixes_are_the_programs(self):
        picture = rgb_picture()
        items = ("a red apple", f"@{picture}", "two cats")
        mixed = self.folder / "mix.npz"
        for options, arguments in (
            ((), {}),
            (("--negative-prompt", "rain"), dict(negative_prior_prompt="rain")),
            (("--decoder-negative-prompt", "snow"), dict(negative_prompt="snow")),
        ):
            subprocess.run([PROGRAM, "interpolate", *items, "--weights", "0.3,0.3,0.4", "--model", MODEL, "--seed", "5",
                            "--out", mixed, *options], check=True, capture_output=True)  # fmt: skip
            expected = dict(numpy.load(mixed))
            mixed.unlink()
            with Image.open(picture) as opened:
                opened.load()
            for given in (picture, opened):
                out = self.prior.interpolate(
                    ["a red apple", given, "two cats"], [0.3, 0.3, 0.4], seed=5, output_type="np", **arguments
                )
                for name in expected:
                    numpy.testing.assert_allclose(out[name], expected[name], atol=1e-6)
        embed = self.prior("a red apple", seed=5, output_type="np").image_embeds
        half = self.prior.interpolate(
            [embed, embed[0]], [0.25, 0.25], num_images_per_prompt=2, seed=0, output_type="np"
        )
        numpy.testing.assert_allclose(half.image_embeds, numpy.repeat(embed / 2, 2, 0), atol=1e-6)

    def test_what_does_not_fit_is_refused(self):
        for items, weights, words in (
            (["a"], [1, 2], "1 `images_and_prompts` and 2 `weights`"),
            ([], [], "empty"),
            ([5], [1], "not int"),
            ([numpy.zeros((1, 3, 8, 8))], [1], "has shape"),
        ):
            with self.subTest(items), self.assertRaisesRegex(ValueError, words):
                self.prior.interpolate(items, weights, seed=0, output_type="np")
        with self.assertRaisesRegex(PriorInputError, "no-such.png"):
            self.prior.interpolate([Path("no-such.png")], [1], seed=0, output_type="np")


class ProcessEndTest(ProcessTest):
    """How a process ends."""

    def setUp(self):
        self.prior = PriorPipeline.from_pretrained(MODEL)
        self.addCleanup(self.prior.close)

    @property
    def pid(self):
        """The process."""
        return self.prior._process().pid

    def test_its_death_is_told_and_the_next_call_has_another(self):
        expected = self.prior("a", seed=0, output_type="np").image_embeds
        rows = self.prior.embed_iter(["a"] * 1000, num_inference_steps=1000, prefetch=64)
        next(rows)
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        with self.assertRaisesRegex(PriorError, "ended by SIGKILL") as raised:
            list(rows)
        self.assertEqual(raised.exception.exit_code, -signal.SIGKILL)
        self.assertNotIsInstance(raised.exception, ValueError)
        numpy.testing.assert_array_equal(self.prior("a", seed=0, output_type="np").image_embeds, expected)
        self.assertNotEqual(self.pid, pid)

    def test_it_ends_with_the_pipeline(self):
        pid = self.pid
        with self.prior as prior:
            prior("a", output_type="np")
        self.assertFalse(is_alive(pid))
        with self.assertRaisesRegex(PriorError, "closed"):
            prior("a", output_type="np")
        self.prior = PriorPipeline.from_pretrained(MODEL)
        pid, self.prior = self.pid, None
        gc.collect()
        self.assert_ends(pid)
        self.setUp()

    def test_an_iterator_that_is_left_ends_work_that_nobody_waits_for(self):
        rows = self.prior.embed_iter(["a"] * 64, num_inference_steps=1000, prefetch=64)
        next(rows)
        rows.close()
        start = time.monotonic()
        self.prior("a", num_inference_steps=2, output_type="np")
        self.assertLess(time.monotonic() - start, PATIENCE)
        self.assertEqual(self.prior._process().pending, 0)

    def test_a_forked_child_has_a_process_of_its_own(self):
        expected = self.prior("a", seed=0, output_type="np").image_embeds
        pid, (told, tell), (awaited, go) = self.pid, os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(go)
                same = numpy.array_equal(self.prior("a", seed=0, output_type="np").image_embeds, expected)
                own = self.pid
                os.write(tell, f"{own}\n".encode())
                os.read(awaited, 1)  # The parent has ended its process.
                self.prior.close()
                status = 0 if same and own != pid else 2
            finally:
                os._exit(status)
        numpy.testing.assert_array_equal(self.prior("a", seed=0, output_type="np").image_embeds, expected)
        own = int(os.read(told, 99))
        self.prior._process()._child.stdin.close()
        self.assert_ends(pid)  # Nothing in the child keeps it alive.
        self.assertTrue(is_alive(own))
        for pipe in (told, tell, awaited, go):
            os.close(pipe)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assert_ends(own)

    def test_it_ends_with_the_interpreter(self):
        for end, status in (("", 0), ("raise SystemExit(3)", 3), ("raise KeyError", 1), ("prior = prior.to('cpu')", 0)):
            with self.subTest(end):
                code = f"prior = PriorPipeline.from_pretrained(MODEL)\nprint(prior._process().pid, flush=True)\n{end}"
                self.assert_ends(int(self.run_python(code, status)))

    def start_busy(self):
        """A Python that waits for a long call, and its process."""
        process = self.start_python("""
            prior = PriorPipeline.from_pretrained(MODEL)
            print(prior._process().pid, flush=True)
            prior(["cat"] * 2000, num_inference_steps=1000, output_type="np")
        """)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        pid = int(process.stdout.readline())
        time.sleep(0.5)
        self.assertTrue(is_alive(pid))
        return process, pid

    def test_it_ends_when_python_is_interrupted_or_killed(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with self.subTest(number):
                process, pid = self.start_busy()
                process.send_signal(number)
                self.assertEqual(process.wait(PATIENCE), -number)
                self.assert_ends(pid)

    def test_an_interrupted_call_leaves_a_pipeline_that_works(self):
        found = self.run_python("""
            import os, signal, threading
            prior = PriorPipeline.from_pretrained(MODEL)
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                prior(["cat"] * 2000, num_inference_steps=1000, output_type="np")
            except KeyboardInterrupt:
                print(prior("a", num_inference_steps=2, output_type="np").image_embeds.shape[0])
        """)
        self.assertEqual(found, "1")

    def test_torch_is_needed_for_its_tensors_alone(self):
        found = self.run_python("""
            import sys
            sys.modules["torch"] = None
            prior = PriorPipeline.from_pretrained(MODEL)
            try:
                prior("a")
            except ImportError as error:
                print(error)
            print(prior("a", output_type="np").image_embeds.dtype)
        """)
        self.assertEqual(found, 'output_type="pt" needs torch; install it, or give output_type="np"\nfloat32')


if __name__ == "__main__":
    unittest.main()
