"""Measures rows a second a core, and works out what millions of captions cost.

prior-embed and diffusers embed the same captions with the built-in model and random models of published shapes: on one core,
on two in one process, and in two processes of one core each, as tasks of an array job or actors would. What more cores and
captions take is worked out by the formula that is printed. Close other programs first. Ends with 1 if embeddings differ or a
run fails. For one-step priors, which have no class in diffusers, their arithmetic runs on diffusers' blocks.
"""

import argparse
import os
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..built import BINARY, ROOT
from ..command_line import number
from . import machine
from .captions import captions
from .children import exit_status, measure
from .report import figure, machine_line, quietness, table
from .rows import TOLERANCE
from .runs import Diffusers, PriorEmbed, read_stats, relative_error
from .shapes import ensure_model
from .speed import write_json

BUILTIN = "built-in"
# Ways to use two cores at most: processes, and cores of each.
WAYS = {"1 core": (1, 1), "2 cores, 1 process": (1, 2), "2 cores, 2 processes": (2, 1)}
ALONE, *BUSY = WAYS
READ_BLOCKS, BLOCK = 15_625, 64
READ_ROWS = READ_BLOCKS * BLOCK


@dataclass(frozen=True)
class Plan:
    """How a shape is measured. A one-step prior has no steps."""

    rows: int
    steps: int | None
    reference_rows: int
    # Of a large prior, diffusers runs a few steps, which all take the same time.
    reference_steps: int | None


PLANS = {
    BUILTIN: Plan(4096, 25, 64, 25),
    "eclipse-karlo": Plan(1024, None, 64, None),
    "karlo": Plan(128, 25, 8, 3),
    "kandinsky-2.2": Plan(128, 25, 8, 3),
    "tiny": Plan(256, 25, 8, 3),
}


@dataclass
class Measured:
    """A shape's figures."""

    shape: str
    dim: int
    load_seconds: float
    # Rows a second of all cores, by the way.
    ours: dict
    theirs: dict
    error: float
    runs: list = field(repr=False)

    def each(self, rates):
        """Rows a second a core with both cores busy, the better way of the two."""
        return max(rates[way] for way in BUSY) / 2

    def scaling(self, rates):
        """How much of twice one core's throughput two cores give."""
        return self.each(rates) / rates[ALONE]


