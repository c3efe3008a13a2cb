"""What few steps cost with each scheduler: cosines to 1,000 steps, and how many emoji are found."""

import sys

import numpy as np

from tools.benchmark.report import table

from .evaluation import cosine, rank_emoji

STEPS = (2, 4, 5, 8, 12, 25)
REFERENCE_STEPS = 1000
# All that solve the probability flow's equation end at its one solution for their noise, DDIM's at 1,000 steps. Those
# that add noise are compared with UnCLIP at 1,000 steps of the same seed, whose later draws are others.
DETERMINISTIC, STOCHASTIC = {"scheduler": "ddim"}, {"scheduler": "unclip"}
SCHEDULERS = {
    "unclip": (STOCHASTIC, STOCHASTIC),
    "ddpm": ({"scheduler": "ddpm"}, STOCHASTIC),
    "ddim, η 1": ({"scheduler": "ddim", "eta": 1}, STOCHASTIC),
    "dpm-solver++, sde": ({"scheduler": "dpm-solver++", "sde": True}, STOCHASTIC),
    "ddim": (DETERMINISTIC, DETERMINISTIC),
    "euler": ({"scheduler": "euler"}, DETERMINISTIC),
    "heun, (N + 1) / 2 steps": ({"scheduler": "heun"}, DETERMINISTIC),
    "dpm-solver++": ({"scheduler": "dpm-solver++"}, DETERMINISTIC),
    "dpm-solver++, order 3": ({"scheduler": "dpm-solver++", "solver_order": 3}, DETERMINISTIC),
}
CAPTIONS = ["a red apple on a wooden table", "two cats", "an old map of an island", "a child's drawing of a house"]


def runs(settings, steps):
    """The steps that run the prior so often: Heun's run it twice, but for the last."""
    return (steps + 1) // 2 if settings["scheduler"] == "heun" else steps


def measure(prior, texts, seed):
    """For each scheduler and number of steps, the embeddings and their mean cosine to the reference."""
    references = {}
    for settings in (STOCHASTIC, DETERMINISTIC):
        print(f"evaluate: {settings['scheduler']}, {REFERENCE_STEPS} steps", file=sys.stderr)
        references[settings["scheduler"]] = prior.embed(texts, seed=seed, steps=REFERENCE_STEPS, **settings)
    for name, (settings, reference) in SCHEDULERS.items():
        print(f"evaluate: {name}", file=sys.stderr)
        for steps in STEPS:
            found = prior.embed(texts, seed=seed, steps=runs(settings, steps), **settings)
            yield name, steps, found, cosine(found, references[reference["scheduler"]]).mean().item()
    other = prior.embed(texts, seed=seed + len(texts), steps=REFERENCE_STEPS, **STOCHASTIC)
    yield "unclip, another seed", REFERENCE_STEPS, other, cosine(other, references["unclip"]).mean().item()


def report(prior, emoji, seed):
    """Prints the tables of a model; with a task, the share of emoji that come first too. Returns the figures."""
    texts = emoji.texts if emoji else CAPTIONS
    cosines, firsts = {}, {}
    for name, steps, found, near in measure(prior, texts, seed):
        cosines.setdefault(name, []).append(near)
        if emoji:
            firsts.setdefault(name, []).append(rank_emoji(emoji, found)[0].mean().item())
    head = ["runs of the prior", *map(str, STEPS)]
    for title, figures in (("cosine", cosines), ("first", firsts)):
        if figures:
            rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in figures.items()]
            print(table([f"{title}: {head[0]}", *head[1:]], [row + [""] * (len(head) - len(row)) for row in rows]))
            print()
    return {"cosine": cosines, "first": firsts}


def subset(emoji, count, seed):
    """So many of the wordings that name their emoji."""
    naming = np.flatnonzero(emoji.kinds()["naming"].numpy())
    return emoji.subset(np.random.default_rng(seed).permutation(naming)[:count])

