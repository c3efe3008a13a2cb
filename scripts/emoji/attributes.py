"""What embeddings say of style, background and pose, read off them by linear probes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from . import views
from .batches import COLOR_INDEX, single
from .drawing import color
from .pictures import STYLES
from .views import ANGLES, PLACES, SHARES, SIZES, View
from .wordings import choose

PICTURES, HELD_OUT = 16000, 4000
"""Pictures that the probes learn from, and those they are judged by."""
CLASSES = {"style": list(STYLES), "background": list(COLOR_INDEX), "rotation": list(ANGLES), "size": list(SIZES), "place": list(PLACES)}
OPEN_EMOJI, SEEDS = 40, 64
TOLD = 60
"""Captions for each thing told."""


@dataclass
class Probe:
    """One linear classifier."""

    mean: torch.Tensor
    std: torch.Tensor
    layer: nn.Linear

    def scores(self, embeds):
        """Logits, `(rows, classes)`."""
        return self.layer((embeds.float() - self.mean) / self.std)

    def __call__(self, embeds):
        """Class numbers."""
        return self.scores(embeds).argmax(1)


def fit(embeds, labels, classes):
    """Logistic regression, with a small penalty."""
    mean, std = embeds.mean(0), embeds.std(0)
    rows, layer = (embeds - mean) / std, nn.Linear(embeds.shape[1], classes)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(layer(rows), labels) + 1e-3 * layer.weight.square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    return Probe(mean, std, layer.requires_grad_(False))


def train_probes(world, encoders, seed):
    """`(probes by name, share of held-out pictures that each reads right)`. Place is of emoji that are not large."""
    rng = np.random.default_rng((seed, 11))
    emoji = rng.integers(len(world.emoji), size=PICTURES + HELD_OUT)
    samples = [single(world, world.emoji[at], rng, rng, 0) for at in emoji]
    parts = [samples[at : at + 2000] for at in range(0, len(samples), 2000)]
    embeds = torch.cat([encoders.pictures([sample.draw() for sample in part]) for part in parts]).float()
    probes, right = {}, {}
    for name, values in CLASSES.items():
        labels = torch.tensor([sample.labels[name] for sample in samples])
        counts = torch.ones(len(labels), dtype=torch.bool)
        if name == "place":
            counts = torch.tensor([sample.labels["size"] != CLASSES["size"].index("large") for sample in samples])
        learn, test = counts.clone(), counts.clone()
        learn[PICTURES:], test[:PICTURES] = False, False
        probes[name] = fit(embeds[learn], labels[learn], len(values))
        right[name] = (probes[name](embeds[test]) == labels[test]).float().mean().item()
    return probes, right


def likeness(world, encoders, probes, embeds, emoji, seed):
    """The cosine of each embedding to a true picture of its emoji, `(places of emoji)`, that looks as it does: in the style, on
    the background and in the pose that the probes read off it. No finite set of pictures has all of these."""
    rng, pictures = np.random.default_rng((seed, 14)), []
    read = {name: probe(embeds).tolist() for name, probe in probes.items() if name != "style"}
    styles = probes["style"].scores(embeds)
    for row, place in enumerate(emoji.tolist()):
        one = world.emoji[place]
        drawn = torch.tensor([world.sprites.has(one.code, style) for style in STYLES])
        style = STYLES[int(styles[row].masked_fill(~drawn, -torch.inf).argmax())]
        values = {name: CLASSES[name][classes[row]] for name, classes in read.items()}
        if values["size"] == "large":
            values["place"] = "center"
        for mirrored in (False, True):
            view = View(style=style, mirrored=mirrored, **values)
            pictures.append(world.sprites.draw(color(view.background), view.objects(one.code, rng), style))
    truth = encoders.pictures(pictures).view(len(embeds), 2, -1)
    return nn.functional.cosine_similarity(truth, embeds[:, None].float(), dim=2).amax(1)


def open_captions(world, seed):
    """Emoji that all styles draw: their names leave everything open."""
    everywhere = [one for one in world.emoji if all(world.sprites.has(one.code, style) for style in STYLES)]
    rng = np.random.default_rng((seed, 12))
    chosen = [everywhere[at] for at in rng.choice(len(everywhere), OPEN_EMOJI, replace=False)]
    return [f"a picture of {views.with_article(one.name)}" for one in chosen]


def spread(probes, embeds):
    """How far the shares of `(captions * SEEDS, dim)` are from those of pictures: the mean total variation over captions,
    and that of all captions' shares together, by name."""
    wanted = {"style": {style: 1 / len(STYLES) for style in STYLES}, **{name: SHARES[name] for name in ("background", "rotation", "size")}}
    found = {}
    for name, shares in wanted.items():
        data = torch.tensor([shares[value] for value in CLASSES[name]])
        seen = nn.functional.one_hot(probes[name](embeds), len(data)).float().view(-1, SEEDS, len(data)).mean(1)
        found[name] = ((seen - data).abs().sum(1).mean().item() / 2, (seen.mean(0) - data).abs().sum().item() / 2)
    return found


def told_captions(world, seed):
    """Captions that each tell one thing (a place comes with its size), each of its values equally often, and its value:
    `{name: (captions, class numbers)}`."""
    rng, found = np.random.default_rng((seed, 13)), {}
    for name, values in CLASSES.items():
        captions, labels = [], []
        for at in range(TOLD * (3 if name in ("style", "background") else 2)):
            value = values[at % len(values)]
            style = value if name == "style" else "noto"
            options = [one for one in world.emoji if world.sprites.has(one.code, style)]
            told = {name: value} | ({"size": "small"} if name == "place" else {})
            view = View(**{"style": style, **told})
            name_of = views.with_article(choose(rng, options).name)
            captions.append(views.tell(name_of, view, rng, set(told)))
            labels.append(values.index(value))
        found[name] = captions, torch.tensor(labels)
    return found
