"""How good the built-in model is on what its training never saw: scripts/reference-python scripts/evaluate.py.

The embeddings come from the prior-embed binary, those of pictures and of texts alone from the encoders in assets/emoji.
Prints tables; ends with 1 if a bar is missed. The pictures are made from npm packages, which are fetched if need be.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from tools.benchmark.report import table
from tools.benchmark.shapes import ensure_model
from tools.built import BINARY, ROOT

from . import few_steps
from .batches import World
from .evaluation import Encoders, check_split, cosine, diversity, emoji_task, rank_emoji, rank_scenes, scene_task

BASE = {"steps": 25, "guidance_scale": 4.0, "dtype": "f32", "scheduler": "auto"}
SWEEP = {
    "steps": (5, 10, 25, 50, 100), "guidance_scale": (1.0, 2.0, 4.0, 8.0), "dtype": ("f32", "bf16", "int8"),
    "scheduler": ("auto", "unclip"),
}  # fmt: skip
BARS = {
    "emoji_top1": 0.60, "emoji_top5": 0.80, "scene_first": 0.60, "emoji_cosine_gain": 0.2, "scene_cosine_gain": 0.2,
    "emoji_top1_gain": 0.0, "emoji_top5_gain": 0.0, "scene_first_gain": 0.0,
}  # fmt: skip
"""What is to be reached; a gain is over the text's own embedding."""


class Prior:
    """The binary with a model."""

    def __init__(self, binary, model):
        self.binary, self.model = binary, model

    def embed(self, prompts, *, samples=1, seed=0, **settings):
        """`(prompts * samples, dim)`, float32."""
        settings = {**BASE, **settings}
        with tempfile.TemporaryDirectory() as folder:
            texts, out = Path(folder) / "prompts.txt", Path(folder) / "embeds.npy"
            texts.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
            options = {f"--{key.replace('_', '-')}": value for key, value in settings.items()}
            options = [key if value is True else f"{key}={value}" for key, value in options.items()]
            model = ["--model", self.model] if self.model else []
            command = [self.binary, "--prompts", texts, "--out", out, "--quiet", *model, *options]
            subprocess.run([*command, f"--samples-per-prompt={samples}", f"--seed={seed}"], check=True)
            return torch.from_numpy(np.load(out))


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder to evaluate (default: the model in the binary)")
    parser.add_argument("--encoders", type=Path, default=ROOT / "assets" / "emoji", help="the folder of the encoders")
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--sweep", type=int, default=1000, help="wordings a setting of the sweep; 0 leaves it out")
    parser.add_argument("--schedulers", choices=["builtin", "karlo", "tiny"], nargs="?", const="builtin",
                        help="few steps with each scheduler, of this model or of a random one, of Karlo's size or tiny, in place of all")
    parser.add_argument("--json", type=Path, help="where all figures go")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def percent(value):
    """As in a table."""
    return f"{100 * value:.1f} %"


def emoji_report(task, embeds):
    """By kind of wording, and over all that name their emoji: share of first, of top five, cosine."""
    first, five = rank_emoji(task, embeds)
    near = cosine(embeds, task.truth)
    report = {}
    for kind, mask in task.kinds().items():
        report[kind] = {"count": int(mask.sum()), "top1": first[mask].mean().item(), "top5": five[mask].mean().item(),
                        "cosine": near[mask].mean().item()}  # fmt: skip
    return report


def scene_report(task, embeds):
    """By whether the caption's template is one of training's."""
    first, near = rank_scenes(task, embeds), cosine(embeds, task.truth)
    report = {}
    for kind, mask in task.kinds().items():
        report[kind] = {"count": int(mask.sum()), "first": first[mask].mean().item(), "cosine": near[mask].mean().item()}
    return report


def print_emoji(name, prior, text):
    """The table of single emoji."""
    rows = [
        [kind, str(a["count"]), percent(a["top1"]), percent(a["top5"]), f"{a['cosine']:.3f}", percent(text[kind]["top1"]),
         percent(text[kind]["top5"]), f"{text[kind]['cosine']:.3f}"]
        for kind, a in prior.items()
    ]  # fmt: skip
    print(table([name, "count", "prior: first", "in top 5", "cosine", "text: first", "in top 5", "cosine"], rows))
    print()


