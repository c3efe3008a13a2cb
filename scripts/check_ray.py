#!/usr/bin/env python3
"""Embeds with Ray Data and compares with the program alone, row by row: python3 scripts/check_ray.py

On two nodes of one CPU each, which are processes on this machine: every kind of input, bad input, --resume, processes,
actors and nodes that are killed, and PriorEmbedder in a pipeline. --long kills with 20,000 prompts under way, and
--throughput times Ray on all cores of this machine and one process on them in turn; close other programs first. The
program is that in target/release; Ray comes from PyPI into an environment in the cache.
"""

import argparse
import contextlib
import gzip
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
from tools import environments  # noqa: E402
from tools.benchmark.captions import LIMIT, captions  # noqa: E402
from tools.built import BINARY, SCRIPTS  # noqa: E402
from tools.command_line import number  # noqa: E402
from tools.problem import Problem  # noqa: E402

PATIENCE = 900  # seconds that anything may take on a busy machine
ROWS = 400
LONG_ROWS = 20_000
SLOW = ("--steps", "200")  # for something to be under way when it is killed


def prompts(count):
    """So many different prompts."""
    some = captions(min(count, LIMIT))
    return [f"{some[place % len(some)]}, no. {place}" for place in range(count)]


def wait_for(condition, what):
    """Until it is true."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise Problem(f"{what} in {PATIENCE} s")
        time.sleep(0.05)
    return found


class Place:
    """A folder to work in, and two nodes."""

    def __init__(self, folder, binary):
        self.folder, self.binary = folder, binary
        self.cluster, self.second = None, None

    @contextlib.contextmanager
    def nodes(self):
        """Starts them, and ends them."""
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 100 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        self.second = self.cluster.add_node(**node)
        try:
            yield
        finally:
            self.cluster.shutdown()

    def start(self, *arguments, address=True):
        """The command, started."""
        command = [sys.executable, "-m", "prior_embed.ray", *map(str, arguments)]
        if address:
            command += ["--address", self.cluster.address]
        return subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, encoding="utf-8")

    def run(self, *arguments, code=0, **options):
        """What the command says. It is a line or two, of which the last is told by the code."""
        process = self.start(*arguments, **options)
        _, said = process.communicate(timeout=PATIENCE)
        return self.judge(process, said, code, arguments)

    def judge(self, process, said, code, arguments):
        """Its last line, if it ended as it should."""
        lines = [line for line in said.splitlines() if line.startswith("prior-embed: ")]
        if process.returncode != code or not lines or lines[-1].startswith("prior-embed: error: ") != (code in (1, 2)):
            raise Problem(f"{' '.join(map(str, arguments))} ended with {process.returncode}: {said.strip()[-2000:]}")
        return lines[-1]

    def program(self, *arguments):
        """Runs the program itself, and gives what it prints."""
        command = [self.binary, *map(str, arguments)]
        return subprocess.run(command, check=True, cwd=self.folder, stdout=subprocess.PIPE).stdout

    def expected(self, *arguments):
        """The rows that the program itself writes."""
        out = self.folder / "single.parquet"
        self.program(*arguments, "--out", out, "--overwrite", "--quiet")
        return rows_of([out], "image_embeds")

    def found(self, output):
        """The rows of shards."""
        return rows_of(self.shards(output), "embedding")

    def shards(self, output):
        """Their files."""
        return sorted((self.folder / output).glob("*.parquet"))

    def compare(self, output, expected, **tolerance):
        """Raises if the shards do not hold these rows, or something else lies beside them."""
        import numpy

        found = self.found(output)
        for name in ("row", "id", "prompt", "seed"):
            if found[name] != expected[name]:
                raise Problem(f"{output}: other values of {name!r} than the program's")
        same = numpy.allclose if tolerance else numpy.array_equal
        if not same(found["numbers"], expected["numbers"], **tolerance):
            most = abs(found["numbers"] - expected["numbers"]).max()
            raise Problem(f"{output}: the embeddings differ by up to {most}")
        names = {path.name for path in (self.folder / output).iterdir()} - {"_SUCCESS", "_manifest.json"}
        if names != {path.name for path in self.shards(output)}:
            raise Problem(f"{output} holds {sorted(names)}")

    def processes(self):
        """The program's processes that embed, with their parents, which are actors."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and (entry / "exe").samefile(self.binary):
                    arguments = (entry / "cmdline").read_bytes().split(b"\0")
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if b"--prompts=-" in arguments and is_below(parent, os.getpid()):
                        found.append((int(entry.name), parent))
        return sorted(found)


