"""The emoji's pictures in all styles, drawn once from their packages into one array in the cache."""

import io
import json
import os
import re

import numpy as np
from PIL import Image

from .packages import cache, read_members

SIDE = 96
STYLES = ("noto", "twemoji", "fluent", "3d", "blob", "firefox", "emojione")
"""Art styles; all emoji are drawn in the first two."""
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONE_CODES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
# The icon packages of styles, and whether they say which characters their icons stand for.
ICONS = {
    "noto": ("@iconify-json/noto", True), "twemoji": ("@iconify-json/twemoji", True),
    "fluent": ("@iconify-json/fluent-emoji-flat", True), "blob": ("@iconify-json/noto-v1", False),
    "firefox": ("@iconify-json/fxemoji", False), "emojione": ("@iconify-json/emojione", False),
}  # fmt: skip
VERSION = 1
"""Of the array's contents."""


def plain_code(code):
    """A code without variation selectors, in lower case: packages differ in whether they write them."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def toned_code(code, tone):
    """The code with a skin tone, which comes after the first character."""
    first, *rest = plain_code(code).split("-")
    return "-".join([first, TONE_CODES[TONES.index(tone)], *rest])


def slug(name):
    """A name as icon packages write it: `red-apple`."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"[’']", "", name.lower()).replace("&", "and")).strip("-")


class Icons:
    """An icon package: SVG pictures by code or name."""

    def __init__(self, package, has_codes):
        files = read_members(package, lambda path: path in ("icons.json", "chars.json"))
        self.set = json.loads(files["icons.json"])
        codes = json.loads(files["chars.json"]) if has_codes else {}
        self.codes = {plain_code(code): name for code, name in codes.items()}

    def find(self, emoji, tone):
        """The icon's name, or None."""
        code = toned_code(emoji.code, tone) if tone else plain_code(emoji.code)
        if code in self.codes:
            return self.codes[code]
        if tone:
            return None
        names = (name for one in emoji.names for name in (slug(one), slug(one).replace("-", "")))
        return next((name for name in names if name in self.set["icons"] or name in self.set.get("aliases", {})), None)

    def draw(self, name):
        """`(SIDE, SIDE, 4)` uint8."""
        import resvg_py  # needed once, to fill the cache

        name = self.set.get("aliases", {}).get(name, {}).get("parent", name)
        icon = self.set["icons"][name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = (icon.get(key, self.set.get(key, 16)) for key in ("width", "height"))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{SIDE}" '
            f'height="{SIDE}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
        return read_png(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))


def read_png(content):
    """A picture file as `(SIDE, SIDE, 4)` uint8."""
    with Image.open(io.BytesIO(bytes(content))) as picture:
        picture = picture.convert("RGBA")
        if picture.size != (SIDE, SIDE):
            # With alpha multiplied in, since transparent pixels have a colour of their own.
            picture = picture.convert("RGBa").resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("RGBA")
        return np.asarray(picture)


def draw_all(emoji):
    """`((code, style, tone), picture)` of everything there is; tone is None for the plain one."""
    for style, (package, has_codes) in ICONS.items():
        icons = Icons(package, has_codes)
        for one in emoji:
            for tone in (None, *TONES):
                if name := icons.find(one, tone):
                    yield (one.code, style, tone), icons.draw(name)
    renders = read_members("@lobehub/fluent-emoji-3d", lambda path: path.endswith(".webp"))
    renders = {plain_code(path.split("/")[-1].removesuffix(".webp")): content for path, content in renders.items()}
    for one in emoji:
        for tone in (None, *TONES):
            code = toned_code(one.code, tone) if tone else plain_code(one.code)
            if code in renders:
                yield (one.code, "3d", tone), read_png(renders[code])
    # The icons of Noto have no flags.
    flags = read_members("emoji-datasource-google", lambda path: path.startswith("img/google/64/"))
    flags = {plain_code(path.split("/")[-1].removesuffix(".png")): content for path, content in flags.items()}
    for one in emoji:
        yield (one.code, "noto", None), read_png(flags[plain_code(one.code)])


def read_pictures(emoji):
    """`{(code, style, tone): (SIDE, SIDE, 4) uint8}`, views of an array that lies in the cache."""
    path = cache() / f"pictures-{VERSION}.npy"
    keys = path.with_suffix(".json")
    if not keys.is_file():
        found = {}
        for key, picture in draw_all(emoji):
            # What comes first stays.
            found.setdefault(key, picture)
        np.save(path.with_suffix(".new.npy"), np.stack(list(found.values())))
        os.replace(path.with_suffix(".new.npy"), path)
        keys.write_text(json.dumps(list(found)), encoding="utf-8")
    array = np.load(path, mmap_mode="r")
    return {tuple(key): array[at] for at, key in enumerate(json.loads(keys.read_text(encoding="utf-8")))}
