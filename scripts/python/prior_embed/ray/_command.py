"""`python -m prior_embed.ray INPUT… OUTPUT`: files of prompts to Parquet shards of embeddings, on a laptop or a cluster.

Ray Data spreads the work: tasks count the files' rows, and a pool of actors makes the shards. It restarts an actor whose
process or node is lost, and has its shard made again. That this changes no row and makes none twice is up to the plan:
which rows a shard holds, how they are numbered, and its name follow from the input, and its file appears whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import logging
import os
import signal
import socket
from contextlib import contextmanager, suppress
from typing import Any, Iterable, Iterator

from .._errors import PriorError, PriorInputError
from .._noise import MAX_SEED
from .._process import run
from .._stream import program_arguments
from ._inputs import InputFile, count, find_files, holds
from ._plan import MANIFEST, Plan, prompts_per_shard
from ._progress import Monitor, Progress, say
from ._worker import Job, Worker, raise_told, told

SUCCESS = "_SUCCESS"  # an empty file that other programs take for the sign of a complete data set
BLOCKS = 10_000  # of shards, each of which is a task; more would burden Ray
READING = {
    "format-in": "NAME", "prompt-column": "NAME", "no-header": None, "on-error": "WHAT", "samples-per-prompt": "K",
}  # fmt: skip
"""Options of the program that `prior-embed rows` takes too; None if they have no value."""
MODEL = {
    "model": "NAME", "revision": "NAME", "prior": "M", "text-encoder": "M", "tokenizer": "M", "cache-dir": "FOLDER",
    "offline": None,
}  # fmt: skip
"""Those that `prior-embed info` takes too."""
COMPUTING = {
    "lora": "PATH[:SCALE]", "textual-inversion": "PATH[:TOKEN]", "negative-prompt": "TEXT", "steps": "N",
    "guidance-scale": "G", "temperature": "T", "seed": "S", "seed-by": "WHAT", "best-of": "N", "scheduler": "NAME",
    "eta": "ETA", "solver-order": "N", "sde": None, "normalize": None, "out-dtype": "NAME", "dtype": "NAME",
    "device": "NAME", "batch-size": "N",
}  # fmt: skip
REPEATED = ("lora", "textual-inversion")
SHORT = {"model": "-m", "negative-prompt": "-n"}
WITHOUT_EFFECT = ("cache_dir", "offline", "device", "batch_size")
"""Those that decide no row."""
OTHERWISE = "give another output, or --overwrite"


def main(arguments: list[str]) -> int:
    """The exit code: as the program's, 2 for bad input, 1 for a failure, 130 and 143 by signal."""
    options = parser().parse_args(arguments)
    progress = Progress(options.quiet)
    try:
        with stopped_by_signals():
            embed(options, progress)
    except PriorError as error:
        say(f"error: {error}")
        return 2 if isinstance(error, PriorInputError) else 1
    except OSError as error:
        say(f"error: {error.strerror or error}" + (f": {error.filename!r}" if error.filename else ""))
        return 1
    except Stopped as stop:
        say("stopped; run the same command with --resume to continue from the shards that are done")
        return 128 + stop.number
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line. The program checks what is the program's."""
    parser = argparse.ArgumentParser(
        prog="python -m prior_embed.ray", allow_abbrev=False,
        description="Embed files of prompts into Parquet shards with Ray, on a laptop or a cluster. The rows are those "
        "of prior-embed --prompts.",
    )  # fmt: skip
    parser.add_argument("inputs", nargs="+", metavar="INPUT",
                        help="files, quoted globs and folders of .txt, .jsonl, .csv, .tsv and .parquet, which every node "
                        "sees; rows are numbered through in the order of these, within a glob or folder by path")  # fmt: skip
    parser.add_argument("output", metavar="OUTPUT", help="folder of the shards, which every node sees")
    group = parser.add_argument_group("the run")
    group.add_argument("--address", help="of a cluster: auto or HOST:PORT [default: RAY_ADDRESS, else a cluster of this "
                       "machine alone, for this run]")  # fmt: skip
    group.add_argument("--cores", type=positive, metavar="N", help="CPUs of an actor, which is a process with the model "
                       "[default: those of the smallest node]")  # fmt: skip
    group.add_argument("--actors", type=positive, metavar="N", help="how many [default: as many as there are CPUs for]")
    group.add_argument("--rows-per-file", type=positive, metavar="N",
                       help="rows of a shard, which are what a lost actor loses; the samples of a prompt stay together "
                       "[default: 10000, or fewer to keep all actors busy]")  # fmt: skip
    group.add_argument("--resume", action="store_true", help="make the shards that are missing")
    group.add_argument("--overwrite", action="store_true", help="replace the shards of an earlier run")
    group.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    group = parser.add_argument_group("options of prior-embed, which prior-embed --help explains")
    for name, value in {**READING, **MODEL, **COMPUTING}.items():
        flags = [*([SHORT[name]] if name in SHORT else []), f"--{name}"]
        if value is None:
            group.add_argument(*flags, action="store_true", default=None)
        else:
            group.add_argument(*flags, metavar=value, action="append" if name in REPEATED else "store",
                               type=positive if value == "K" or name == "best-of" else str)  # fmt: skip
    return parser


