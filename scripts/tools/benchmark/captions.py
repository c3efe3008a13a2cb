"""Captions from a small grammar: the same for the same number, and of the length that people write."""

import random

SUBJECTS = [
    "a red apple",
    "two cats",
    "an old lighthouse",
    "a steam locomotive",
    "a woman reading a newspaper",
    "a fox",
    "a bowl of ramen",
    "three hot air balloons",
    "a ruined castle",
    "a robot gardener",
    "a sailing ship",
    "an elderly fisherman",
    "a bouquet of sunflowers",
    "a snow leopard",
    "a vintage motorcycle",
    "a child with a kite",
]
PLACES = [
    "on a wooden table",
    "in the rain",
    "by the sea",
    "under a bridge",
    "in a dense forest",
    "on the moon",
    "in front of a brick wall",
    "at the edge of a desert",
    "in a crowded market",
    "",
]
LIGHTS = ["at sunset", "at night", "in soft morning light", "under neon lights", "on a foggy day", ""]
STYLES = [
    "oil painting",
    "watercolor",
    "black and white photograph",
    "4k photo, highly detailed",
    "pencil sketch",
    "isometric 3d render",
    "poster in the style of the 1930s",
    "",
]
LIMIT = len(SUBJECTS) * len(PLACES) * len(LIGHTS) * len(STYLES)


def caption(draw):
    """One caption."""
    text = " ".join(filter(None, [draw.choice(SUBJECTS), draw.choice(PLACES), draw.choice(LIGHTS)]))
    style = draw.choice(STYLES)
    return f"{text}, {style}" if style else text


def captions(count):
    """So many different captions, at most LIMIT; more of them begin with the same ones."""
    draw, seen = random.Random(0), {}
    while len(seen) < count:
        seen.setdefault(caption(draw))
    return list(seen)