def parse(program, arguments):
    """The command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=PLANS, default=[BUILTIN, "eclipse-karlo", "karlo"])
    parser.add_argument("--captions", nargs="+", type=number(1), default=[10**6, 10**9], help="default: 1 M and 1 B")
    parser.add_argument("--cores", nargs="+", type=number(1), default=[2, 64, 1024], help="default: 2, 64 and 1024")
    parser.add_argument("--price", type=float, help="of a core-hour, in any currency: costs beside core-hours")
    parser.add_argument("--quick", action="store_true", help="few captions: shows that it works, and says nothing")
    parser.add_argument("--binary", type=Path, default=BINARY, help="default: what cargo build --release made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything measured, for programs")
    options = parser.parse_args(arguments)
    if options.json and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: its folder is not there")
    if options.price is not None and not options.price > 0:
        parser.error("--price: it must be more than 0")
    if machine.usable_cores() < 2:
        parser.error("this takes two cores")
    return options


def side_by_side(run, processes, cores):
    """What `run(cores)` gives in so many processes at once, each on cores of its own."""
    usable = sorted(os.sched_getaffinity(0))

    def pinned(place):
        # The affinity of this thread, which the process that it starts inherits.
        os.sched_setaffinity(0, usable[place * cores : (place + 1) * cores])
        return run(cores)

    with ThreadPoolExecutor(processes) as pool:
        runs = list(pool.map(pinned, range(processes)))
    if processes > 1:
        # To each the other looks like somebody else's program.
        for one in runs:
            one.details["other_cores"] = None
    return runs


def our_rate(run):
    """Rows a second of a run of prior-embed after it has loaded the model, which all workers do side by side."""
    return run.prompts / (run.seconds["total"] - run.seconds["load"] / run.details["stats_workers"])


def their_rate(run, steps):
    """Rows a second of a run of diffusers, which may have had fewer steps."""
    prior = run.seconds["prior"] if steps is None else statistics.median(run.details["step_seconds"]) * steps
    return run.prompts / (run.seconds["text"] + prior)


def measure_shape(shape, options):
    """Both programs on one shape."""
    plan = PLANS[shape]
    folder = ROOT / "assets" / "emoji" if shape == BUILTIN else ensure_model(shape)
    if options.quick:
        plan = replace(plan, rows=BLOCK, reference_rows=2)
    prompts = captions(plan.rows)
    ours = lambda cores: PriorEmbed(options.binary, folder, cores)
    # Into the page cache.
    ours(2).run("f32", prompts[:1], plan.steps)
    runs, theirs = {}, {}
    for way, (processes, cores) in WAYS.items():
        print(f"bench: {shape}, {way}", file=sys.stderr)
        runs[way] = side_by_side(lambda cores: ours(cores).run("f32", prompts, plan.steps), processes, cores)
        few, steps = prompts[: plan.reference_rows], plan.reference_steps
        theirs[way] = side_by_side(lambda cores: Diffusers(folder, cores).run("f32", few, steps), processes, cores)
    same = runs[ALONE][0] if plan.reference_steps == plan.steps else ours(2).run("f32", few, plan.reference_steps)
    expected = theirs[ALONE][0].embeds
    return Measured(
        shape=shape,
        dim=expected.shape[1],
        load_seconds=runs[ALONE][0].seconds["load"],
        ours={way: sum(map(our_rate, found)) for way, found in runs.items()},
        theirs={way: sum(their_rate(run, plan.steps) for run in found) for way, found in theirs.items()},
        error=relative_error(same.embeds[: len(expected)], expected),
        runs=[run for found in (*runs.values(), *theirs.values()) for run in found],
    )


def measure_reading(binary):
    """Seconds that a run takes to count and hash a caption and to pass over it, when it belongs to another shard."""
    lines = captions(1000)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        text = "".join(f"{lines[row % len(lines)]}\n" for row in range(READ_ROWS))
        (work / "captions.txt").write_text(text, encoding="utf-8")
        # The last block alone, so that all before it is read.
        settings = ["--shard", f"{READ_BLOCKS}/{READ_BLOCKS}", "--batch-size", BLOCK, "--threads", 1, "--quiet"]
        files = ["--prompts", work / "captions.txt", "--out", work / "embeds.npy", "--stats", work / "stats.json"]
        command = [binary, *files, *settings]
        measure("prior-embed", command)
        seconds, _ = read_stats(work / "stats.json")
    return (seconds["total"] - seconds["load"] - seconds["text"] - seconds["prior"]) / READ_ROWS


def hours(found, read_seconds, count, cores):
    """Hours that so many cores take for so many captions."""
    work = count / (cores * found.each(found.ours))
    return (found.load_seconds + count * read_seconds + work) / 3600


def measured_table(results):
    """Rows a second."""
    rows = [
        [
            f"{found.shape}, {program}",
            *(figure(rates[way]) for way in WAYS),
            figure(found.scaling(rates)),
            figure(found.each(rates)),
        ]
        for found in results
        for program, rates in (("prior-embed", found.ours), (reference_name(found.shape), found.theirs))
    ]
    return table(["rows a second", *WAYS, "scaling", "a core, both busy"], rows)


def reference_name(shape):
    """What ran beside prior-embed; with a star if it was scaled."""
    plan = PLANS[shape]
    name = "diffusers' blocks" if plan.steps is None else "diffusers"
    return name if plan.reference_steps == plan.steps else f"{name} *"


def grouped(value):
    """Three digits, and commas in large numbers."""
    return f"{value:,.0f}" if value >= 1000 else figure(value)


def worked_out_table(results, read_seconds, options, price=None):
    """Core-hours, or what they cost, and hours."""
    rows, factor = [], price or 1
    for found in results:
        for count in options.captions:
            theirs = count / found.each(found.theirs) / 3600
            times = [(cores, hours(found, read_seconds, count, cores)) for cores in options.cores]
            ours = [f"{grouped(factor * cores * time)} ({grouped(time)} h)" for cores, time in times]
            output = f"{figure(4 * count * found.dim / 1e9)} GB"
            rows.append([f"{found.shape}, {count:,} captions", output, grouped(factor * theirs), *ours])
    unit = "core-hours" if price is None else f"cost, {price:g} a core-hour"
    return table([unit, "output", "diffusers", *(f"prior-embed, {cores} cores" for cores in options.cores)], rows)


def formula(results, read_seconds):
    """How the second table was worked out, and what that takes for granted."""
    loads = ", ".join(f"{figure(found.load_seconds)} s ({found.shape})" for found in results)
    return f"""prior-embed: hours = (L + N q + N / (C r)) / 3600, core-hours = C hours, for N captions on C cores, where r is rows a second
a core with both cores busy, in the better way; L = {loads} is the loading of the model, and
q = {read_seconds * 1e6:.2f} µs what each process takes to read a caption, its own or another shard's (measured: {READ_ROWS:,} lines
of text). diffusers: core-hours = N / r / 3600, nothing else.

Assumed beyond two cores: shards share nothing but the file of captions, so r stays what it is with two. With a large model, a
node whose cores share less memory bandwidth than these two is slower. All processes begin at once, no work is lost, and the
storage keeps up. Float32; 25 steps, but for one-step priors. * Scaled from 3 steps of 8 captions."""


def run(options):
    """Measures and reports; whether all embeddings agree."""
    about = machine.describe()
    print(machine_line(about, 2), flush=True)
    results = [measure_shape(shape, options) for shape in options.shapes]
    print("bench: reading", file=sys.stderr)
    read_seconds = measure_reading(options.binary)
    runs = [one for found in results for one in found.runs]
    print("\n" + measured_table(results) + "\n\n" + quietness(runs))
    print("\n" + worked_out_table(results, read_seconds, options))
    if options.price:
        print("\n" + worked_out_table(results, read_seconds, options, options.price))
    print("\n" + formula(results, read_seconds))
    for found in results:
        print(f"\n{found.shape}: the embeddings differ by {found.error:.1e} of the largest value", end="")
    print()
    if options.json:
        shapes = [{**vars(found), "runs": [one.summary() for one in found.runs]} for found in results]
        write_json(options.json, {"machine": about, "read_seconds": read_seconds, "shapes": shapes})
    return all(found.error <= TOLERANCE for found in results)


def main(program, arguments):
    """Exit status 0 if both programs ran and agree."""
    return exit_status(lambda: run(parse(program, arguments)))
