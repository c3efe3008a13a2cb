"""What a picture of one emoji shows besides the emoji: things that a caption may tell and mostly leaves open.

Whether a caption tells one of them does not depend on its value. So what is left open has, given the caption, the
distribution that pictures are drawn from: `SHARES`.
"""

from dataclasses import dataclass

from .drawing import COLORS, Placed
from .english import with_article
from .pictures import STYLES, TONES
from .split import place_is_held_out
from .wordings import choose

PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
ANGLES = {"upright": 0.0, "left": -25.0, "right": 25.0, "upside down": 180.0}
SIZES = {"large": 84.0, "medium": 60.0, "small": 37.0}
REACH = {"large": 0.0, "medium": 16.0, "small": 25.0}
"""How far from the middle of the canvas a place is."""
SHARES = {
    "background": {name: 0.4 if name == "white" else 0.6 / (len(COLORS) - 1) for name in COLORS},
    "rotation": {"upright": 0.7, "left": 0.1, "right": 0.1, "upside down": 0.1},
    "size": {"large": 0.6, "medium": 0.2, "small": 0.2},
    "place": {name: 0.28 if name == "center" else 0.09 for name in PLACES},
    "mirrored": {False: 0.9, True: 0.1},
}
"""Of pictures. Places are those of what is not large; large emoji are in the center. Styles are equally frequent."""
TONED = 0.3
"""The share of toned pictures where there are any."""
STYLE_WORDS = {
    "noto": ("in google style", "google style", "in noto style", "in the style of noto emoji", "by google"),
    "twemoji": ("in twitter style", "twitter style", "twemoji style", "in the style of twemoji", "by twitter"),
    "fluent": ("in fluent style", "in flat fluent style", "by microsoft", "in the style of fluent emoji", "microsoft style"),
    "3d": ("in 3d", "3d style", "as a 3d render", "rendered in 3d", "in 3d style"),
    "blob": ("in blob style", "blob style", "as an android blob", "in the old android style", "in the style of blob emoji"),
    "firefox": ("in firefox style", "firefox style", "by mozilla", "in the style of fxemoji", "mozilla style"),
    "emojione": ("in emojione style", "emojione style", "by emojione", "in the style of emoji one", "joypixels style"),
}
TONE_WORDS = ("with {} skin", "with {} skin tone", "{} skin tone", "with {} skin color")
ROTATION_WORDS = {
    "upright": ("upright", "standing upright", "not tilted", "in an upright position"),
    "left": ("tilted to the left", "leaning left", "rotated to the left", "tilted left", "turned counterclockwise"),
    "right": ("tilted to the right", "leaning right", "rotated to the right", "tilted right", "turned clockwise"),
    "upside down": ("upside down", "turned upside down", "on its head", "flipped upside down"),
}
MIRRORED_WORDS = {
    False: ("not mirrored", "not flipped"),
    True: ("mirrored", "as a mirror image", "flipped horizontally", "facing the other way", "mirror-inverted"),
}
SIZE_WORDS = {
    "large": ("large", "big", "filling the picture", "very big", "of large size"),
    "medium": ("medium-sized", "of medium size", "not too big", "medium size"),
    "small": ("small", "tiny", "little", "of small size", "very small"),
}
SIZE_ADJECTIVES = {"large": ("big", "large", "huge"), "medium": ("medium-sized",), "small": ("small", "tiny", "little")}
PLACE_TEMPLATES = (
    "{0} in the {p}", "{0} at the {p}", "in the {p}, {0}", "there is {0} in the {p}", "{0}, {p}", "{0} is in the {p}",
    "{0} sits in the {p}", "the {p} has {0}", "{p}: {0}", "at the {p} there is {0}", "{0} located in the {p}",
    "only {0} in the {p}", "look at the {p} to find {0}", "{0} in the {p}", "{0} in the {p} of the picture",
)  # fmt: skip
BACKGROUNDS = (
    "{0} on a {1} background", "{0} on {1}", "{0} against a {1} background", "{0}, {1} background", "{0} with a {1} background",
    "{0}. the background is {1}", "{0} in front of a {1} background", "{0}, the background is {1}", "{0} on {1} ground",
    "{0}; background: {1}", "{0} before a {1} wall", "on a {1} background: {0}",
)  # fmt: skip
SILENT = 0.45
"""The share of captions that tell nothing of this, and of the others that of each thing told."""


