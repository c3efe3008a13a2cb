"""A build for GPUs against the tests' values and against diffusers: see gpu_check.py."""

import argparse
import json
import os
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from ..built import ROOT
from .captions import LIMIT, captions
from .children import BenchError, child_environment, exit_status, measure, module_command
from .floor import EMPTY_PREFIX, step_weights
from .probe import best_seconds
from .report import figure, table
from .rows import LOWEST_COSINE, TOLERANCE
from .runs import GUIDANCE_SCALE, SEED, cosines, load_embeds, read_stats, relative_error
from .shapes import ONE_STEP, SHAPES, ensure_model
from .speed import write_json

FIXTURES = ROOT / "tests" / "fixtures" / "pipelines"
TYPES = ("f32", "f16", "bf16")
CASES = 2
"""Of each model of the tests: a process that starts on a GPU takes a second or two."""
STEPS, BATCHES = 25, 4
"""Steps of a run that is timed; batches whose time is taken together, after one in which the device warms up."""


def parse(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(prog="gpu_check.py", description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("--device", default="cuda", help="cpu shows that the script works (default cuda)")
    parser.add_argument("--shapes", default="karlo,kandinsky-2.2", help="of the models that are timed")
    parser.add_argument("--prompts", default="1,8,64,512", help="numbers of prompts at once")
    parser.add_argument("--types", default="f16,bf16", help="of prior-embed (default f16,bf16); diffusers computes in f16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything measured")
    options = parser.parse_args(arguments)
    options.shapes, options.types = options.shapes.split(","), options.types.split(",")
    for name, given, known in (("shapes", options.shapes, set(SHAPES) - set(ONE_STEP.values())), ("types", options.types, TYPES)):
        if unknown := set(given) - set(known):
            parser.error(f"--{name}: no {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    counts = options.prompts.split(",")
    if not all(count.isdecimal() and 0 < int(count) <= LIMIT for count in counts):
        parser.error(f"--prompts {options.prompts}: numbers from 1 to {LIMIT} are needed, with commas between")
    options.prompts = [int(count) for count in counts]
    if not os.access(options.binary, os.X_OK) or options.binary.is_dir():
        parser.error(f"no program at {options.binary}")
    if options.json and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: its folder is not there")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: this torch sees no GPU")
    return options


class Ours:
    """The binary on a device."""

    def __init__(self, options):
        self.binary, self.device = options.binary.resolve(), options.device

    def embed(self, model, prompts, **settings):
        """`(embeddings, seconds of the prior)`."""
        with tempfile.TemporaryDirectory() as work:
            texts, out, stats = (Path(work) / name for name in ("prompts.jsonl", "embeds.npy", "stats.json"))
            texts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
            settings |= {"model": model, "prompts": texts, "out": out, "stats": stats, "device": self.device}
            options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if value is not None]
            measure("prior-embed", [self.binary, *options, "--quiet"])
            seconds, _ = read_stats(stats)
            return load_embeds(out, len(prompts) * settings.get("samples_per_prompt", 1), "prior-embed"), seconds["prior"]


def golden_cases():
    """`(name, model, case, expected)` of some that the tests hold."""
    for folder in sorted(FIXTURES.iterdir()):
        with safe_open(folder / "expected.safetensors", "np") as file:
            cases, names = json.loads(file.metadata()["cases"]), set(file.keys())
            for at, case in enumerate(cases[:CASES]):
                if f"{at}.image_embeds" in names:
                    yield f"{folder.name} {at}", folder, case, file.get_tensor(f"{at}.image_embeds")


def check_goldens(ours):
    """How far each type is from diffusers' float32: `[{name, type, error, cosine, right}]`."""
    found = []
    for name, model, case, expected in golden_cases():
        settings = {"steps": case["steps"], "guidance_scale": case["guidance_scale"], "seed": case["seed"],
                    "samples_per_prompt": case["samples_per_prompt"], "negative_prompt": case["negative_prompt"]}  # fmt: skip
        for dtype in TYPES:
            embeds, _ = ours.embed(model, case["prompts"], dtype=dtype, **settings)
            error, cosine = relative_error(embeds, expected), float(cosines(embeds, expected).min())
            right = error < TOLERANCE if dtype == "f32" else cosine > LOWEST_COSINE
            found.append({"case": name, "type": dtype, "error": error, "cosine": cosine, "right": bool(right)})
    return found


def check_batches(ours):
    """How far rows are from those of runs of one: `[{type, batch, error, cosine, right}]`."""
    found, prompts = [], captions(9)
    for dtype in TYPES:
        rows = [ours.embed(FIXTURES / "kandinsky22", prompts, dtype=dtype, steps=7, batch_size=size)[0] for size in (1, 2, 9)]
        for size, some in zip((2, 9), rows[1:]):
            error, cosine = relative_error(some, rows[0]), float(cosines(some, rows[0]).min())
            right = error < TOLERANCE if dtype == "f32" else cosine > LOWEST_COSINE
            found.append({"type": dtype, "batch": size, "error": error, "cosine": cosine, "right": bool(right)})
    return found


class Memory:
    """The most memory of the device that is taken meanwhile, beside what was taken before."""

    def __init__(self, device):
        self.device, self.most, self.ended = device, 0, threading.Event()

    def taken(self):
        """Bytes."""
        if self.device == "cpu":
            return 0
        free, whole = torch.cuda.mem_get_info(self.device)
        return whole - free

    def __enter__(self):
        self.before = self.taken()
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        return self

    def watch(self):
        """Until the end."""
        while not self.ended.wait(0.02):
            self.most = max(self.most, self.taken() - self.before)

    def __exit__(self, *_):
        self.ended.set()
        self.watcher.join()


def time_ours(ours, model, count, dtype):
    """`{seconds of a batch of so many prompts, bytes}`: several batches less one, in which the device warms up."""
    prompts = [f"{prompt} {at}" for at in range(BATCHES + 1) for prompt in captions(count)]
    run = lambda batches: ours.embed(
        model, prompts[: batches * count], dtype=dtype, steps=STEPS, batch_size=count, seed=SEED, guidance_scale=GUIDANCE_SCALE
    )[1]
    with Memory(ours.device) as memory:
        seconds = (run(BATCHES + 1) - run(1)) / BATCHES
    return {"seconds": seconds, "bytes": memory.most}


def time_theirs(options, model, count):
    """The same of diffusers in float16 (on the CPU in float32), in a process of its own."""
    with tempfile.TemporaryDirectory() as work:
        job, report = Path(work) / "job.json", Path(work) / "report.json"
        settings = {"model": str(model), "prompts": captions(count), "steps": STEPS, "guidance_scale": GUIDANCE_SCALE,
                    "device": options.device, "report": str(report)}  # fmt: skip
        job.write_text(json.dumps(settings), encoding="utf-8")
        with Memory(options.device) as memory:
            done = subprocess.run(module_command("gpu_reference", job), env=child_environment(), stdin=subprocess.DEVNULL)
        if done.returncode:
            raise BenchError(f"diffusers ended with {done.returncode}")
        return json.loads(report.read_text(encoding="utf-8")) | {"bytes": memory.most}


def probe(device):
    """What the device does at best: bytes a second that a copy reads and writes, and operations a second by type."""
    synchronize = (lambda: None) if device == "cpu" else torch.cuda.synchronize
    size = 2**12 if device == "cpu" else 2**13
    source = torch.ones(2**26 if device == "cpu" else 2**30, device=device)
    target, rates = torch.empty_like(source), {}
    copied = best_seconds(lambda: (target.copy_(source), synchronize()))
    for dtype, kind in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
        if device == "cpu" and dtype != "f32":
            continue
        some = torch.randn(size, size, device=device).to(kind)
        rates[dtype] = 2 * size**3 / best_seconds(lambda some=some: (some @ some, synchronize()))
    return {"bandwidth": 2 * source.nbytes / copied, "gemm": rates}


def floor(weights, dtype, count, tokens, machine):
    """The least seconds of denoising: the weights read once a step, or the arithmetic, whichever takes longer."""
    rate = machine["gemm"].get(dtype)
    if rate is None:
        return None
    read = weights * (4 if dtype == "f32" else 2) / machine["bandwidth"]
    before = count * (tokens + 1 + STEPS) + EMPTY_PREFIX + STEPS
    return max(read, 2 * weights * before / rate) + STEPS * max(read, 2 * weights * 4 * count / rate)


def time_shape(options, ours, shape, machine):
    """All rows of one model."""
    model, rows = ensure_model(shape), []
    weights = step_weights(model)
    for count in options.prompts:
        theirs = time_theirs(options, model, count)
        for dtype in options.types:
            row = {"shape": shape, "prompts": count, "type": dtype, "diffusers": theirs}
            row |= {"prior_embed": time_ours(ours, model, count, dtype), "floor": floor(weights, dtype, count, theirs["tokens"], machine)}
            rows.append(row)
            print_rows([row], head=len(rows) == 1)
    return rows


def print_rows(rows, head):
    """As a table, line by line."""
    names = ["model", "prompts", "type", "diffusers f16", "prior-embed", "ratio", "rows a second", "over the floor", "memory: theirs, ours"]
    lines = []
    for row in rows:
        theirs, ours = row["diffusers"]["seconds"], row["prior_embed"]["seconds"]
        memory = ", ".join(f"{row[one]['bytes'] / 2**30:.2f} GiB" for one in ("diffusers", "prior_embed"))
        over = ours / row["floor"] if row["floor"] else None
        lines.append([row["shape"], str(row["prompts"]), row["type"], figure(theirs, " s"), figure(ours, " s"),
                      figure(theirs / ours, "x"), figure(row["prompts"] / ours), figure(over), memory])  # fmt: skip
    print("\n".join(table(names, lines).splitlines()[0 if head else 2 :]), flush=True)


def describe(options, ours):
    """The device and the programs."""
    import diffusers
    import transformers

    name = "cpu" if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    version = subprocess.run([ours.binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    modules = {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}
    return {"device": name, "binary": version, "versions": modules, "steps": STEPS}


def run(options):
    """Whether all numbers are right."""
    ours = Ours(options)
    about = describe(options, ours)
    print(about, flush=True)
    goldens, batches = check_goldens(ours), check_batches(ours)
    for what, found in (("cases of diffusers", goldens), ("batches against single rows", batches)):
        for dtype in TYPES:
            some = [one for one in found if one["type"] == dtype]
            error, cosine = max(one["error"] for one in some), min(one["cosine"] for one in some)
            wrong = [str(one) for one in some if not one["right"]]
            print(f"{what}, {dtype}: {len(some)}, error at most {error:.1e}, cosine at least {cosine:.6f}", *wrong, sep="\n  ", flush=True)
    machine = probe(options.device)
    rates = ", ".join(f"{rate / 1e12:.1f} T operations in {dtype}" for dtype, rate in machine["gemm"].items())
    print(f"{machine['bandwidth'] / 1e9:.0f} GB and {rates} a second\n", flush=True)
    report = {"about": about, "goldens": goldens, "batches": batches, "machine": machine, "rows": []}
    for shape in options.shapes:
        report["rows"] += time_shape(options, ours, shape, machine)
        if options.json:
            # After each model: what is measured is kept if the time is up.
            write_json(options.json, report)
    return all(one["right"] for one in goldens + batches)


def main(arguments):
    """The exit status."""
    options = parse(arguments)
    return exit_status(lambda: run(options), failure="embeddings are not diffusers'", name="gpu_check")
