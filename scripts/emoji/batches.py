"""Endless batches of captions and pictures. Batch i is the same in every run: it depends on the seed and i alone.

What its pictures show is drawn from one generator, what is said of them from another: so an epoch can have the pictures of
the one before and new captions.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import IterableDataset

from . import scenes, views
from .drawing import CANVAS, COLORS, Sprites, color
from .pictures import STYLES, TONES, read_pictures
from .scenes import ALONE, LAYOUTS, random_style
from .sources import load_emoji
from .views import ANGLES, PLACES, SIZES
from .wordings import fill, pick_name, random_template, train_caption

CAPTIONS = 2
"""Captions a picture: a caption costs a fraction of what a picture does."""
NEIGHBORS = 8
TRAINED_CHANGES = (0.25, 0.15, 0.2)
"""As `scenes.CHANGES`: more often another thing, which is the hardest to see."""
LAYOUT_INDEX = {layout: at for at, layout in enumerate(LAYOUTS)}
COLOR_INDEX = {name: at for at, name in enumerate(COLORS)}


@dataclass
class World:
    """Everything that captions and pictures are made of."""

    emoji: list = field(default_factory=load_emoji)

    def __post_init__(self):
        self.sprites = Sprites(read_pictures(self.emoji))
        self.by_code = {one.code: one for one in self.emoji}
        self.index = {one.code: at for at, one in enumerate(self.emoji)}
        self.things = scenes.scene_things(self.emoji)
        self.scene_names = {one.code: scenes.scene_names(one) for one in self.things}

    def scene_caption(self, scene, rng, **options):
        """A caption for a scene."""
        return scenes.caption(scene, self.scene_names, rng, **options)


@dataclass
class Sample:
    """A picture with some captions, and what it shows."""

    texts: list
    sprites: Sprites
    background: str
    objects: list
    """What is placed on it."""
    style: str
    labels: dict

    def draw(self):
        """The picture, `(96, 96, 3)` uint8."""
        return self.sprites.draw(color(self.background), self.objects, self.style)


ABSENT = -100
"""A label that a picture does not have: losses ignore it."""


def labels(world, things, layout, background, style, view=None):
    """What a picture shows, as class numbers: things in reading order, layout, background, style, and a view's."""
    things = [world.index[code] for code in things] + [len(world.emoji)] * (3 - len(things))
    found = {
        "thing0": things[0], "thing1": things[1], "thing2": things[2], "layout": LAYOUT_INDEX[layout],
        "background": COLOR_INDEX[background], "style": STYLES.index(style),
    }  # fmt: skip
    if view is None:
        return found | dict.fromkeys(("tone", "rotation", "size", "place", "mirrored"), ABSENT)
    return found | {
        "tone": 0 if view.tone is None else 1 + TONES.index(view.tone), "rotation": list(ANGLES).index(view.rotation),
        "size": list(SIZES).index(view.size), "place": PLACES.index(view.place), "mirrored": int(view.mirrored),
    }  # fmt: skip


def classes(world):
    """How many classes each label has."""
    count = len(world.emoji) + 1
    return {"thing0": count, "thing1": count, "thing2": count, "layout": len(LAYOUTS), "background": len(COLORS),
            "style": len(STYLES), "tone": 1 + len(TONES), "rotation": len(ANGLES), "size": len(SIZES),
            "place": len(PLACES), "mirrored": 2}  # fmt: skip


def single(world, emoji, rng, caption_rng, captions=CAPTIONS, style=None):
    """A single emoji in any view, or in a given style."""
    view = views.random_view(emoji, world.sprites, rng, style)
    placed = view.objects(emoji.code, rng)
    texts = [single_caption(emoji, view, caption_rng) for _ in range(captions)]
    shown = labels(world, (emoji.code,), "single", view.background, view.style, view)
    return Sample(texts, world.sprites, view.background, placed, view.style, shown)


def single_caption(emoji, view, rng):
    """A caption that tells some of what the picture shows."""
    told = views.what_is_told(rng)
    if "place" in told and rng.random() < 0.5:
        text = views.place_template(pick_name(emoji, rng), view, rng, told)
    elif "size" in told and rng.random() < 0.5:
        told.discard("size")
        name = f"{views.choose(rng, views.SIZE_ADJECTIVES[view.size])} {pick_name(emoji, rng)}"
        text = fill(random_template(rng), name)
    else:
        text = train_caption(emoji, rng)
    return views.tell(text, view, rng, told)


