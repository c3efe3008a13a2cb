"""Finds the emoji whose pictures' embeddings are closest to an embedding."""

import json
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from ..problem import FAILED, Problem, first_line

VARIATION_SELECTOR = "\ufe0f"
"""Asks for the colourful form of a character that also has a plain one."""


class Emoji(NamedTuple):
    """An emoji of the index."""

    code: str
    name: str
    group: str

    @property
    def characters(self):
        """The emoji as text."""
        text = "".join(chr(int(point, 16)) for point in self.code.split("-"))
        # Characters older than emoji are drawn plain without it.
        return text + VARIATION_SELECTOR if len(text) == 1 and text < "\U0001f000" else text

    def as_dict(self):
        """For JSON."""
        return {"emoji": self.characters, **self._asdict()}


class Index:
    """All emoji, each with an embedding in several styles."""

    def __init__(self, emoji, styles):
        """`styles`: an array `(emoji, dim)` for each style."""
        self.emoji = emoji
        self.styles = [normalize(style.astype(np.float32)) for style in styles]
        self.dim = self.styles[0].shape[1]
        if any(style.shape != (len(emoji), self.dim) for style in self.styles):
            raise ValueError("the names and the embeddings are not of equal number")

    def nearest(self, row, count):
        """The `count` closest emoji as pairs of emoji and score, the best first.

        The score of an emoji is the cosine with the one of its styles that is closest.
        """
        direction = normalize(row)
        scores = np.max([style @ direction for style in self.styles], axis=0)
        best = np.argsort(-scores, kind="stable")[:count]
        return [(self.emoji[at], float(scores[at])) for at in best]


def normalize(vectors):
    """Vectors of length 1; one of length 0 stays as it is, and its cosine with anything is 0."""
    vectors = vectors.astype(np.float64)  # the square of a large float32 has no place in float32
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def load(folder):
    """The index in a folder."""
    try:
        tensors = load_file(folder / "index.safetensors")
        entries = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
        emoji = [Emoji(entry["code"], entry["name"], entry["group"]) for entry in entries]
        return Index(emoji, list(tensors.values()))
    except Exception as error:  # safetensors' own error is not exported under one name in all its versions
        raise Problem(
            f"the index of emoji in {folder} cannot be used ({first_line(error)}); restore it with git checkout", FAILED
        ) from None


def lines(index, rows, count, as_json):
    """What is printed: an emoji a line with tabs between row, emoji, name and score; or a row a line in JSON."""
    for at, row in enumerate(rows):
        found = index.nearest(row, count)
        if as_json:
            entries = [emoji.as_dict() | {"score": round(score, 6)} for emoji, score in found]
            yield json.dumps({"row": at, "nearest": entries}, ensure_ascii=False)
        else:
            for emoji, score in found:
                yield f"{at}\t{emoji.characters}\t{emoji.name}\t{score:.4f}"
