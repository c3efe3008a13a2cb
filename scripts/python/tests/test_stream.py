"""Rows through a process that may die: the numbers are the program's, whatever happens to it."""

import json
import os
import signal
import tempfile
import unittest
from pathlib import Path

import numpy
from prior_embed import PriorError, PriorInputError
from prior_embed._stream import BadRow, Stream, program_arguments, row_line

from .common import MODEL, ProcessTest, embed

PROMPTS = [f"{word} apple" for word in ("a red", "a green", "no", "half an", "one more", "the last")]


class ArgumentsTest(unittest.TestCase):
    """Options as arguments."""

    def test_each_kind_of_value(self):
        options = {
            "model": Path("a b"),
            "guidance_scale": 2.5,
            "normalize": True,
            "sde": False,
            "steps": None,
            "lora": ["a", "b:0.5"],
            "seed": 0,
        }
        expected = ["--model=a b", "--guidance-scale=2.5", "--normalize", "--lora=a", "--lora=b:0.5", "--seed=0"]
        self.assertEqual(program_arguments(options), expected)

    def test_a_line_has_what_is_given(self):
        line = row_line('a "quoted"\nprompt', 7, 2, {"steps": 3, "negative_prompt": None, "other": 1})
        self.assertNotIn(b"\n", line)
        self.assertEqual(json.loads(line), {"prompt": 'a "quoted"\nprompt', "samples": 2, "seed": 7, "steps": 3})
        self.assertEqual(json.loads(row_line("", None, 1, {})), {"prompt": "", "samples": 1})


class StreamTest(ProcessTest):
    """With a small model."""

    def setUp(self):
        self.stream = Stream([f"--model={MODEL}", "--steps=3"], os.getcwd(), 1)
        self.addCleanup(self.stream.close)

    def embed(self, *options):
        """What the program itself makes of PROMPTS."""
        with tempfile.TemporaryDirectory() as folder:
            prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
            return embed(Path(folder), "--model", MODEL, "--steps", 3, *prompts, *options)["image_embeds"]

    def rows(self, samples=1):
        """PROMPTS as rows, with the seeds of their places."""
        for place, prompt in enumerate(PROMPTS):
            yield place, row_line(prompt, place * samples, samples, {}), samples

    def assert_equal(self, found, expected):
        """Keys in order, and numbers bit for bit."""
        found = list(found)
        self.assertEqual([key for key, _ in found], list(range(len(found))))
        numbers = [answer["image_embeds"] for _, answers in found for answer in answers]
        numpy.testing.assert_array_equal(numpy.frombuffer(b"".join(numbers), "<f4").reshape(expected.shape), expected)

    def test_numbers_are_the_programs(self):
        self.assert_equal(self.stream.embed(self.rows()), self.embed())
        self.assert_equal(self.stream.embed(self.rows(3)), self.embed("--samples-per-prompt", 3))
        self.assertEqual(list(self.stream.embed([])), [])

    def test_the_rows_of_a_killed_process_are_done_again(self):
        def rows():
            for item in self.rows():
                if item[0] == 4:
                    # It still reads its model.
                    os.kill(self.stream.pid, signal.SIGKILL)
                yield item

        for _ in range(2):
            with self.assertLogs("prior_embed", "WARNING") as logs:
                self.assert_equal(self.stream.embed(rows()), self.embed())
            self.assertRegex(logs.output[0], "SIGKILL; its rows are done again")
            self.stream.close()

    def test_a_row_that_kills_every_process_is_an_error(self):
        send = self.stream._send

        def send_and_kill(line, samples):
            tickets = send(line, samples)
            os.kill(self.stream._process.pid, signal.SIGKILL)
            return tickets

        self.stream._send = send_and_kill
        with self.assertRaisesRegex(PriorError, "SIGKILL"), self.assertLogs("prior_embed", "WARNING") as logs:
            list(self.stream.embed(self.rows()))
        self.assertEqual(len(logs.output), 2)

    def test_a_row_that_is_refused_is_an_answer(self):
        rows = list(self.rows())
        rows[2] = (2, row_line(PROMPTS[2], 2, 1, {"steps": 10**6}), 1)
        found = list(self.stream.embed(rows))
        self.assertIsInstance(found[2][1], BadRow)
        self.assertRegex(found[2][1].reason, '"steps" is 1000000')
        expected = self.embed()
        for key, answers in found[:2] + found[3:]:
            numpy.testing.assert_array_equal(numpy.frombuffer(answers[0]["image_embeds"], "<f4"), expected[key])

    def test_rows_without_answers_are_passed_on(self):
        rows = [("first", b"", 0), *self.rows(), ("last", b"", 0)]
        found = list(self.stream.embed(rows))
        self.assertEqual((found[0], found[-1]), (("first", []), ("last", [])))
        self.assert_equal(found[1:-1], self.embed())

    def test_no_more_rows_are_taken_than_are_in_flight(self):
        taken = []

        def rows():
            for number in range(100_000):
                taken.append(number)
                yield number, row_line("a", number, 1, {}), 1

        stream = self.stream.embed(rows())
        next(stream)
        self.assertLessEqual(len(taken), self.stream._most)
        pid = self.stream.pid
        stream.close()
        self.assert_ends(pid)

    def test_a_model_that_is_not_there_is_one_error(self):
        stream = Stream(["--model=/no/such/folder"], os.getcwd(), 1)
        with self.assertRaisesRegex(PriorInputError, "/no/such/folder"):
            list(stream.embed(self.rows()))


if __name__ == "__main__":
    unittest.main()
