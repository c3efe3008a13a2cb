"""Pictures: enlarging, grids, and files that appear whole or not at all."""

import errno
import io
import math
import os
import secrets
import sys
from pathlib import Path

from PIL import Image

from ..problem import FAILED, Problem, first_line

ENLARGERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
MOST_PIXELS = 500_000_000
"""The largest grid; it takes 1.5 GB of memory."""


def enlarge(pixels, scale, filter_name):
    """An array `(height, width, 3)` uint8 as a picture `scale` times as large."""
    picture = Image.fromarray(pixels)
    if scale == 1:
        return picture
    return picture.resize((picture.width * scale, picture.height * scale), ENLARGERS[filter_name])


class Grid:
    """Puts pictures of one size into a grid, row by row, as they come."""

    def __init__(self, count, columns=None):
        """`count` pictures; by default the grid is about as wide as it is high."""
        self.count = count
        self.columns = min(columns or math.ceil(count**0.5), count)
        self.canvas = None
        self.filled = 0

    def add(self, picture):
        """The next picture."""
        if self.canvas is None:
            self.canvas = Image.new("RGB", self.size(picture.size), "white")
        row, column = divmod(self.filled, self.columns)
        self.canvas.paste(picture, (column * picture.width, row * picture.height))
        self.filled += 1

    def size(self, cell):
        """`(width, height)` of the whole for cells of a size."""
        width, height = self.columns * cell[0], math.ceil(self.count / self.columns) * cell[1]
        if width * height > MOST_PIXELS:
            raise Problem(f"a grid of {width} x {height} pixels is too large; use --out-dir, or a smaller --scale")
        return width, height


def check_file(path, overwrite):
    """Finds out before the work begins what would make it useless."""
    name = f'"{path}"'
    if not path.parent.is_dir():
        raise Problem(f'cannot write {name}: there is no folder "{path.parent}"; make it first')
    if path.is_dir():
        raise Problem(f"{name} is a folder; give a file name, or --out-dir")
    if path.exists() and not path.is_file():
        raise Problem(f"{name} is no regular file; --out - writes to standard output")
    if path.exists() and not overwrite:
        raise Problem(f"{name} is there already; give another name, or --overwrite to replace it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise Problem(f'cannot write {name}: the folder "{path.parent}" cannot be written to')


def check_folder(folder, count, overwrite):
    """The same for a folder of pictures, which need not be there."""
    if folder.is_dir():
        for row in range(count):
            check_file(path_in(folder, row), overwrite)
    elif os.path.lexists(folder):
        raise Problem(f'"{folder}" is no folder; give another --out-dir')


def make_folder(folder):
    """Makes the folder of `check_folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(f'cannot make the folder "{folder}": {first_line(error)}; give another --out-dir') from None


def path_in(folder, row):
    """The file of a row."""
    return folder / f"{row:05}.png"


def write_file(picture, path, overwrite):
    """Writes a PNG beside its final place and renames it there once it is complete."""
    target = Path(os.path.realpath(path))  # of a link, the file it leads to is replaced and not the link
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            # Not a temporary file of the library, which nobody else could read.
            with open(part, "xb") as file:
                file.write(encode(picture))
                file.flush()
                os.fsync(file.fileno())
            if target.exists() and not overwrite:
                raise Problem(f'"{path}" appeared while the pictures were drawn; give another name, or --overwrite')
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise Problem(f'cannot write "{path}": {first_line(error)}', FAILED) from None


def write_stdout(content):
    """Writes bytes to standard output; a reader that went away is no error."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python writes what is left again when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            raise Problem(f"cannot write to standard output: {first_line(error)}", FAILED) from None


def encode(picture):
    """A picture as the bytes of a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
