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
from .attributes import SEEDS, likeness, open_captions, spread, told_captions, train_probes
from .batches import World, single
from .evaluation import Encoders, check_split, cosine, direction, diversity, emoji_task, rank_emoji, rank_scenes, scene_task
from .judged import judge_pictures

BASE = {"steps": 25, "guidance_scale": 4.0, "dtype": "f32", "scheduler": "auto"}
FAIR = {"guidance_scale": 1.0}
"""At this guidance a prior draws from the distribution it has learned."""
CHAINS, SCALES = (2, 5, 25, 100), (1.0, 2.0, 4.0, 8.0)
SOME = 100
"""Wordings of which several seeds are compared."""
BARS = {
    "probe style": 0.90, "probe background": 0.95, "probe place": 0.85,
    "fair style": -0.25, "fair background": -0.25, "fair rotation": -0.25, "fair size": -0.25,
    "told style": 0.90, "told background": 0.90, "told rotation": 0.90, "told size": 0.90, "told place": 0.90,
    "25 steps over 2": 0.0, "100 steps over 25": -0.005, "variety falls with guidance": 1, "likeness grows with guidance": 1,
    "best of 4": 0.0, "name first": 0.887, "name in five": 0.958, "gain to nearest truth": 0.2, "scene first": 0.70,
    "new word first": 0.20, "new word in five": 0.40, "plain picture named": 0.80, "pair of things named": 0.50,
}  # fmt: skip
"""What is to be reached. Total variations count as negative: the nearer to 0 the better. New words are keywords that no
emoji had in training."""


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
    parser.add_argument("--sweep", type=int, default=1000, help="wordings a setting of steps and guidance")
    parser.add_argument("--schedulers", choices=["builtin", "karlo", "tiny"], nargs="?", const="builtin",
                        help="few steps with each scheduler, of this model or of a random one, of Karlo's size or tiny, in place of all")
    parser.add_argument("--json", type=Path, help="where all figures go")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def percent(value):
    """As in a table."""
    return f"{100 * value:.1f} %"


def emoji_report(task, embeds):
    """By kind of wording, and over all that name their emoji: share of first, of top five, cosine to the nearest truth."""
    (first, five), near = rank_emoji(task, embeds), task.nearest_truth(embeds)
    mean = lambda values, mask: values[mask].mean().item()
    return {
        kind: {"count": int(mask.sum()), "top1": mean(first, mask), "top5": mean(five, mask), "cosine": mean(near, mask)}
        for kind, mask in task.kinds().items()
    }


def scene_report(task, embeds):
    """By whether the caption's template is one of training's."""
    first, near = rank_scenes(task, embeds), cosine(embeds, task.truth)
    report = {}
    for kind, mask in task.kinds().items():
        report[kind] = {"count": int(mask.sum()), "first": first[mask].mean().item(), "cosine": near[mask].mean().item()}
    return report


def names(prior, encoders, emoji, figures):
    """Retrieval by wording: the prior's embedding against the text's own."""
    rows, text = [], emoji_report(emoji, encoders.texts(emoji.texts))
    found = {scale: emoji_report(emoji, prior.embed(emoji.texts, guidance_scale=scale)) for scale in (4.0, 1.0)}
    for kind, at_four in found[4.0].items():
        cells = [f"{percent(one['top1'])}, {percent(one['top5'])}, {one['cosine']:.3f}"
                 for one in (at_four, found[1.0][kind], text[kind])]  # fmt: skip
        rows.append([kind, str(at_four["count"]), *cells])
    print(table(["wording: first, in five, cosine to the nearest", "texts", "guidance 4", "guidance 1", "text alone"], rows), "\n")
    naming, new = found[4.0]["naming"], found[4.0]["new word"]
    figures |= {"name first": naming["top1"], "name in five": naming["top5"], "new word first": new["top1"],
                "new word in five": new["top5"],
                "gain to nearest truth": naming["cosine"] - text["naming"]["cosine"]}  # fmt: skip


def in_scenes(prior, encoders, scenes, figures):
    """Scenes among those that are easily taken for them."""
    at_four, text = scene_report(scenes, prior.embed(scenes.texts)), scene_report(scenes, encoders.texts(scenes.texts))
    rows = [
        [kind, str(one["count"]), percent(one["first"]), f"{one['cosine']:.3f}", percent(text[kind]["first"]), f"{text[kind]['cosine']:.3f}"]
        for kind, one in at_four.items()
    ]
    print(table(["scenes", "count", "prior: first", "cosine", "text: first", "cosine"], rows), "\n")
    figures["scene first"] = at_four["all"]["first"]