def is_below(pid, ancestor):
    """Whether a process is a descendant of another."""
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def rows_of(files, name):
    """Columns of Parquet files, one after the other, with the embeddings as one array."""
    import numpy
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.concat_tables(parquet.read_table(file) for file in files)
    column = table.column(name).combine_chunks()
    numbers = numpy.asarray(column.flatten()).reshape(len(column), column.type.list_size)
    columns = {name: table.column(name).to_pylist() for name in table.column_names if name != column}
    return {**columns, "numbers": numbers, "type": column.type}


def write_inputs(folder):
    """Files of every kind; their paths in the order of a run over the folder and `more.*`."""
    import pyarrow
    from pyarrow import parquet

    texts = prompts(60)
    (folder / "in" / "sub").mkdir(parents=True)
    (folder / "in" / "b.txt").write_text("\n\n".join(texts[:9]) + "\n", encoding="utf-8")
    own = [{}, {"seed": 7}, {"samples": 3}, {"negative_prompt": "rain"}, {"steps": 3}, {"guidance_scale": 1}, {"id": 5}]
    lines = [
        json.dumps({"prompt": text, "id": f"j{place}", **own[place % 7]}) for place, text in enumerate(texts[9:30])
    ]
    (folder / "in" / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with gzip.open(folder / "in" / "sub" / "c.csv.gz", "wt", encoding="utf-16") as file:
        file.write('id;caption\r\n1;"two\nlines; ""quoted"""\r\n2;\r\n3;' + texts[30] + "\r\n")
    (folder / "in" / "sub" / "d.tsv").write_text(f'prompt\tseed\n"big" cat\t3\n{texts[31]}\t\n', encoding="utf-8")
    seeds = pyarrow.array([None, 2**63] * 14, pyarrow.uint64())
    table = pyarrow.table({"text": texts[32:], "id": range(100, 128), "seed": seeds})
    parquet.write_table(table, folder / "in" / "sub" / "e.parquet", row_group_size=5)
    (folder / "more.2.txt").write_text("é\n", encoding="utf-8")
    (folder / "more.1.txt").write_text("one more\n", encoding="utf-8")
    for name in ("in/_left.txt", "in/.out.txt", "in/notes.md"):
        (folder / name).write_text("no prompt\n", encoding="utf-8")
    inside = ("a.jsonl", "b.txt", "sub/c.csv.gz", "sub/d.tsv", "sub/e.parquet")
    return [*(f"in/{name}" for name in inside), "more.1.txt", "more.2.txt"]


def check_inputs(place):
    """Every format in one run, with options that change rows."""
    files = write_inputs(place.folder)
    for options in ([], ["--samples-per-prompt", "2", "--best-of", "2", "--seed", "11", "--normalize"],
                    ["--seed-by", "prompt", "--negative-prompt", "fog", "--steps", "5"]):  # fmt: skip
        (place.folder / "all.jsonl").write_bytes(b"".join(place.program("rows", file) for file in files))
        expected = place.expected("-f", "all.jsonl", *options)
        place.run("in", "more.?.txt", "kinds", "--rows-per-file", "40", "--overwrite", *options)
        place.compare("kinds", expected)
    if expected["id"].count(None) == 0 or len(place.shards("kinds")) < 2:
        raise Problem("the inputs are not what they should be")
    place.run("more.1.txt", "half", "--out-dtype", "f16")
    if str(place.found("half")["type"].value_type) != "halffloat":
        raise Problem("--out-dtype f16 has no effect")
    print("inputs: text, JSON Lines, CSV, TSV and Parquet have the rows of the command line, with every kind of option")


def check_bad_input(place):
    """One line each, and nothing is left."""
    (place.folder / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": 5}\n{"prompt": "b", "steps": 5000}\n')
    (place.folder / "many.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "steps": 5000}\n')
    (place.folder / "cut.parquet").write_bytes(b"PAR1 and no more")
    (place.folder / "many.txt").write_text("a\nb\n", encoding="utf-8")
    (place.folder / "empty.txt").write_text("\n")
    for arguments, words in [
        (["bad.jsonl"], "bad.jsonl:2: "),
        (["many.jsonl", "--rows-per-file", "2"], 'many.jsonl:2: "steps" is 5000'),
        (["cut.parquet"], "cut.parquet"),
        (["empty.txt"], "no prompts"),
        (["many.txt", "--steps", "many"], "--steps"),
        (["many.txt", "--prompt-column", "caption"], "--prompt-column"),
        (["many.txt", "--seed", str(2**64 - 1), "--samples-per-prompt", "2"], "2^64"),
    ]:
        line = place.run(*arguments, "bad", code=2)
        if words not in line or (place.folder / "bad").exists():
            raise Problem(f"{' '.join(arguments)}: {line}")
    line = place.run("many.txt", "bad", "--cores", "64", code=1)
    if "--cores" not in line or (place.folder / "bad").exists():
        raise Problem(line)
    place.run("bad.jsonl", "skipped", "--on-error", "skip", "--samples-per-prompt", "2")
    found, expected = place.found("skipped"), place.expected("-p", "a", "--samples-per-prompt", "2")
    is_zero = [not row.any() for row in found["numbers"]]
    errors = [error and re.sub(r".*/", "", error)[:12] for error in found["error"]]
    if is_zero != [False] * 2 + [True] * 4 or (found["numbers"][:2] != expected["numbers"]).any():
        raise Problem(f"--on-error skip: zeros {is_zero}")
    if errors != [None] * 2 + ["bad.jsonl:2:"] * 2 + ["bad.jsonl:3:"] * 2:
        raise Problem(f"--on-error skip: errors {errors}")
    print("bad input: one line each")


def check_resume(place):
    """A run that is interrupted, and goes on."""
    (place.folder / "p.txt").write_text("\n".join(prompts(ROWS)), encoding="utf-8")
    expected = place.expected("-f", "p.txt", *SLOW)
    arguments = ["p.txt", "resumed", "--rows-per-file", ROWS // 8, *SLOW]
    process = place.start(*arguments)
    wait_for(lambda: place.shards("resumed") or process.poll() is not None, "no shard was made")
    process.send_signal(signal.SIGINT)
    line = place.judge(process, process.communicate(timeout=PATIENCE)[1], 130, arguments)
    before = {path: path.stat().st_mtime_ns for path in place.shards("resumed")}
    if "--resume" not in line or not 0 < len(before) < 8 or (place.folder / "resumed" / "_SUCCESS").exists():
        raise Problem(f"after Ctrl-C there are {len(before)} shards: {line}")
    place.run(*arguments, code=2)
    if "--steps was 200, is 7" not in place.run(*arguments, "--resume", "--steps", "7", code=2):
        raise Problem("--resume takes other settings")
    (place.folder / "resumed" / ".part-00000-of-00008.parquet.0.tmp").write_bytes(b"what a lost actor left")
    place.run(*arguments, "--resume")
    place.compare("resumed", expected)
    if any(path.stat().st_mtime_ns != modified for path, modified in before.items()):
        raise Problem("--resume makes shards again that were there")
    start = time.monotonic()
    place.run(*arguments, "--resume")
    print(
        f"resume: passed; {len(before)} of 8 shards were kept, and with all it takes {time.monotonic() - start:.1f} s"
    )


def check_kills(place, rows, options):
    """A process, an actor and then a node that are killed change nothing."""
    (place.folder / "p.txt").write_text("\n".join(prompts(rows)), encoding="utf-8")
    expected = place.expected("-f", "p.txt", *options)
    arguments = ["p.txt", "killed", "--rows-per-file", rows // 10, *options]
    process = place.start(*arguments)

    def shards(count):
        wait_for(lambda: len(place.shards("killed")) >= count or process.poll() is not None, "too few shards were made")
        if process.poll() is not None:
            place.judge(process, process.communicate()[1], 0, arguments)
            raise Problem("the run ended before anything was killed")

    shards(1)
    wait_for(lambda: len(place.processes()) == 2, "no two actors")
    child, actor = place.processes()[0]
    os.kill(child, signal.SIGKILL)
    shards(2)
    alive = wait_for(lambda: [pair for pair in place.processes() if pair[0] != child], "no process came back")
    os.kill(alive[0][1], signal.SIGKILL)
    shards(4)
    place.cluster.remove_node(place.second, allow_graceful=False)
    _, said = process.communicate(timeout=PATIENCE)
    place.judge(process, said, 0, arguments)
    place.compare("killed", expected)
    if sorted(expected["row"]) != list(range(rows)) or len(place.shards("killed")) != 10:
        raise Problem("there are other shards than ten")
    wait_for(lambda: not place.processes(), "processes are left")
    print(f"kills: a process, an actor and a node were killed, and the {rows:,} rows are those of one process")


def check_embedder(place):
    """PriorEmbedder in a pipeline, with batches of both kinds."""
    import numpy
    import ray

    from prior_embed.ray import PriorEmbedder

    texts = prompts(50)
    (place.folder / "p.txt").write_text("\n".join(texts), encoding="utf-8")
    of_rows = place.expected("-f", "p.txt", "--seed", "3", "--steps", "5")["numbers"]
    of_prompts = place.expected("-f", "p.txt", "--seed-by", "prompt", "--steps", "5")["numbers"]
    ray.init(place.cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        items = [{"row": row, "text": text} for row, text in enumerate(texts)]
        data = ray.data.from_items(items, override_num_blocks=5)
        for seed, batch_format, expected in ((3, "pyarrow", of_rows), (None, "numpy", of_prompts)):
            done = data.map_batches(
                PriorEmbedder,
                fn_constructor_kwargs={"prompt_column": "text", "seed": seed, "steps": 5},
                compute=ray.data.ActorPoolStrategy(size=2),
                num_cpus=1,
                batch_size=7,
                batch_format=batch_format,
            )
            rows = sorted(done.take_all(), key=lambda row: row["row"])
            if not numpy.array_equal(numpy.array([row["embedding"] for row in rows], "float32"), expected):
                raise Problem(f"PriorEmbedder has other numbers in batches of {batch_format}")
    finally:
        ray.shutdown()
    print("PriorEmbedder: the numbers are the program's, in batches of numpy and of pyarrow")


def check_throughput(place, rows, rounds):
    """Ray on this machine's cores and one process on them, in turn."""
    (place.folder / "p.txt").write_text("\n".join(prompts(rows)), encoding="utf-8")
    seconds = {"one process": [], "Ray": [], "Ray, without its start": []}
    for _ in range(rounds):
        start = time.monotonic()
        expected = place.expected("-f", "p.txt")
        seconds["one process"].append(time.monotonic() - start)
        start = time.monotonic()
        line = place.run("p.txt", "timed", "--overwrite", address=False)
        seconds["Ray"].append(time.monotonic() - start)
        seconds["Ray, without its start"].append(float(re.search(r" in ([\d.]+) s$", line)[1]))
        place.compare("timed", expected)
    best = statistics.median(seconds["one process"])
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"{name}: {rows / middle:.0f} rows/s, {best / middle:.2f} of one process; {middle:.1f} s", end="")
        print(f" ({', '.join(f'{one:.1f}' for one in taken)})")


# The last one is left with one node.
CHECKS = {
    "inputs": check_inputs,
    "bad-input": check_bad_input,
    "resume": check_resume,
    "embedder": check_embedder,
    "kills": lambda place: check_kills(place, ROWS, SLOW),
}


def check(options):
    """All that is asked for; runs inside the environment."""
    os.environ["PRIOR_EMBED_PROGRAM"] = str(options.binary)
    # Ray sends nothing, and its workers are no nicer than what they are compared with.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="check-ray-") as name:
        place = Place(Path(name).resolve(), options.binary)
        if options.throughput:
            check_throughput(place, options.throughput, options.rounds)
            return
        with place.nodes():
            if options.long:
                check_kills(place, options.long, [])
                return
            for name in options.only or CHECKS:
                CHECKS[name](place)
        if options.only:
            return
        (place.folder / "p.txt").write_text("a red apple\ntwo cats\n", encoding="utf-8")
        place.run("p.txt", "local", address=False)
        place.compare("local", place.expected("-f", "p.txt"))
        print("a cluster of this machine alone: passed")


def main():
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--long", nargs="?", type=number(1000), const=LONG_ROWS, metavar="ROWS")
    parser.add_argument("--throughput", nargs="?", type=number(100), const=LONG_ROWS, metavar="ROWS")
    parser.add_argument("--rounds", type=number(1), default=3, metavar="N", help="of --throughput")
    parser.add_argument("--only", nargs="+", choices=CHECKS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.binary = options.binary.resolve()
    try:
        if options.check:
            check(options)
            return 0
        python = environments.ray().ensure(lambda message: print(f"check_ray: {message}", file=sys.stderr))
    except (Problem, subprocess.SubprocessError, OSError) as problem:
        print(f"check_ray: {problem}", file=sys.stderr)
        return 1
    command = [python, __file__, "--check", *sys.argv[1:]]
    path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS / "python")])
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode


if __name__ == "__main__":
    sys.exit(main())
