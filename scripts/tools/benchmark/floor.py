"""How fast a run can be at best: what the weights take to read, and what the arithmetic takes."""

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .children import run_module
from .shapes import weight_header

ITEM_BYTES = {"f32": 4, "bf16": 2, "int8": 1}
# Start, end, and the text embedding: what the empty prompt of the unconditional branch puts before a step's tokens.
EMPTY_PREFIX = 3


def best_of(probes):
    """The best of what several probes found: whatever else the machine does makes it look slower than it is."""

    def best(values):
        return max((value for value in values if value is not None), default=None)

    first = probes[0]
    return {
        "bandwidth": best(one["bandwidth"] for one in probes),
        "gemm": {dtype: best(one["gemm"][dtype] for one in probes) for dtype in first["gemm"]},
        "tokens": first["tokens"],
    }


@dataclass
class Floor:
    """The least time of a run's denoising, and what it is made of; seconds of the whole run."""

    passes: int
    step_bytes: int
    reading: float
    gemm: float
    least: float


def probe(model, prompts, threads):
    """Bandwidth, GEMM rates by type, and the prompts' tokens."""
    with tempfile.TemporaryDirectory() as work:
        job, report = Path(work) / "job.json", Path(work) / "report.json"
        settings = {"model": str(model), "prompts": prompts, "threads": threads, "report": str(report)}
        job.write_text(json.dumps(settings), encoding="utf-8")
        run_module("probe", job)
        return json.loads(report.read_text(encoding="utf-8"))


def step_weights(model):
    """Number of weights that every step needs: all layers, and the projections into and out of them."""
    header = weight_header(model / "prior" / "diffusion_pytorch_model.safetensors")
    used = ("transformer_blocks.", "proj_in.", "proj_to_clip_embeddings.")
    return sum(math.prod(size) for name, size in header.items() if name.startswith(used) and len(size) == 2)


def floor(weights, dtype, tokens, steps, machine):
    """The floor for prompts of so many tokens, under guidance; None if the machine's GEMM is not known.

    Two phases: all that comes before the first step in one pass (the prompts' prefixes, every step's timestep token,
    and both of the unconditional branch once), and the steps, with two tokens for each of two branches. What attention
    adds and what the last layer saves, some per cent each, is left out.
    """
    rate = machine["gemm"][dtype]
    if rate is None:
        return None
    before = sum(count + 1 + steps for count in tokens) + EMPTY_PREFIX + steps
    in_a_step = 4 * len(tokens)
    read = weights * ITEM_BYTES[dtype] / machine["bandwidth"]
    compute = [2 * weights * passes / rate for passes in (before, in_a_step)]
    return Floor(
        passes=before + steps * in_a_step,
        step_bytes=weights * ITEM_BYTES[dtype],
        reading=read * (1 + steps),
        gemm=compute[0] + compute[1] * steps,
        least=max(read, compute[0]) + max(read, compute[1]) * steps,
    )