def print_scenes(name, prior, text):
    """The table of scenes."""
    rows = [
        [kind, str(a["count"]), percent(a["first"]), f"{a['cosine']:.3f}", percent(text[kind]["first"]), f"{text[kind]['cosine']:.3f}"]
        for kind, a in prior.items()
    ]
    print(table([name, "count", "prior: first", "cosine", "text: first", "cosine"], rows))
    print()


def sweep(prior, emoji, scenes):
    """One setting changed at a time."""
    rows, figures = [], {}
    for key, values in SWEEP.items():
        for value in values:
            try:
                found = prior.embed(emoji.texts + scenes.texts, **{key: value})
            except subprocess.CalledProcessError:
                rows.append([key, str(value), *["not on this machine"] * 4])
                continue
            of_emoji, of_scenes = found[: len(emoji.texts)], found[len(emoji.texts) :]
            first, five = rank_emoji(emoji, of_emoji)
            spread = diversity(prior.embed(emoji.texts[:100], samples=8, **{key: value}), 8)
            near = cosine(found, torch.cat([emoji.truth, scenes.truth])).mean().item()
            in_order = rank_scenes(scenes, of_scenes).mean().item()
            figures[f"{key}={value}"] = [first.mean().item(), five.mean().item(), in_order, near, spread]
            rows.append([key, str(value), percent(first.mean().item()), percent(five.mean().item()), percent(in_order),
                         f"{near:.3f}", f"{spread:.3f}"])  # fmt: skip
            print(f"evaluate: {key}={value}", file=sys.stderr)
    head = ["setting", "value", "emoji first", "in top 5", "scene first", "cosine", "cosine between seeds"]
    print(table(head, rows))
    print()
    return figures


def judge(figures):
    """The bars."""
    found = {}
    for name, kind in (("emoji", "naming"), ("scenes", "all")):
        for key, value in figures[name][kind].items():
            short = f"{name.removesuffix('s')}_{key}"
            found |= {short: value, f"{short}_gain": value - figures[f"{name}_text"][kind][key]}
    found = {name: found[name] for name in BARS}
    rows = [[name, f"{found[name]:.3f}", f"{bar:g}", "pass" if found[name] >= bar else "miss"] for name, bar in BARS.items()]
    print(table(["bar", "found", "at least", "verdict"], rows))
    return found, all(row[-1] == "pass" for row in rows)


def few_steps_of(options):
    """The tables of few steps."""
    if options.schedulers != "builtin":
        return few_steps.report(Prior(options.binary, ensure_model(options.schedulers)), None, options.seed)
    emoji = emoji_task(World(), Encoders(options.encoders), options.seed)
    wordings = few_steps.subset(emoji, options.sweep, options.seed)
    return few_steps.report(Prior(options.binary, options.model), wordings, options.seed)


def main():
    """Exit status 0 if no bar is missed."""
    options = arguments()
    if options.schedulers:
        figures = few_steps_of(options)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        return 0
    prior = Prior(options.binary, options.model)
    encoders = Encoders(options.encoders)
    world = World()
    emoji = emoji_task(world, encoders, options.seed)
    check_split(world, emoji, options.seed)
    scenes = scene_task(world, encoders, options.scenes, options.seed)
    figures = {}
    for name, task, report, show in (
        ("emoji", emoji, emoji_report, print_emoji), ("scenes", scenes, scene_report, print_scenes)
    ):  # fmt: skip
        figures[name] = report(task, prior.embed(task.texts))
        figures[f"{name}_text"] = report(task, encoders.texts(task.texts))
        show(name, figures[name], figures[f"{name}_text"])
    if options.sweep:
        chosen = np.random.default_rng(options.seed).permutation(np.flatnonzero(emoji.kinds()["naming"].numpy()))
        figures["sweep"] = sweep(prior, emoji.subset(chosen[: options.sweep]), scenes)
    figures["bars"], passed = judge(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1
