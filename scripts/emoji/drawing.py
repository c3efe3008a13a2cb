"""Puts emoji onto a canvas of 64 x 64 pixels."""

from functools import cache

import numpy as np
from PIL import Image

CANVAS = 64
SIZES = (20, 24, 30, 38, 48, 56, 60)
"""The sizes that emoji are drawn at."""
COLORS = {
    "white": (255, 255, 255), "black": (20, 20, 20), "gray": (150, 150, 150), "red": (205, 40, 40),
    "orange": (245, 145, 40), "yellow": (250, 222, 70), "green": (60, 150, 70), "light blue": (150, 205, 245),
    "blue": (40, 85, 200), "purple": (125, 60, 175), "pink": (250, 165, 200), "brown": (120, 75, 45),
}  # fmt: skip


class Sprites:
    """The pictures of all emoji in every size, premultiplied with their alpha."""

    def __init__(self, pictures):
        """`pictures` is what `read_pictures` gives: `{(code, style, tone): RGBA}`."""
        self.pictures = pictures
        self.resized = {}

    def get(self, code, style, tone, size):
        """`(colour premultiplied, 1 - alpha)` of an emoji, resized when first asked for."""
        key = (code, style, tone, size)
        if key not in self.resized:
            self.resized[key] = resize(self.pictures[code, style, tone], size)
        return self.resized[key]

    def has(self, code, style, tone):
        """Whether the emoji comes in this skin tone."""
        return (code, style, tone) in self.pictures

    def draw(self, background, objects, style):
        """`(64, 64, 3)` uint8. `objects`: `(code, tone, size, centre x, centre y)`, the later ones on top."""
        canvas = np.empty((CANVAS, CANVAS, 3), np.float32)
        canvas[:] = background
        for code, tone, size, x, y in objects:
            color, rest = self.get(code, style, tone, size)
            left, top = round(x - size / 2), round(y - size / 2)
            # What sticks out of the canvas is cut off.
            x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size, CANVAS), min(top + size, CANVAS)
            inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
            canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * rest[inside] + color[inside]
        return (canvas + 0.5).clip(0, 255).astype(np.uint8)


def resize(picture, size):
    """Resizes with premultiplied alpha, since transparent pixels have a colour of their own."""
    alpha = picture[..., 3:].astype(np.float32) / 255
    planes = np.concatenate([picture[..., :3] * alpha, alpha * 255], axis=-1)
    resized = [
        np.asarray(Image.fromarray(np.ascontiguousarray(planes[..., at])).resize((size, size), Image.Resampling.LANCZOS))
        for at in range(4)
    ]
    planes = np.stack(resized, axis=-1).clip(0, 255)
    return planes[..., :3].astype(np.float16), (1 - planes[..., 3:] / 255).astype(np.float16)


@cache
def color(name):
    """A background's colour."""
    return np.array(COLORS[name], np.float32)