def positive(text: str) -> int:
    """A type for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("it must be a whole number, 1 or more")
    return int(text)


class Stopped(BaseException):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raises Stopped for Ctrl-C and SIGTERM."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def embed(options: argparse.Namespace, progress: Progress) -> None:
    """Makes the shards. Raises PriorError."""
    paths = find_files(options.inputs, options.format_in)
    output, folder = os.path.abspath(options.output), os.getcwd()
    parent = holds(options.inputs, output)
    if parent is not None:
        raise PriorInputError(
            f"{options.output!r} would lie in the folder of prompts {parent!r}, and be read by the next run; write it "
            "elsewhere"
        )
    samples, draws = options.samples_per_prompt or 1, options.best_of or 1
    seed = first_seed(options)
    plan = plan_of_earlier_run(options, output)
    model = json.loads(run(["info", "--json", *program_arguments(chosen(options, MODEL))], folder))
    if model["prior"].get("latents") is not None:
        raise PriorInputError("the model makes latents and no embeddings, which takes the program itself")
    settings = settings_of(options, model)
    per_shard = options.rows_per_file and max(1, options.rows_per_file // samples)
    if plan is not None:
        difference = plan.difference(settings, paths, per_shard)
        if difference:
            raise PriorInputError(f"{options.output!r} cannot be resumed: {difference}; {OTHERWISE}")
        if not missing(plan, output):
            finish(plan, output, progress)
            return
    job = Job(
        output=output,
        folder=folder,
        rows_arguments=program_arguments(chosen(options, READING)),
        arguments=program_arguments({**chosen(options, {**MODEL, **COMPUTING}), "seed": None}),
        threads=0,
        seed=seed,
        samples=samples,
        draws=draws,
        skips=options.on_error == "skip",
        dim=model["prior"]["embedding_dim"],
        dtype=options.out_dtype or "f32",
    )
    with cluster(options.address):
        cores, actors = pool(options.cores, options.actors)
        if plan is None:
            files = counted(paths, job)
            prompts = sum(file.prompts for file in files)
            if prompts == 0:
                raise PriorInputError("the files hold no prompts")
            plan = Plan(settings, per_shard or prompts_per_shard(prompts, actors), files)
            if seed is not None and seed + plan.rows * draws - 1 > MAX_SEED:
                raise PriorInputError(f"--seed {seed} leaves too few seeds below 2^64 for {plan.rows} rows")
            begin(plan, output)
        try:
            make_shards(plan, dataclasses.replace(job, threads=cores), actors, progress)
        except BaseException:
            forget(plan, output)
            raise
    finish(plan, output, progress)


def chosen(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Options of the program, by their names with underscores."""
    return {name: getattr(options, name) for name in (name.replace("-", "_") for name in names)}


def first_seed(options: argparse.Namespace) -> int | None:
    """The seed of row 0, unless seeds are made of the prompts."""
    if options.seed_by is not None:
        if options.seed is not None:
            raise PriorInputError("--seed and --seed-by exclude each other; give one of them")
        return None
    text = options.seed or "0"
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise PriorInputError(f"--seed {text}: it must be a whole number between 0 and {MAX_SEED}")
    return int(text)


def settings_of(options: argparse.Namespace, model: dict[str, Any]) -> dict[str, str]:
    """What decides the rows, under the names that the user knows it by."""
    names = [name for name in {**READING, **MODEL, **COMPUTING} if name not in WITHOUT_EFFECT]
    given = {f"--{name}": getattr(options, name.replace("-", "_")) for name in names}
    settings = {name: str(value) for name, value in given.items() if value is not None}
    if model["commit"] is not None:
        settings["the model's commit"] = model["commit"]
    return {"the program's version": run(["--version"], os.getcwd()).decode().split()[-1], **settings}


