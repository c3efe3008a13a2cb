"""The built-in decoder, which prior-embed has: `prior-embed draw` draws, and its pictures are taken apart here."""

import io
import os
import subprocess

import numpy as np
from PIL import Image

from ..built import BINARY, SCRIPTS
from ..problem import FAILED, Problem

DIM = 192
"""The length of the built-in model's embeddings."""
BATCH = 512
"""Rows that are drawn in one sheet."""


def built():
    """The program, which is built if it is not there."""
    if not os.access(BINARY, os.X_OK):
        try:
            command = [SCRIPTS / "prior-embed", "--version"]
            failed = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        except OSError as error:
            failed = error.strerror
        if failed:
            reason = "the built-in decoder is in prior-embed, which could not be built; see scripts/prior-embed"
            raise Problem(reason, FAILED)
    return BINARY


def draw(rows, program=None):
    """Yields a picture, `(side, side, 3)` uint8, for each row of `(rows, dim)` float32."""
    with np.errstate(over="ignore"):
        too_large = ~np.isfinite(np.square(rows).sum(axis=1))
    if too_large.any():
        raise Problem(f"row {too_large.argmax()} is no embedding of the built-in model: its numbers are too large")
    program = program or built()
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        yield from np.split(np.asarray(sheet(part, program)), len(part))


def sheet(rows, program):
    """The pictures of rows in one, each below the one before."""
    content = io.BytesIO()
    np.save(content, rows)
    command = [program, "draw", "-", "--out", "-", "--scale", "1", "--columns", "1", "--quiet"]
    try:
        done = subprocess.run(command, input=content.getvalue(), capture_output=True, check=False)
    except OSError as error:
        raise Problem(f"cannot run {program}: {error.strerror}", FAILED) from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"{program} ended with {done.returncode}"]
        raise Problem(lines[-1].removeprefix("prior-embed: ").removeprefix("error: "), FAILED)
    with Image.open(io.BytesIO(done.stdout)) as picture:
        return picture.convert("RGB")