def scene_group(world, size, rng, caption_rng, captions=CAPTIONS):
    """A scene and others that are easily taken for it, all of the training split."""
    first = scenes.random_scene(world.things, rng)
    while first.form in ALONE:
        first = scenes.random_scene(world.things, rng)
    variants = scenes.variants(first, world.things, rng, 2 * size, TRAINED_CHANGES)
    others = (one for one in variants if not one.is_held_out() and one.form not in ALONE)
    exact = caption_rng.random() < 0.5
    for scene in [first, *others][:size]:
        style, place_rng = random_style(scene, world.sprites, rng), np.random.default_rng(rng.integers(2**63))
        texts = [world.scene_caption(scene, caption_rng, style=style, exact=exact) for _ in range(captions)]
        shown = labels(world, scene.things, scene.layout(), scene.background, style)
        yield Sample(texts, world.sprites, scene.background, scene.objects(place_rng), style, shown)


class Batches(IterableDataset):
    """Batches as tensors, from batch `first` on. After `epoch` batches the same pictures come again, with new captions;
    those that the reader has had already are left out."""

    def __init__(self, world, tokenizer, seed, first, last, singles, groups, group_size, captions=CAPTIONS, epoch=None):
        self.world, self.tokenizer, self.seed = world, tokenizer, seed
        self.first, self.last, self.epoch = first, last, epoch or last
        self.singles, self.groups, self.group_size, self.captions = singles, groups, group_size, captions

    def __iter__(self):
        for at in range(self.first, self.last):
            of_pictures, of_captions = (self.seed, at % self.epoch), (self.seed, at, 1)
            samples = self.samples(np.random.default_rng(of_pictures), np.random.default_rng(of_captions))
            yield collate(samples, self.tokenizer, with_pictures=at < self.first + self.epoch)

    def samples(self, rng, caption_rng):
        """Different emoji alone, in groups of neighbours in Unicode's order, which are alike, and groups of scenes."""
        count = len(self.world.emoji)
        blocks = rng.choice(count // NEIGHBORS, self.singles // NEIGHBORS, replace=False)
        chosen = (rng.integers(count) + NEIGHBORS * blocks[:, None] + np.arange(NEIGHBORS)).ravel() % count
        samples = [single(self.world, self.world.emoji[at], rng, caption_rng, self.captions) for at in chosen]
        for _ in range(self.groups):
            samples.extend(scene_group(self.world, self.group_size, rng, caption_rng, self.captions))
        return samples


def collate(samples, tokenizer, *, with_pictures):
    """Samples as one batch of tensors; `captions` has as many sets of texts as a picture has captions."""
    pictures = np.empty((len(samples) if with_pictures else 0, CANVAS, CANVAS, 3), np.uint8)
    for picture, sample in zip(pictures, samples):
        picture[:] = sample.draw()
    pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    known = {key: torch.tensor([sample.labels[key] for sample in samples]) for key in samples[0].labels}
    sets = zip(*(sample.texts for sample in samples))
    return {"pictures": pictures, "captions": [by_length(tokenizer, texts) for texts in sets], "labels": known}


def by_length(tokenizer, texts):
    """Texts in parts, the short ones first, so that they need no padding for the sake of a few long ones; `place` says
    where each text has gone."""
    ids = tokenizer(list(texts), truncation=True)["input_ids"]
    order = sorted(range(len(texts)), key=lambda at: len(ids[at]))
    cuts = [0, len(order) // 2, len(order) * 7 // 8, len(order)]
    parts = [encode(tokenizer, [texts[at] for at in order[start:end]]) for start, end in zip(cuts, cuts[1:])]
    place = torch.empty(len(order), dtype=torch.long)
    place[torch.tensor(order)] = torch.arange(len(order))
    return {"parts": parts, "place": place}


def encode(tokenizer, texts):
    """Token ids and mask, as long as the longest."""
    found = tokenizer(texts, truncation=True, padding="longest", return_tensors="pt")
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def normalize(pictures):
    """uint8 pixels to what the image encoder takes: from -1 to 1."""
    return pictures.float() / 127.5 - 1
