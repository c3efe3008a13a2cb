"""Runs of prior-embed and of diffusers on the same model and prompts, and how far their embeddings agree."""

import json
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .children import BenchError, child_environment, measure, module_command

PARTS = ("load", "text", "prior", "write", "total")
SEED, GUIDANCE_SCALE = 0, 4.0


class Unsupported(BenchError):
    """What this build of prior-embed cannot do, and so is not measured."""


@dataclass
class Run:
    """What one process, or the median of several equal ones, took and gave."""

    program: str
    dtype: str
    prompts: int
    steps: int
    wall_seconds: float
    peak_rss_bytes: int
    seconds: dict
    embeds: np.ndarray
    details: dict

    def seconds_of(self, part):
        """Seconds of a part, if the program said."""
        if part not in self.seconds:
            raise Unsupported(f"this {self.program} has no --stats")
        return self.seconds[part]

    def summary(self):
        """What goes into the JSON report."""
        names = ("program", "dtype", "prompts", "steps", "wall_seconds", "peak_rss_bytes", "seconds")
        return {name: getattr(self, name) for name in names} | self.details


def make_run(program, dtype, steps, measured, seconds, embeds, details):
    """The figures of one process."""
    details = details | {"other_cores": measured.other_cores}
    wall, peak = measured.wall_seconds, measured.peak_rss_bytes
    return Run(program, dtype, len(embeds), steps, wall, peak, seconds, embeds, details)


def load_embeds(path, rows, name):
    """A program's output, if it is what it has to be."""
    try:
        embeds = np.load(path)
    except (OSError, ValueError) as error:
        raise BenchError(f"{name} wrote no array: {error}") from error
    if embeds.dtype != np.float32 or embeds.ndim != 2 or len(embeds) != rows:
        raise BenchError(f"{name} wrote {embeds.dtype} {embeds.shape} instead of float32 of {rows} rows")
    if not np.isfinite(embeds).all():
        raise BenchError(f"{name} wrote embeddings that are not finite")
    return embeds


def read_stats(path):
    """The file that prior-embed's --stats leaves."""
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
        seconds = {part: float(stats["seconds"][part]) for part in PARTS}
        counts = stats | {"workers": stats["settings"]["workers"]}
        return seconds, {f"stats_{name}": int(counts[name]) for name in ("rows", "peak_rss_bytes", "workers")}
    except OSError as error:
        raise BenchError(f"prior-embed left no --stats file: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"prior-embed's --stats file is not as agreed: {type(error).__name__}: {error}") from error


class PriorEmbed:
    """The binary, with the model and the settings of all its runs."""

    def __init__(self, binary, model, threads, extra=(), name="prior-embed"):
        self.name = name
        self.binary, self.model, self.threads, self.extra = Path(binary), model, threads, list(extra)
        if not self.binary.is_file():
            raise BenchError(f"no program at {binary}; build it with cargo build --release, or give --binary")
        self.help = self.ask("--help")
        self.version = self.ask("--version").strip()

    def ask(self, option):
        """What the binary prints for an option."""
        try:
            done = subprocess.run(
                [self.binary, option], capture_output=True, text=True, check=True, env=child_environment()
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise BenchError(f"{self.binary} {option}: {error}") from error
        return done.stdout

    def run(self, dtype, prompts, steps):
        """One run; without a number of steps, that of a one-step prior."""
        if dtype not in self.help:
            raise Unsupported(f"this prior-embed has no --dtype {dtype}")
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            (work / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
            given = ["--prompt", prompts[0]] if len(prompts) == 1 else ["--prompts", work / "prompts.txt"]
            out, stats = work / "embeds.npy", work / "stats.json"
            settings = {
                "--model": self.model,
                "--seed": SEED,
                "--dtype": dtype,
                "--device": "cpu",
                "--threads": self.threads,
                "--out": out,
            }
            if steps is not None:
                settings |= {"--steps": steps, "--guidance-scale": GUIDANCE_SCALE}
            has_stats = "--stats" in self.help
            if has_stats:
                settings["--stats"] = stats
            options = [part for pair in settings.items() for part in pair]
            measured = measure(self.name, [self.binary, *given, *options, "--overwrite", "--quiet", *self.extra])
            seconds, details = read_stats(stats) if has_stats else ({}, {})
            embeds = load_embeds(out, len(prompts), self.name)
        return make_run(self.name, dtype, steps, measured, seconds, embeds, details)


class Diffusers:
    """The reference, with the model and the settings of all its runs."""

    name = "diffusers"

    def __init__(self, model, threads):
        self.model, self.threads = model, threads

    def run(self, dtype, prompts, steps):
        """One run."""
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            job = {
                "model": str(self.model),
                "dtype": dtype,
                "prompts": prompts,
                "steps": steps,
                "guidance_scale": GUIDANCE_SCALE,
                "seed": SEED,
                "threads": self.threads,
                "embeds": str(work / "embeds.npy"),
                "report": str(work / "report.json"),
            }
            (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
            measured = measure(self.name, module_command("reference", work / "job.json"))
            report = json.loads((work / "report.json").read_text(encoding="utf-8"))
            embeds = load_embeds(work / "embeds.npy", len(prompts), self.name)
        seconds = report["seconds"]
        details = {"step_seconds": report["steps"], "versions": report["versions"]}
        return make_run(self.name, dtype, steps, measured, seconds, embeds, details)


def median_run(runs):
    """One run with the medians of equal runs' figures."""
    first, others = runs[0], [run.details["other_cores"] for run in runs]
    seconds = {part: statistics.median(run.seconds[part] for run in runs) for part in first.seconds}
    return Run(
        first.program,
        first.dtype,
        first.prompts,
        first.steps,
        statistics.median(run.wall_seconds for run in runs),
        max(run.peak_rss_bytes for run in runs),
        seconds,
        first.embeds,
        first.details | {"repeats": len(runs), "other_cores": None if None in others else max(others)},
    )


def cosines(found, expected):
    """The cosine of each row."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return (found * expected).sum(1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1))


def relative_error(found, expected):
    """The largest difference, in units of the largest reference value; infinite if the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())
