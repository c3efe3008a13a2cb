"""Searches random pipelines for those where accuracy is lost; exits with 1 if there are any.

Run it with `scripts/reference-python scripts/search_accuracy.py`. Each pipeline runs in diffusers in float64, in diffusers
in float32 (all rows at once, and row by row), and in prior-embed at several batch sizes. An error is the largest
difference from float64, relative to the largest value there. Accuracy is lost where prior-embed's is more than `--factor`
times that of diffusers and that of float64 with its weights rounded. `--keep` saves pipelines and references, for another
binary to run on the same ones in a fraction of the time.
"""

import argparse
import contextlib
import json
import math
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from tools.built import BINARY
from tools.command_line import parse_with_extra
from tools.fixtures.pipelines import KARLO, STABLE, lay_out
from tools.models.pipelines import case, load_pipeline, run_case, save_pipeline
from tools.models.precise import float64, jiggle
from tools.models.random_runs import TEXTS, describe, random_spec, run_binary
from tools.models.stable import load_stable_pipeline
from tools.models.weights import set_up

LAYOUTS = {"kandinsky22": {}, "unclip_layout": KARLO, "stable_unclip_layout": STABLE}
BATCH_SIZES = [1, 2, 7, 64]
# Below this, a unit in the last place decides.
LEAST = 2.0**-22
SEEDS = [0, 2**32 - 3, 2**63 - 30, 2**63 + 5, 2**64 - 40]


def random_pipeline(draw):
    """A layout and the parts of a pipeline, half of them larger than those of compare_diffusers.py."""
    layout = draw.choice(list(LAYOUTS))
    spec = random_spec(draw, draw.getrandbits(32))
    spec.dtype, spec.max_shard_size, spec.variant = torch.float32, None, None
    spec.image_encoder = layout == "kandinsky22"
    spec.ddpm = layout == "stable_unclip_layout"
    if draw.random() < 0.5:
        spec.text_heads = draw.randint(1, 8)
        spec.width = spec.text_heads * draw.randint(2, 24)
        spec.text_layers = draw.randint(1, 6)
        spec.prior_heads, spec.prior_head_dim = draw.randint(1, 8), draw.randint(2, 48)
        spec.prior_layers = draw.randint(1, 8)
    return layout, spec


def random_run(draw, layout):
    """The settings of one run: high guidance, many steps, seeds at the edges."""
    return case(
        prompts=[draw.choice(TEXTS) for _ in range(draw.randint(1, 6))],
        negative_prompt=None if layout == "stable_unclip_layout" else draw.choice([None, None, draw.choice(TEXTS)]),
        steps=draw.choice([10, 25, 25, 25, 50, 100]),
        guidance_scale=draw.choice([1.0, 4.0, 7.5, 7.5, 10.0, 15.0, round(draw.uniform(1, 12), 3)]),
        seed=draw.choice([*SEEDS, draw.getrandbits(64) >> 1]),
        samples_per_prompt=draw.randint(1, 3),
    )


