"""What is measured: the rows of the table, and the runs behind them."""

import statistics
import sys
from dataclasses import dataclass

import numpy as np

from .captions import captions
from .runs import Diffusers, PriorEmbed, Unsupported, cosines, median_run, relative_error
from .shapes import ONE_STEP, ensure_model, weight_header

# The largest error of f32, in units of the largest value, and the cosine below which another type is broken.
TOLERANCE, LOWEST_COSINE = 1e-4, 0.98


@dataclass(frozen=True)
class Row:
    """One line of the table; `dtype` is prior-embed's, `against` that of diffusers."""

    name: str
    title: str
    kind: str
    prompts: int = 1
    dtype: str = "f32"
    against: str = "f32"
    at_least: float | None = None
    aim: float | None = None


ROWS = [
    Row("1-f32", "1 prompt, f32, denoising", "prior", at_least=12, aim=17),
    Row("1-bf16", "1 prompt, bf16, denoising", "prior", dtype="bf16", against="bf16", at_least=12, aim=16),
    Row("8-f32", "8 prompts, f32, denoising, a prompt", "prior", 8),
    Row("64-f32", "64 prompts, f32, denoising, a prompt", "prior", 64, at_least=35, aim=45),
    Row("8-bf16", "8 prompts, bf16, denoising, a prompt", "prior", 8, "bf16", "bf16"),
    Row("64-bf16", "64 prompts, bf16, denoising, a prompt", "prior", 64, "bf16", "bf16", at_least=25, aim=32),
    Row("1-int8", "1 prompt, int8 against f32, denoising", "prior", dtype="int8"),
    Row("64-int8", "64 prompts, int8 against f32, denoising, a prompt", "prior", 64, "int8", at_least=80, aim=120),
    Row("cold", "1 prompt, f32, whole process", "cold", at_least=9, aim=12),
    Row("load", "1 prompt, f32, loading the model", "load"),
    Row("one-step", "64 prompts, f32, text and prior, a prompt: 25 steps against one", "one-step", 64, at_least=20, aim=20),
    # Limits: seconds of four draws over those of one.
    Row("best-of", "1 prompt, f32, denoising: the best of 4 draws against one", "best-of", at_least=1.5, aim=1.2),
    # Peak memory over the bytes of the weights.
    Row("memory", "1 prompt, f32, peak memory", "memory", at_least=1.2, aim=1.05),
]


@dataclass
class Result:
    """A measured row; figures in seconds or bytes."""

    row: Row
    diffusers: float | None = None
    prior_embed: float | None = None
    note: str | None = None
    to_weights: float | None = None
    theirs_to_weights: float | None = None

    @property
    def ratio(self):
        """How many times more diffusers needs."""
        return self.diffusers / self.prior_embed if self.diffusers and self.prior_embed else None

    def verdict(self):
        """How the target was met, if there is one and it was measured."""
        value = self.to_weights if self.row.kind == "memory" else self.ratio
        if value is None or self.row.at_least is None:
            return "—"
        sign = -1 if self.row.kind in ("memory", "best-of") else 1
        if sign * value >= sign * self.row.aim:
            return "aim"
        return "at least" if sign * value >= sign * self.row.at_least else "missed"