def seeds(prior, world, probes, figures, seed):
    """What seeds decide where captions leave it open, and whether captions are obeyed."""
    captions, rows = open_captions(world, seed), []
    found = {scale: spread(probes, prior.embed(captions, samples=SEEDS, guidance_scale=scale)) for scale in SCALES}
    for name in found[1.0]:
        rows.append([name, *("{:.3f}, {:.3f}".format(*found[scale][name]) for scale in SCALES)])
        figures[f"fair {name}"] = -found[1.0][name][0]
    print(table(["total variation: of a caption, of all", *(f"guidance {scale:g}" for scale in SCALES)], rows), "\n")
    rows, told = [], told_captions(world, seed)
    for name, (captions, labels) in told.items():
        right = [(probes[name](prior.embed(captions, guidance_scale=scale)) == labels).float().mean().item() for scale in SCALES]
        figures[f"told {name}"] = right[SCALES.index(4.0)]
        rows.append([name, str(len(captions)), *map(percent, right)])
    print(table(["told by the caption", "captions", *(f"guidance {scale:g}" for scale in SCALES)], rows), "\n")


def chains(prior, world, encoders, probes, emoji, figures, seed):
    """More steps at guidance 1; more guidance at 25 steps; and true pictures."""
    rows, texts = [], direction(encoders.texts(emoji.texts))
    settings = [("steps", steps, FAIR | {"steps": steps}) for steps in CHAINS]
    settings += [("guidance", scale, {"guidance_scale": scale}) for scale in SCALES]
    near, variety, likenesses = {}, [], []

    def measure(label, found, samples):
        """A row: of an embedding for each wording, and of 8 for each of the first."""
        (first, five), truth = rank_emoji(emoji, found), emoji.nearest_truth(found)
        truth = truth.maximum(likeness(world, encoders, probes, found, emoji.answer, seed)).mean().item()
        between, like = diversity(samples, 8), (direction(found) * texts).sum(1).mean().item()
        cells = percent(first.mean().item()), percent(five.mean().item()), f"{truth:.3f}", f"{between:.3f}", f"{like:.3f}"
        rows.append([label, *cells])
        print(f"evaluate: {label}", file=sys.stderr)
        return truth, between, like

    rng = np.random.default_rng((seed, 4))
    drawn = lambda places: encoders.pictures([single(world, world.emoji[at], rng, rng, 0).draw() for at in places])
    # What an exact prior would do at guidance 1.
    measure("true pictures", drawn(emoji.answer.tolist()), drawn(emoji.answer[:SOME].repeat_interleave(8).tolist()))
    for name, value, setting in settings:
        samples = prior.embed(emoji.texts[:SOME], samples=8, **setting)
        truth, between, like = measure(f"{name} {value:g}", prior.embed(emoji.texts, **setting), samples)
        if name == "steps":
            near[value] = truth
        else:
            variety.append(1 - between), likenesses.append(like)
    head = ["setting", "first", "in five", "cosine to the nearest", "cosine between seeds", "cosine to the text"]
    print(table(head, rows), "\n")
    rising = lambda values: float(all(a < b for a, b in zip(values, values[1:])))
    figures |= {"25 steps over 2": near[25] - near[2], "100 steps over 25": near[100] - near[25],
                "variety falls with guidance": rising(variety[::-1]), "likeness grows with guidance": rising(likenesses)}  # fmt: skip


def best_of(prior, encoders, emoji, figures):
    """How much the best of four draws gains in the dot product that it is chosen by."""
    texts = encoders.texts(emoji.texts)
    dots = [(prior.embed(emoji.texts, **FAIR, **more) * texts).sum(1).mean().item() for more in ({}, {"best_of": 4})]
    print(table(["dot product at guidance 1", "one draw", "best of 4"], [["", *(f"{dot:.2f}" for dot in dots)]]), "\n")
    figures["best of 4"] = dots[1] - dots[0]


def judge(figures):
    """The bars."""
    met = lambda name: figures.get(name, float("nan")) >= BARS[name]
    rows = [[name, f"{figures.get(name, float('nan')):.3f}", f"{bar:g}", "pass" if met(name) else "miss"] for name, bar in BARS.items()]
    print(table(["bar", "found", "at least", "verdict"], rows))
    return all(met(name) for name in BARS)


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
    prior, encoders = Prior(options.binary, options.model), Encoders(options.encoders)
    world, figures = World(), {}
    probes, right = train_probes(world, encoders, options.seed)
    figures |= {f"probe {name}": share for name, share in right.items()}
    print(table(["linear probe", *right], [["right on held-out pictures", *map(percent, right.values())]]), "\n")
    seeds(prior, world, probes, figures, options.seed)
    emoji = emoji_task(world, encoders, options.seed)
    check_split(world, emoji, options.seed)
    names(prior, encoders, emoji, figures)
    in_scenes(prior, encoders, scene_task(world, encoders, options.scenes, options.seed), figures)
    some = few_steps.subset(emoji, options.sweep, options.seed)
    chains(prior, world, encoders, probes, some, figures, options.seed)
    best_of(prior, encoders, some, figures)
    judge_pictures(prior, world, figures, options.seed)
    passed = judge(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1