def one_by_one(pipeline, settings):
    """The image embeddings with each row in a call of its own."""
    samples = settings["samples_per_prompt"]
    rows = []
    for row in range(len(settings["prompts"]) * samples):
        prompt, seed = settings["prompts"][row // samples], settings["seed"] + row
        alone = settings | {"prompts": [prompt], "samples_per_prompt": 1, "seed": seed}
        rows.append(run_case(pipeline, alone)[0])
    return torch.cat(rows)


def references(folder, layout, settings):
    """Image embeddings by name, float64."""
    if layout == "stable_unclip_layout":
        pipeline = load_stable_pipeline(folder)
    else:
        pipeline = load_pipeline(folder, LAYOUTS[layout])
    found = {"together": run_case(pipeline, settings)[0], "alone": one_by_one(pipeline, settings)}
    with float64(pipeline):
        found["exact"] = run_case(pipeline, settings)[0]
    for seed in (1, 2):
        with float64(pipeline):
            jiggle(pipeline, seed)
            found[f"jiggled_{seed}"] = run_case(pipeline, settings)[0]
    return {name: values.double().numpy() for name, values in found.items()}


def prepare(index, folder, options):
    """Makes pipeline number `index` and its references in `folder`, if they are not there."""
    if not (folder / "references.npz").exists():
        draw = random.Random(f"{options.seed} {index}")
        layout, spec = random_pipeline(draw)
        settings = random_run(draw, layout)
        save_pipeline(spec, folder / "model")
        if layout != "kandinsky22":
            lay_out(layout, folder / "model", LAYOUTS[layout])
        words = f"{layout}, {describe(spec, settings)}"
        (folder / "run.json").write_text(json.dumps({"words": words, "settings": settings}))
        np.savez(folder / "references.npz", **references(folder / "model", layout, settings))
    run = json.loads((folder / "run.json").read_text())
    with np.load(folder / "references.npz") as arrays:
        return run["words"], run["settings"], dict(arrays)


def compare(index, options):
    """One pipeline: diffusers' error, that of rounded weights, prior-embed's, and its difference from itself."""
    with contextlib.ExitStack() as stack:
        if options.keep:
            folder = options.keep / str(index)
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        words, settings, arrays = prepare(index, folder, options)
        exact = arrays.pop("exact")
        scale = np.abs(exact).max()

        def distance(one, other):
            return float(np.abs(one - other).max() / scale)

        ours = []
        for size in options.batch_sizes:
            extra = [f"--batch-size={size}", *options.extra]
            with tempfile.TemporaryDirectory() as work:
                found = run_binary(options.binary, folder / "model", settings, Path(work) / "out.npz", extra)
            ours.append(found["image_embeds"].astype(np.float64))
    errors = {name: distance(values, exact) for name, values in arrays.items()}
    theirs = max(errors["together"], errors["alone"])
    rounded = max(errors["jiggled_1"], errors["jiggled_2"])
    worst = max(distance(values, exact) for values in ours)
    itself = max(distance(values, ours[0]) for values in ours)
    ratio = worst / max(theirs, rounded, LEAST)
    verdict = "  LOST" if ratio > options.factor else ""
    print(
        f"{index:3} {words}: diffusers {theirs:.1e} rounded weights {rounded:.1e} prior-embed {worst:.1e} "
        f"from itself {itself:.1e} ratio {ratio:.2f}{verdict}",
        flush=True,
    )
    return theirs, rounded, worst, itself, ratio


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=100, help="how many pipelines (default 100)")
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--seed", type=int, default=0, help="other pipelines and runs with another seed")
    parser.add_argument("--only", type=int, nargs="+", help="run the pipelines of these numbers alone")
    parser.add_argument("--keep", type=Path, help="a folder for pipelines and references")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--factor", type=float, default=4.0, help="how much further is lost accuracy (default 4)")
    return parse_with_extra(parser)


def main():
    """Compares them all and sums up."""
    options = arguments()
    set_up()
    indices = range(options.count) if options.only is None else options.only
    found = np.array([compare(index, options) for index in indices])
    theirs, rounded, ours, itself, ratio = found.T
    mean = math.exp(np.log(np.maximum(ours, 2.0**-26) / np.maximum(theirs, 2.0**-26)).mean())
    lost = int((ratio > options.factor).sum())
    print(
        f"{len(found)} pipelines, largest error: diffusers {theirs.max():.1e} rounded weights {rounded.max():.1e} "
        f"prior-embed {ours.max():.1e} from itself {itself.max():.1e}; medians {np.median(theirs):.1e} "
        f"{np.median(rounded):.1e} {np.median(ours):.1e} {np.median(itself):.1e}; prior-embed over diffusers, mean "
        f"{mean:.2f}; over 1e-5: {int((ours > 1e-5).sum())}, from itself {int((itself > 1e-5).sum())}; {lost} lost"
    )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
