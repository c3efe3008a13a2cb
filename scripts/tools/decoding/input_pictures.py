"""The pictures that a decoder is given beside the embeddings."""

from PIL import Image, ImageOps

from .decoders import PICTURES, option
from ..problem import Problem, first_line

MODES = {"image": "RGB", "mask": "L", "hint": "RGB"}


def read(options):
    """Those that are given, by the names of their options, turned as their EXIF data say."""
    paths = {name: getattr(options, name) for name in PICTURES}
    return {name: read_one(path, name) for name, path in paths.items() if path is not None}


def read_one(path, name):
    """A picture in the mode that its option takes."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert(MODES[name])
    except Exception as error:  # a damaged file fails in many ways
        raise Problem(f'{option(name)}: cannot read the picture "{path}": {first_line(error)}') from None
