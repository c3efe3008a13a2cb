"""Reads the embeddings that prior-embed writes."""

from __future__ import annotations

import io
import os
import sys
from typing import NamedTuple

import numpy as np

from ..problem import Problem, first_line

EMBEDS, NEGATIVE = "image_embeds", "negative_image_embeds"
MADE_BY = "prior-embed --out FILE.npz (or .npy) makes such a file"


class Embeddings(NamedTuple):
    """What an input holds."""

    name: str
    """What messages call the input."""
    rows: np.ndarray
    """`(rows, dim)` float32."""
    negative: np.ndarray | None
    """The same shape, or None if the input has none."""


def read(source):
    """The embeddings in a file, or in standard input for `-`. What kind of file it is, its first bytes tell."""
    name = "standard input" if source == "-" else f'"{source}"'
    content = read_bytes(source, name)
    if not content:
        raise Problem(f"{name} is empty; did the program that should have filled it fail?")
    if content.startswith(b"\x93NUMPY"):
        return Embeddings(name, check(load(content, name), name), None)
    if content.startswith(b"PK"):
        arrays = load(content, name)
        if EMBEDS not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise Problem(f"{name} has no array {EMBEDS} (it has {found}); {MADE_BY}")
        rows = check(arrays[EMBEDS], f"{EMBEDS} in {name}")
        negative = arrays.get(NEGATIVE)
        if negative is not None:
            negative = pair(rows, check(negative, f"{NEGATIVE} in {name}"), f"{NEGATIVE} in {name}")
        return Embeddings(name, rows, negative)
    raise Problem(f"{name} is neither .npy nor .npz; {MADE_BY}")


def read_negative(source, rows):
    """The embeddings in the file of `--negative-out`, one for each of `rows`."""
    found = read(source)
    negative = found.rows if found.negative is None else found.negative
    return pair(rows, negative, found.name)


def pair(rows, negative, name):
    """The negative embeddings, one for each row; a single one serves all rows."""
    if negative.shape[1] != rows.shape[1] or len(negative) not in (1, len(rows)):
        raise Problem(f"{name} has shape {negative.shape}, which does not go with {rows.shape} of the embeddings; "
                      "make both in one run of prior-embed")  # fmt: skip
    return np.broadcast_to(negative, rows.shape)


def read_bytes(source, name):
    """All of a file or of standard input."""
    if source == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise Problem("standard input is a terminal; pipe embeddings into it, or give a file name")
        return sys.stdin.buffer.read()
    if os.path.isdir(source):
        raise Problem(f"{name} is a folder; give the name of an .npy or .npz file")
    try:
        with open(source, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise Problem(f"cannot read {name}: {first_line(error)}; {MADE_BY}") from None


def load(content, name):
    """The array of an .npy, or a dict of those of an .npz. Pickles, which can run any code, are not read."""
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        return {key: loaded[key] if key in (EMBEDS, NEGATIVE) else None for key in loaded.files}
    except Exception as error:  # a damaged file fails in many ways: zip, zlib, header, memory
        if "allow_pickle" in str(error):
            raise Problem(f"{name} holds Python objects, not numbers; {MADE_BY}") from None
        raise Problem(f"{name} is cut off or damaged ({first_line(error)}); make it again") from None


def check(array, name):
    """The array as float32 rows."""
    if not isinstance(array, np.ndarray):  # an .npz may hold other files, which numpy gives as bytes
        raise Problem(f"{name} is no array; {MADE_BY}")
    if array.dtype.kind != "f":
        raise Problem(f"{name} holds {array.dtype}, and embeddings are float32; {MADE_BY}")
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise Problem(f"{name} has shape {array.shape}, and embeddings have (rows, dim); {MADE_BY}")
    if array.size == 0:
        raise Problem(f"{name} has shape {array.shape}, so there is no embedding in it")
    with np.errstate(over="ignore"):  # a float64 too large becomes infinite, which is looked for below
        array = array.astype(np.float32)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise Problem(f"row {bad.argmax()} of {name} holds numbers that are infinite or none (NaN); make it again")
    return array