@dataclass(frozen=True)
class View:
    """How one emoji is shown."""

    style: str
    tone: str | None = None
    background: str = "white"
    rotation: str = "upright"
    size: str = "large"
    place: str = "center"
    mirrored: bool = False

    def objects(self, code, rng):
        """What to draw, moved, turned and scaled a little at random."""
        down, across = divmod(PLACES.index(self.place), 3)
        jitter = lambda reach: rng.uniform(-reach, reach)
        x, y = (48 + (at - 1) * REACH[self.size] + jitter(2.5) for at in (across, down))
        size = SIZES[self.size] * (1 + jitter(0.05))
        angle = ANGLES[self.rotation] + jitter(6.0 if self.rotation in ("left", "right") else 2.0)
        return [Placed(code, size, x, y, self.tone, angle, self.mirrored)]


def draw_value(shares, rng):
    """A random value, as often as its share says."""
    values = list(shares)
    return values[int(rng.choice(len(values), p=list(shares.values())))]


def random_view(emoji, sprites, rng, style=None):
    """A view as pictures of training have it."""
    drawn = choose(rng, [one for one in STYLES if sprites.has(emoji.code, one)])
    style, tone = style or drawn, None
    if rng.random() < TONED:
        tone = choose(rng, TONES)
        tone = tone if sprites.has(emoji.code, style, tone) else None
    values = {name: draw_value(shares, rng) for name, shares in SHARES.items()}
    if values["size"] == "large":
        values["place"] = "center"
    elif place_is_held_out(emoji.code, f"at {values['place']} 0"):
        values["place"] = "center"
    return View(style, tone, **values)


def tell(text, view, rng, told):
    """A caption that also says some things of a view: those in `told`, in words of its own each."""
    if view.tone and "tone" in told:
        text = f"{text} {choose(rng, TONE_WORDS).format(view.tone)}"
    phrases = [
        choose(rng, words[value])
        for name, words, value in (
            ("rotation", ROTATION_WORDS, view.rotation), ("mirrored", MIRRORED_WORDS, view.mirrored),
            ("size", SIZE_WORDS, view.size),
        )
        if name in told
    ]  # fmt: skip
    if "place" in told:
        phrases.append(f"in the {place_words(view.place, rng)}")
    phrases = [phrases[at] for at in rng.permutation(len(phrases))]
    if phrases:
        link = choose(rng, (", ", ", ", " and "))
        text = f"{text}{choose(rng, (', ', ', ', ' '))}{link.join(phrases)}"
    if "background" in told:
        text = with_background(text, view.background, rng)
    if "style" in told:
        text = f"{text}, {choose(rng, STYLE_WORDS[view.style])}"
    return text


def what_is_told(rng):
    """Which things a caption tells."""
    if rng.random() < SILENT:
        return {"tone"} if rng.random() < 0.5 else set()
    names = ("tone", "style", "background", "rotation", "mirrored", "size", "place")
    return {name for name in names if rng.random() < (0.25 if name == "mirrored" else SILENT)}


def place_template(name, view, rng, told):
    """A name with its place, and its size as an adjective; what it says is taken out of `told`."""
    text = name
    if "size" in told:
        text = f"{choose(rng, SIZE_ADJECTIVES[view.size])} {text}"
        told.discard("size")
    text = choose(rng, PLACE_TEMPLATES).format(with_article(text), p=place_words(view.place, rng))
    told.discard("place")
    return text


def with_background(text, background, rng):
    """A caption with what is behind it all."""
    return choose(rng, BACKGROUNDS).format(text, background).replace(" a orange", " an orange")


def place_words(place, rng):
    """`top left` as a person says it."""
    if place == "center":
        return choose(rng, ("center", "middle"))
    return f"{place} corner" if " " in place and rng.random() < 0.7 else place
