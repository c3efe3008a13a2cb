"""Times loading the same weights as safetensors and as `.bin`.

The model is that of `speed`, made once and kept in the cache (4.6 GB for karlo), and its `.bin` twin lies beside it for
as long as this runs. "Ready to denoise" is the time from the start of the process to the first denoising step, with the
page cache warm: all of a run but its denoising and writing. Close other programs first. Ends with 1 if a goal is missed.
"""

import argparse
import shutil
import statistics
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..built import BINARY
from ..command_line import number, parse_with_extra
from . import machine
from .children import BenchError, exit_status
from .report import machine_line, table
from .runs import PriorEmbed, cosines
from .shapes import SHAPES, ensure_model

PROMPT = "a red apple"
# Karlo's shape in float32; other shapes have no goal in seconds.
MAX_SECONDS = 2.5
MAX_RATIO = 2.0
# The names that diffusers and transformers give torch's files.
BIN_NAMES = {"diffusion_pytorch_model.safetensors": "diffusion_pytorch_model.bin", "model.safetensors": "pytorch_model.bin"}


def parse(program, arguments):
    """The command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = machine.usable_cores()
    parser.add_argument("--shape", choices=SHAPES, default="karlo", help="size of the model (default karlo)")
    parser.add_argument("--binary", type=Path, default=BINARY, help="default: what cargo build --release made")
    parser.add_argument("--threads", type=number(1, cores), default=cores, help="default: all cores")
    parser.add_argument("--repeats", type=number(1), default=5, help="runs of each, after one that warms up (default 5)")
    return parse_with_extra(parser, arguments)


def write_twin(model, twin):
    """The same model with torch's files in place of safetensors."""
    shutil.rmtree(twin, ignore_errors=True)
    for path in sorted(model.rglob("*")):
        target = twin / path.relative_to(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name in BIN_NAMES:
            torch.save(load_file(path), target.with_name(BIN_NAMES[path.name]))
        elif path.is_file():
            shutil.copyfile(path, target)


def load_times(model, options):
    """Seconds to readiness and seconds of loading, medians of warm runs, and the last embedding."""
    program = PriorEmbed(options.binary, model, options.threads, options.extra)
    runs = [program.run("f32", [PROMPT], 2) for _ in range(1 + options.repeats)][1:]
    ready = [run.wall_seconds - run.seconds_of("prior") - run.seconds_of("write") for run in runs]
    return statistics.median(ready), statistics.median(run.seconds_of("load") for run in runs), runs[-1].embeds


def run(options):
    """Measures, prints, and says whether the goals are met."""
    model = ensure_model(options.shape)
    twin = model.with_name(f"{model.name}-bin")
    try:
        write_twin(model, twin)
        safe_ready, safe_load, safe_embeds = load_times(model, options)
        bin_ready, bin_load, bin_embeds = load_times(twin, options)
    finally:
        shutil.rmtree(twin, ignore_errors=True)
    if cosines(bin_embeds, safe_embeds).min() < 0.99999:
        raise BenchError("the two formats give different embeddings")
    print(machine_line(machine.describe(), options.threads))
    rows = [
        ["safetensors", f"{safe_load:.2f} s", f"{safe_ready:.2f} s"],
        [".bin", f"{bin_load:.2f} s", f"{bin_ready:.2f} s"],
        ["ratio", f"{bin_load / safe_load:.2f}", f"{bin_ready / safe_ready:.2f}"],
    ]
    print(table([f"{options.shape}, f32, page cache warm", "loading", "ready to denoise"], rows))
    is_fast = options.shape != "karlo" or safe_ready <= MAX_SECONDS
    return is_fast and bin_load <= MAX_RATIO * safe_load


def main(program, arguments):
    """Exit status 0 if no goal is missed."""
    return exit_status(lambda: run(parse(program, arguments)), "a goal is missed", "load-times")