def plan_of_earlier_run(options: argparse.Namespace, output: str) -> Plan | None:
    """That of the run which --resume continues, if there is one. Raises PriorInputError if the output is taken."""
    if not os.path.isdir(output):
        if os.path.lexists(output):
            raise PriorInputError(f"{options.output!r} is a file; give a folder for the shards")
        return None
    if not os.listdir(output):
        return None
    if options.resume and options.overwrite:
        raise PriorInputError("--resume and --overwrite exclude each other; give one of them")
    if not options.resume and not options.overwrite:
        raise PriorInputError(f"{options.output!r} is there already; --resume continues it, --overwrite replaces it")
    if not os.path.exists(os.path.join(output, MANIFEST)):
        raise PriorInputError(f"{options.output!r} holds files and is no output of an earlier run; give another output")
    return Plan.read(output) if options.resume else None


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """A connection to Ray. Raises PriorError if there is none."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PriorError(f"Ray Data is missing ({error}); install it: pip install 'ray[data]'") from None
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal() and "://" not in host:
        # Ray itself would try for minutes.
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise PriorError(f"there is no cluster at {address!r} ({error})") from None
    # What Ray says of its own doings is in its logs.
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError) as error:
        raise PriorError(f"there is no cluster at {address!r} ({first_line(error)})") from None
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        yield
    except ray.exceptions.RayError as error:
        raise PriorError(f"Ray failed: {first_line(error)}") from error
    finally:
        ray.shutdown()


def first_line(error: BaseException) -> str:
    """What the innermost cause of an exception says: Ray's own begins with a stack trace."""
    while cause := getattr(error, "cause", None) or error.__cause__:
        error = cause
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def pool(cores: int | None, actors: int | None) -> tuple[int, int]:
    """CPUs of an actor, and the number of actors. Raises PriorError if there is no room for one."""
    import ray

    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    nodes = [cpus for cpus in nodes if cpus > 0]
    cores = cores or min(nodes, default=1)
    room = sum(cpus // cores for cpus in nodes)
    if room == 0:
        raise PriorError(f"no node has the {cores} CPUs of an actor; give fewer --cores")
    return cores, actors or room


def counted(paths: list[str], job: Job) -> list[InputFile]:
    """The files and their rows. Raises PriorError of the first that cannot be read, in their order."""
    import ray

    items = [{"place": place, "path": path} for place, path in enumerate(paths)]
    data = ray.data.from_items(items, override_num_blocks=min(len(items), BLOCKS))
    found = sorted(data.map(Count(job), num_cpus=1).take_all(), key=lambda row: row["place"])
    for row in found:
        raise_told(row)
    return [InputFile(row["path"], row["bytes"], row["modified_ns"], row["prompts"], row["rows"]) for row in found]


class Count:
    """A function of Ray's tasks: reads a file to its end."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        try:
            return {**item, **count(item["path"], self._job.rows_arguments, self._job.folder)._asdict(), **told(None)}
        except PriorError as error:
            return {**item, "bytes": 0, "modified_ns": 0, "prompts": 0, "rows": 0, **told(error)}


def make_shards(plan: Plan, job: Job, actors: int, progress: Progress) -> None:
    """Makes the missing shards. Raises PriorError."""
    import ray

    todo = missing(plan, job.output)
    before = plan.prompts - sum(plan.shard(shard).prompts for shard in todo)
    monitor = ray.remote(num_cpus=0)(Monitor).remote()
    data = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=min(len(todo), BLOCKS))
    results = data.map(
        Worker,
        fn_constructor_kwargs={"plan": plan, "job": job, "monitor": monitor},
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(todo)), max_tasks_in_flight_per_actor=2),
        num_cpus=job.threads,
    )
    progress.start(plan.prompts, before, monitor)
    try:
        for result in results.iter_rows():
            raise_told(result)
    finally:
        progress.stop()


def missing(plan: Plan, output: str) -> list[int]:
    """The shards that are not there."""
    try:
        there = set(os.listdir(output))
    except FileNotFoundError:
        there = set()
    return [shard for shard in range(plan.shards) if plan.name(shard) not in there]


def begin(plan: Plan, output: str) -> None:
    """Makes the folder, without what an earlier run left."""
    os.makedirs(output, exist_ok=True)
    for name in (SUCCESS, MANIFEST):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(output, name))
    for path in glob.glob(os.path.join(glob.escape(output), "part-*-of-*.parquet")):
        os.unlink(path)
    plan.write(output)


def forget(plan: Plan, output: str) -> None:
    """After a failure: keeps what can be resumed, and leaves nothing if there is no such thing."""
    if len(missing(plan, output)) == plan.shards:
        remove_temporary(output)
        with suppress(OSError):
            os.unlink(os.path.join(output, MANIFEST))
            os.rmdir(output)


def finish(plan: Plan, output: str, progress: Progress) -> None:
    """When all shards are there."""
    remove_temporary(output)
    with open(os.path.join(output, SUCCESS), "wb"):
        pass
    progress.note(f"{plan.rows:,} rows in {plan.shards:,} files{progress.took()}")


def remove_temporary(output: str) -> None:
    """What lost actors were writing."""
    for path in glob.glob(os.path.join(glob.escape(output), ".*.tmp")):
        with suppress(FileNotFoundError):
            os.unlink(path)