class Bench:
    """Runs both programs, each combination once, and works the rows out."""

    def __init__(self, model, options):
        self.model, self.options = model, options
        self.ours = PriorEmbed(options.binary, model, options.threads, options.extra)
        self.theirs = Diffusers(model, options.threads)
        self.prompts = captions(max(row.prompts for row in ROWS))
        self.done = {}

    def warm_up(self):
        """Brings both programs and the model into the page cache; a cold start here is that of a process."""
        print("bench: both programs once, to warm the page cache", file=sys.stderr)
        for program in (self.theirs, self.ours):
            program.run("f32", self.prompts[:1], 2)

    def run(self, program, dtype, count, steps, repeats=1):
        """A run, the median of several, or the same one from before."""
        key = (program.name, dtype, count, steps)
        if key not in self.done:
            print(f"bench: {program.name} {dtype}, {plural(count, 'prompt')}, {steps} steps", file=sys.stderr)
            self.done[key] = median_run([program.run(dtype, self.prompts[:count], steps) for _ in range(repeats)])
        return self.done[key]

    def measure(self, row):
        """A row's figures, or why there are none."""
        measures = {
            "prior": self.denoising,
            "cold": self.cold,
            "load": self.load,
            "memory": self.memory,
            "one-step": self.one_step,
            "best-of": self.best_of,
        }
        try:
            return measures[row.kind](row)
        except Unsupported as error:
            return Result(row, note=f"{error}; not measured")

    def pair(self, row):
        """Both programs on one prompt with all steps."""
        # Ours first: what it cannot do costs no run of diffusers.
        ours = self.run(self.ours, row.dtype, 1, self.options.steps, self.options.repeats)
        return self.run(self.theirs, row.against, 1, self.options.steps), ours

    def denoising(self, row):
        """Seconds of denoising a prompt; with several prompts diffusers runs fewer of them, and fewer steps."""
        steps = self.options.steps
        if row.prompts == 1:
            theirs, ours = self.pair(row)
            return Result(row, theirs.seconds_of("prior"), ours.seconds_of("prior"))
        ours = self.run(self.ours, row.dtype, row.prompts, steps)
        per_prompt = ours.seconds_of("prior") / row.prompts
        count, few = min(row.prompts, self.options.reference_prompts), min(steps, self.options.reference_steps)
        theirs = self.run(self.theirs, row.against, count, few)
        # For the comparison of embeddings, which depend on the number of steps.
        self.run(self.ours, row.dtype, count, few)
        if (count, few) == (row.prompts, steps):
            return Result(row, theirs.seconds_of("prior") / count, per_prompt)
        step = statistics.median(theirs.details["step_seconds"])
        note = (
            f"diffusers scaled: measured {plural(count, 'prompt')} at once for {few} steps, median {step:.3g} s a step "
            f"(from {min(theirs.details['step_seconds']):.3g} to {max(theirs.details['step_seconds']):.3g}); "
            f"x {steps} steps / {plural(count, 'prompt')}"
        )
        return Result(row, step * steps / count, per_prompt, note)

    def cold(self, row):
        """Seconds from the start of the process to its end, with the file written."""
        theirs, ours = self.pair(row)
        return Result(row, theirs.wall_seconds, ours.wall_seconds)

    def load(self, row):
        """Seconds of loading; diffusers' imports are no part of it."""
        theirs, ours = self.pair(row)
        note = f"diffusers' imports take {theirs.seconds_of('import'):.3g} s more"
        return Result(row, theirs.seconds_of("load"), ours.seconds_of("load"), note)

    def memory(self, row):
        """Peak resident memory of the process."""
        theirs, ours = self.pair(row)
        weights = weight_bytes(self.model)
        note = f"weights of prior and text encoder: {weights / 2**30:.2f} GiB; the targets are peak memory over weights"
        peaks = theirs.peak_rss_bytes, ours.peak_rss_bytes
        return Result(row, *peaks, note, to_weights=peaks[1] / weights, theirs_to_weights=peaks[0] / weights)

    def one_step(self, row):
        """Seconds of text and prior a prompt: this model's, and those of a one-step prior with the same text encoder."""
        model = ensure_model(ONE_STEP[self.options.shape])
        options = self.options
        one_step = PriorEmbed(options.binary, model, options.threads, options.extra, name="prior-embed in one step")
        one_step.run(row.dtype, self.prompts[:1], None)
        runs = [
            self.run(self.ours, row.dtype, row.prompts, options.steps),
            self.run(one_step, row.dtype, row.prompts, None, options.repeats),
        ]
        each = [(run.seconds_of("text") + run.seconds_of("prior")) / row.prompts for run in runs]
        parts = ", ".join(f"{runs[1].seconds_of(part) / row.prompts:.3g} s of {part}" for part in ("text", "prior"))
        note = f"both figures are prior-embed's; the right one is of a one-step prior of 10 layers of 16 x 32: {parts}"
        return Result(row, *each, note)

    def best_of(self, row):
        """Seconds of denoising four draws, of which one is kept, and of one."""
        options = self.options
        extra = [*options.extra, "--best-of", "4"]
        drawing = PriorEmbed(options.binary, self.model, options.threads, extra, name="prior-embed of 4 draws")
        four = self.run(drawing, row.dtype, 1, options.steps, options.repeats)
        one = self.run(self.ours, row.dtype, 1, options.steps, options.repeats)
        note = "both figures are prior-embed's; the right one is of one draw"
        return Result(row, four.seconds_of("prior"), one.seconds_of("prior"), note)

    def agreements(self):
        """Every run of prior-embed against every run of diffusers with the same number of steps."""
        runs = list(self.done.values())
        ours = [run for run in runs if run.program == self.ours.name]
        theirs = [run for run in runs if run.program == self.theirs.name]
        return [agreement(run, other) for run in ours for other in theirs if comparable(run, other)]


def comparable(run, other):
    """Whether two runs should give the same embeddings, but for rounding; the measure of every type is f32."""
    return run.steps == other.steps and other.dtype in ("f32", run.dtype)


def agreement(run, other):
    """How far the rows that two runs share agree: a row's embedding does not depend on the rows beside it."""
    count = min(run.prompts, other.prompts)
    found, expected = run.embeds[:count], other.embeds[:count]
    error = relative_error(found, expected)
    cosine = cosines(found, expected) if np.isfinite(error) else np.array([0.0])
    agreed = error <= TOLERANCE if run.dtype == "f32" else cosine.min() >= LOWEST_COSINE
    return {
        "prior_embed": f"{run.dtype}, {plural(run.prompts, 'prompt')}",
        "diffusers": f"{other.dtype}, {plural(other.prompts, 'prompt')}",
        "steps": run.steps,
        "rows": count,
        "relative_error": error,
        "mean_cosine": float(cosine.mean()),
        "min_cosine": float(cosine.min()),
        "agreed": bool(agreed),
    }


def weight_bytes(model):
    """Bytes of all weights in float32, as the files hold them."""
    sizes = [size for path in model.glob("*/*.safetensors") for size in weight_header(path).values()]
    return 4 * sum(int(np.prod(size)) for size in sizes)


def plural(count, noun):
    """`1 prompt`, `2 prompts`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
