"""Puts emoji onto a canvas of 96 x 96 pixels."""

from functools import cache, lru_cache
from math import cos, radians, sin
from typing import NamedTuple

import numpy as np
from PIL import Image

from .pictures import SIDE

CANVAS = 96
COLORS = {
    "white": (255, 255, 255), "black": (20, 20, 20), "gray": (150, 150, 150), "red": (205, 40, 40),
    "orange": (245, 145, 40), "yellow": (250, 222, 70), "green": (60, 150, 70), "light blue": (150, 205, 245),
    "blue": (40, 85, 200), "purple": (125, 60, 175), "pink": (250, 165, 200), "brown": (120, 75, 45),
}  # fmt: skip


class Placed(NamedTuple):
    """An emoji on the canvas: its size, its centre, by how many degrees it is turned clockwise, and whether it is
    mirrored."""

    code: str
    size: float
    x: float
    y: float
    tone: str | None = None
    angle: float = 0.0
    mirrored: bool = False


class Sprites:
    """The pictures of all emoji."""

    def __init__(self, pictures):
        """`pictures` is what `read_pictures` gives: `{(code, style, tone): RGBA}`."""
        self.pictures = pictures
        self.source = lru_cache(4096)(self._source)

    def has(self, code, style, tone=None):
        """Whether the emoji comes in this style and skin tone."""
        return (code, style, tone) in self.pictures

    def _source(self, code, style, tone, halvings):
        """A picture with alpha multiplied in, halved so many times."""
        picture = Image.fromarray(np.asarray(self.pictures[code, style, tone])).convert("RGBa")
        return picture.reduce(2**halvings) if halvings else picture

    def place(self, placed, style):
        """One emoji on a transparent canvas, with alpha multiplied in."""
        # Interpolation alone would alias a picture that shrinks to less than a half.
        halvings = 0 if placed.size > SIDE * 0.6 else 1 if placed.size > SIDE * 0.3 else 2
        source = self.source(placed.code, style, placed.tone, halvings)
        scale = source.width / placed.size
        across, down = cos(radians(placed.angle)) * scale, sin(radians(placed.angle)) * scale
        mirror = -1 if placed.mirrored else 1
        # From a place on the canvas to one in the source.
        a, b, d, e = mirror * across, mirror * down, -down, across
        middle = source.width / 2
        matrix = (a, b, middle - a * placed.x - b * placed.y, d, e, middle - d * placed.x - e * placed.y)
        return source.transform((CANVAS, CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)

    def draw(self, background, objects, style):
        """`(96, 96, 3)` uint8 of emoji in a style, the later ones on top."""
        canvas = np.empty((CANVAS, CANVAS, 3), np.float32)
        canvas[:] = background
        for placed in objects:
            layer = np.asarray(self.place(placed, style)).astype(np.float32)
            canvas *= 1 - layer[..., 3:] / 255
            canvas += layer[..., :3]
        return (canvas + 0.5).clip(0, 255).astype(np.uint8)


@cache
def color(name):
    """A background's colour."""
    return np.array(COLORS[name], np.float32)
