"""What of prior_embed.ray needs no Ray: which files, which rows in which shard, and when a run may be resumed.
scripts/check_ray.py checks the rest."""

import contextlib
import io
import os
import random
import tempfile
import unittest
from pathlib import Path

import numpy
from prior_embed import PriorInputError
from prior_embed.ray import PriorEmbedder
from prior_embed.ray._command import main
from prior_embed.ray._inputs import InputFile, find_files, holds, read
from prior_embed.ray._plan import MANIFEST, Plan, prompts_per_shard, publish

from .common import MODEL, embed


class FolderTest(unittest.TestCase):
    """In a folder of its own, which is the current one."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name).resolve()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)

    def make(self, *names):
        """Files."""
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name}\n", encoding="utf-8")

    def find(self, *arguments, **options):
        """The files that arguments stand for, relative."""
        return [os.path.relpath(path) for path in find_files(list(arguments), **options)]


class FilesTest(FolderTest):
    """The order is that of the program."""

    def test_a_folder_is_sorted_by_the_bytes_of_paths(self):
        self.make("in/b.txt", "in/a/z.csv", "in/a.txt", "in/B.jsonl", "in/a-c.tsv", "in/é.parquet", "in/c.txt.gz")
        expected = ["in/B.jsonl", "in/a-c.tsv", "in/a.txt", "in/a/z.csv", "in/b.txt", "in/c.txt.gz", "in/é.parquet"]
        self.assertEqual(self.find("in"), expected)
        self.assertEqual(self.find("in/"), expected)

    def test_a_folder_leaves_out_what_is_no_data(self):
        self.make("in/a.txt", "in/.b.txt", "in/_c.txt", "in/_d/e.txt", "in/.f/g.txt", "in/h.json", "in/i", "in/j.gz")
        (self.folder / "in/link").symlink_to(self.folder / "in", target_is_directory=True)
        (self.folder / "in/linked.txt").symlink_to(self.folder / "in/h.json")
        (self.folder / "in/folder.csv").mkdir()
        self.assertEqual(self.find("in"), ["in/a.txt", "in/linked.txt"])
        self.assertEqual(self.find("in/_c.txt", "in/h.json"), ["in/_c.txt", "in/h.json"], "what is named is taken")

    def test_arguments_keep_their_order_and_patterns_are_sorted(self):
        self.make("b/2.csv", "b/1.csv", "b/x.txt", "a/3.csv", "c/.4.csv", "d[1].csv")
        self.assertEqual(self.find("b/*.csv", "a/3.csv"), ["b/1.csv", "b/2.csv", "a/3.csv"])
        self.assertEqual(self.find("**/*.csv"), ["a/3.csv", "b/1.csv", "b/2.csv", "d[1].csv"])
        self.assertEqual(self.find("[ab]"), ["a/3.csv", "b/1.csv", "b/2.csv", "b/x.txt"], "folders that match")
        self.assertEqual(self.find("d[1].csv"), ["d[1].csv"], "a file with that name comes first")
        self.assertEqual(self.find("b/1.csv", "b"), ["b/1.csv", "b/1.csv", "b/2.csv", "b/x.txt"])
        self.assertEqual(self.find("b", format_in="txt"), ["b/x.txt"])

    def test_what_is_not_there_is_named(self):
        self.make("in/a.json")
        for argument in ("nowhere", "*.parquet", "in"):
            with self.assertRaisesRegex(PriorInputError, argument.replace("*", r"\*")):
                self.find(argument)

    def test_an_output_among_the_inputs_is_found(self):
        self.make("in/a.txt")
        for output, expected in [("in", "in"), ("in/out", "in"), ("in/_out", None), ("out", None), ("in/.x/y", None)]:
            self.assertEqual(holds(["in/a.txt", "in"], output), expected, output)


class PlanTest(unittest.TestCase):
    """Shards."""

    def plan(self, sizes, per_shard, samples=1):
        """Of files with so many prompts."""
        return Plan({}, per_shard, [InputFile(f"{size}", 0, 0, size, size * samples) for size in sizes])

    def test_every_prompt_is_in_one_shard_in_order(self):
        random.seed(0)
        for _ in range(200):
            sizes = [random.choice([0, 0, 1, 2, 7, 30]) for _ in range(random.randint(1, 8))] + [1]
            plan = self.plan(sizes, random.randint(1, 20), samples=3)
            numbers = []
            for shard in map(plan.shard, range(plan.shards)):
                for file, start, stop, first_row in shard.segments:
                    self.assertLess(start, stop)
                    self.assertLessEqual(stop, file.prompts)
                    numbers += [first_row // 3 + place for place in range(start, stop)]
                is_last = shard.number == plan.shards - 1
                self.assertTrue(shard.prompts == plan.prompts_per_shard or is_last and shard.prompts > 0)
            self.assertEqual(numbers, list(range(sum(sizes))))

    def test_names_sort_like_rows(self):
        plan = self.plan([250_000], 1)
        names = [plan.name(shard) for shard in (0, 9, 10, 99_999, 100_000)]
        self.assertEqual(names, sorted(names))
        self.assertEqual(names[0], "part-000000-of-250000.parquet")
        self.assertEqual(self.plan([7], 2).name(3), "part-00003-of-00004.parquet")

    def test_small_inputs_keep_all_actors_busy(self):
        self.assertEqual([prompts_per_shard(*of) for of in [(1, 8), (100, 2), (20_000, 1), (10**9, 100)]],
                         [1, 13, 5_000, 10_000])  # fmt: skip


class ResumeTest(FolderTest):
    """The record of a run."""

    def setUp(self):
        super().setUp()
        self.make("a.txt", "b.txt")
        self.paths = find_files(["a.txt", "b.txt"])
        files = []
        for path in self.paths:
            status = os.stat(path)
            files.append(InputFile(path, status.st_size, status.st_mtime_ns, 1, 1))
        self.settings = {"--steps": "5", "--model": "m"}
        Plan(self.settings, 100, files).write(str(self.folder))
        self.plan = Plan.read(str(self.folder))

    def test_the_same_run_is_resumed(self):
        self.assertEqual(self.plan.files[1].path, self.paths[1])
        for per_shard in (None, 100):
            self.assertIsNone(self.plan.difference(dict(self.settings), self.paths, per_shard))
        self.assertEqual([path.name for path in self.folder.iterdir() if path.suffix == ".tmp"], [])

    def test_another_run_is_told_apart(self):
        def difference(settings=self.settings, paths=self.paths, per_shard=None):
            return self.plan.difference(settings, paths, per_shard)

        self.assertEqual(difference({**self.settings, "--steps": "6"}), "--steps was 5, is 6")
        self.assertEqual(difference({"--steps": "5"}), "--model was m, is not set")
        self.assertEqual(difference({**self.settings, "--seed": "1"}), "--seed was not set, is 1")
        self.assertRegex(difference(per_shard=7), "100 .* 7")
        self.assertRegex(difference(paths=[*self.paths, "/c.txt"]), "'/c.txt' is new")
        self.assertRegex(difference(paths=self.paths[::-1]), "order")
        Path(self.paths[1]).write_text("more than before\n", encoding="utf-8")
        self.assertRegex(difference(), "b.txt' was written to")

    def test_a_damaged_record_is_refused(self):
        for text in ("", "{}", '{"version": 0}', '{"version": 1, "files": [{"x": 1}]}', "[]", "\xff"):
            (self.folder / MANIFEST).write_text(text, encoding="latin-1")
            with self.assertRaisesRegex(PriorInputError, MANIFEST):
                Plan.read(str(self.folder))
        self.assertIsNone(Plan.read(str(self.folder / "nowhere")))


class PublishTest(FolderTest):
    """A file appears whole or not at all."""

    def test_what_fails_leaves_nothing(self):
        def fail(path):
            Path(path).write_text("half", encoding="utf-8")
            raise OSError("disk full")

        (self.folder / "out").write_text("before", encoding="utf-8")
        with self.assertRaisesRegex(OSError, "disk full"):
            publish(str(self.folder / "out"), fail)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["out"])
        publish("out", lambda path: Path(path).write_text("after", encoding="utf-8"))
        self.assertEqual((self.folder / "out").read_text(encoding="utf-8"), "after")


class ReadTest(FolderTest):
    """What the program reads."""

    def file(self, text, prompts):
        path = self.folder / "p.jsonl"
        path.write_text(text, encoding="utf-8")
        status = path.stat()
        return InputFile(str(path), status.st_size, status.st_mtime_ns, prompts, prompts)

    def test_a_range_of_prompts(self):
        file = self.file('{"prompt": "a", "samples": 2}\n{"prompt": "b", "id": 7}\n{"prompt": "c"}\n', 3)
        found = list(read(file, 1, 3, [], "."))
        self.assertEqual([(row["row"], row["prompt"]) for row in found], [(2, "b"), (3, "c")])
        self.assertEqual(found[0]["id"], "7")

    def test_a_file_that_was_written_to_is_refused(self):
        file = self.file('{"prompt": "a"}\n', 1)
        with self.assertRaisesRegex(PriorInputError, "written to"):
            list(read(file._replace(modified_ns=0), 0, 1, [], "."))
        with self.assertRaisesRegex(PriorInputError, "written to"):
            list(read(file, 0, 2, [], "."))
        with self.assertRaisesRegex(PriorInputError, "No such file"):
            list(read(file._replace(path="/no/such.txt"), 0, 1, [], "."))

    def test_a_row_that_cannot_be_used(self):
        file = self.file('{"prompt": "a"}\n{"prompt": 5}\n', 2)
        with self.assertRaisesRegex(PriorInputError, r"p\.jsonl:2: .*must be text"):
            list(read(file, 0, 2, [], "."))
        found = list(read(file, 0, 2, ["--on-error=skip"], "."))
        self.assertRegex(found[1]["reason"], "must be text")


class EmbedderTest(unittest.TestCase):
    """PriorEmbedder outside of Ray, with batches of numpy."""

    def setUp(self):
        self.embedder = PriorEmbedder(MODEL, prompt_column="text", threads=1, steps=3)
        self.addCleanup(self.embedder._stream.close)

    def test_columns_of_the_batch_count(self):
        batch = {
            "text": numpy.array(["a", "a", "a", "a"], dtype=object),
            "seed": numpy.array([5.0, 5.0, numpy.nan, numpy.nan]),
            "negative_prompt": numpy.array([None, "rain", None, None], dtype=object),
        }
        out = self.embedder(batch)
        self.assertEqual(set(out), {*batch, "embedding"})
        embeddings = out["embedding"]
        self.assertEqual((embeddings.dtype, embeddings.shape), ("float32", (4, self.embedder.embedding_dim)))
        with tempfile.TemporaryDirectory() as folder:
            options = ["--model", MODEL, "--steps", 3, "--prompt", "a"]
            seeded = embed(Path(folder), *options, "--seed", 5)["image_embeds"][0]
            by_prompt = embed(Path(folder), *options, "--seed-by", "prompt")["image_embeds"][0]
        numpy.testing.assert_array_equal(embeddings[0], seeded)
        self.assertFalse((embeddings[1] == seeded).all())
        numpy.testing.assert_array_equal(embeddings[2:], [by_prompt, by_prompt])

    def test_no_rows_are_no_embeddings(self):
        out = self.embedder({"text": numpy.array([], dtype=object)})
        self.assertEqual(out["embedding"].shape, (0, self.embedder.embedding_dim))

    def test_what_cannot_be_embedded_is_named(self):
        with self.assertRaisesRegex(PriorInputError, "no column 'text', only 'prompt'"):
            self.embedder({"prompt": numpy.array(["a"], dtype=object)})
        with self.assertRaisesRegex(PriorInputError, "'text' holds texts, and in one row 5"):
            self.embedder({"text": numpy.array(["a", 5], dtype=object)})
        with self.assertRaisesRegex(PriorInputError, "the row of 'a': \"steps\" is 5000"):
            self.embedder({"text": numpy.array(["a"], dtype=object), "steps": numpy.array([5000])})
        with self.assertRaisesRegex(PriorInputError, "column 'row'"):
            PriorEmbedder(MODEL, seed=1, threads=1)({"prompt": numpy.array(["a"], dtype=object)})
        with self.assertRaisesRegex(PriorInputError, "batch_format"):
            self.embedder([1, 2])


class CommandTest(FolderTest):
    """What is refused before Ray starts, in one line."""

    def refuse(self, *arguments):
        """The line."""
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertEqual(main(list(arguments)), 2)
        line = said.getvalue()
        self.assertEqual(line.count("\n"), 1, line)
        self.assertTrue(line.startswith("prior-embed: error: "), line)
        return line

    def test_bad_arguments(self):
        self.make("a.txt", "taken/b.txt", "in/c.txt")
        for arguments, words in [
            (["nowhere.txt", "out"], "nowhere.txt"),
            (["a.txt", "a.txt"], "'a.txt' is a file"),
            (["a.txt", "taken"], "taken"),
            (["a.txt", "taken", "--resume"], "no output of an earlier run"),
            (["a.txt", "taken", "--overwrite"], "no output of an earlier run"),
            (["in", "in/out"], "elsewhere"),
            (["a.txt", "out", "--model", "/no/model"], "/no/model"),
            (["a.txt", "out", "--seed", "-1"], "--seed -1"),
            (["a.txt", "out", "--seed", "1", "--seed-by", "prompt"], "--seed-by"),
        ]:
            self.assertIn(words, self.refuse(*arguments), arguments)
        self.assertFalse((self.folder / "out").exists())
        self.assertEqual(os.listdir("taken"), ["b.txt"])


if __name__ == "__main__":
    unittest.main()
