"""Composed scenes: one to three things with counts, sizes, places and a background; their captions and pictures."""

from dataclasses import dataclass, replace
from itertools import accumulate

from .drawing import CANVAS, COLORS, Placed, color
from .english import counted, with_article
from .pictures import STYLES
from .scene_templates import random_template
from .split import scene_is_held_out
from .views import STYLE_WORDS, place_words, with_background
from .wordings import choose, lead

UNIT = CANVAS / 64
# Places and sizes below are those of a canvas of 64. Where a thing alone can be: centre x, centre y.
CORNERS = {
    "top left": (16, 16), "top right": (48, 16), "bottom left": (16, 48), "bottom right": (48, 48),
    "top": (32, 15), "bottom": (32, 49), "left": (15, 32), "right": (49, 32), "center": (32, 32),
}  # fmt: skip
# Where `count` copies of one thing are, and at which size.
COUNTS = {
    2: (30, ((16, 32), (48, 32))), 3: (28, ((32, 17), (16, 47), (48, 47))),
    4: (28, ((17, 17), (47, 17), (17, 47), (47, 47))),
}  # fmt: skip
PAIR_SIZES = {"same": (30, 30), "big-small": (38, 20), "small-big": (20, 38)}
ROW = ((11, 32), (32, 32), (53, 32))
COLUMN = ((32, 11), (32, 32), (32, 53))
TRIANGLE = ((32, 17), (16, 47), (48, 47))
FORMS = ("single", "small", "large", "at", "count", "beside", "above", "groups", "row", "column", "triangle")
WEIGHTS = (0.08, 0.05, 0.04, 0.13, 0.13, 0.2, 0.16, 0.07, 0.05, 0.05, 0.04)
ALONE = ("single", "small", "large", "at")
"""Forms of one thing: training draws those with `views` instead."""
# Of two things next to each other, whichever is on the left.
UNORDERED = ("{0} and {1}", "{0} next to {1}", "{0} beside {1}", "{0} with {1}", "{0} together with {1}")
# Of captions that may follow "a picture of".
BEGINNINGS = ("a ", "an ", "two ", "three ", "four ")
ADJECTIVES = {38: ("big", "large"), 20: ("small", "tiny", "little"), 30: ("",)}


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Things are in reading order: left to right, top to bottom."""

    form: str
    things: tuple
    """Codes of emoji."""
    detail: str = ""
    """The place of `at`, the sizes of `beside` and `above`."""
    counts: tuple = ()
    """Of `count` and `groups`."""
    background: str = "white"

    def layout(self):
        """Everything but the things and the background, as one name."""
        return " ".join(filter(None, [self.form, self.detail, *map(str, self.counts)]))

    def places(self):
        """For every thing, where in the layout it is."""
        return tuple(f"{self.layout()} {at}" for at in range(len(self.things)))

    def is_held_out(self):
        """Whether training never shows it. A thing alone in the middle is always shown."""
        return self.form not in ("single", "small", "large") and scene_is_held_out(self.things, self.places())

    def objects(self, rng):
        """What to draw, moved a little at random."""
        reach = 2 if self.form in ("single", "large") else 1
        shifted = lambda at: UNIT * (at + rng.uniform(-reach, reach))
        return [Placed(code, UNIT * size, shifted(x), shifted(y)) for code, size, x, y in self.arrangement()]

    def arrangement(self):
        """`(code, size, x, y)` of everything in its exact place."""
        things, counts = self.things, self.counts
        match self.form:
            case "single" | "small" | "large":
                return [(things[0], {"single": 56, "small": 24, "large": 60}[self.form], 32, 32)]
            case "at":
                return [(things[0], 24, *CORNERS[self.detail])]
            case "count":
                size, places = COUNTS[counts[0]]
                return [(things[0], size, x, y) for x, y in places]
            case "beside":
                return [(code, size, x, 32) for code, size, x in zip(things, PAIR_SIZES[self.detail], pair(self.detail))]
            case "above":
                return [(code, size, 32, y) for code, size, y in zip(things, PAIR_SIZES[self.detail], pair(self.detail))]
            case "groups":
                across = {1: (32,), 2: (16, 48)}
                return [(code, 28, x, y) for code, n, y in zip(things, counts, (17, 47)) for x in across[n]]
            case "row":
                return [(code, 20, *place) for code, place in zip(things, ROW)]
            case "column":
                return [(code, 20, *place) for code, place in zip(things, COLUMN)]
            case "triangle":
                return [(code, 28, *place) for code, place in zip(things, TRIANGLE)]


def pair(detail):
    """Where the centres of two things are, so that they fill the canvas."""
    return {"same": (16, 48), "big-small": (20, 52), "small-big": (12, 44)}[detail]


LAYOUTS = sorted(
    {form for form in FORMS if form not in ("at", "count", "beside", "above", "groups")}
    | {f"at {place}" for place in CORNERS}
    | {f"count {count}" for count in COUNTS}
    | {f"{form} {detail}" for form in ("beside", "above") for detail in PAIR_SIZES}
    | {"groups 1 2", "groups 2 1", "groups 2 2"}
)


def scene_things(emoji):
    """The emoji that scenes are made of: things with short names, not people, flags or signs."""
    groups = ("smileys", "nature", "food", "places", "activities", "objects")
    plain = [one for one in emoji if one.group in groups or one.subgroup == "heart"]
    return [one for one in plain if scene_names(one) and one.subgroup not in ("time", "hotel")]


def scene_names(one):
    """Names of one or two words, the ones that scenes use."""
    return [name for name in one.names if len(name.split()) <= 2 and len(name) <= 20 and ":" not in name]


def random_scene(things, rng, *, held_out=False):
    """A scene of training or, with `held_out`, one that training never sees."""
    while True:
        scene = any_scene(things, rng)
        if scene.is_held_out() == held_out:
            return scene


def random_style(scene, sprites, rng):
    """A style that all of a scene's things come in."""
    return choose(rng, [style for style in STYLES if all(sprites.has(code, style) for code in scene.things)])


def any_scene(things, rng):
    """A scene of either split."""
    form = FORMS[int(rng.choice(len(FORMS), p=WEIGHTS))]
    needed = {"beside": 2, "above": 2, "groups": 2, "row": 3, "column": 3, "triangle": 3}.get(form, 1)
    codes = tuple(things[at].code for at in rng.choice(len(things), needed, replace=False))
    return Scene(form, codes, *details(form, rng), background=background(rng))


def details(form, rng):
    """Random `(detail, counts)` that fit the form."""
    match form:
        case "at":
            return choose(rng, list(CORNERS)), ()
        case "beside" | "above":
            return choose(rng, ("same", "same", "big-small", "small-big")), ()
        case "count":
            return "", (choose(rng, list(COUNTS)),)
        case "groups":
            return "", choose(rng, ((1, 2), (2, 1), (2, 2)))
    return "", ()


def background(rng):
    """White as often as not."""
    return "white" if rng.random() < 0.4 else choose(rng, list(COLORS))


# How often a variant differs in what: the order of the things, the background, the arrangement; else in one thing.
CHANGES = (0.35, 0.25, 0.2)


def variants(scene, things, rng, count, changes=CHANGES):
    """Other scenes that are easily taken for this one: the same things in another arrangement, size, number or colour,
    or one thing exchanged."""
    found = {}
    while len(found) < count:
        other = changed(scene, things, rng, changes)
        if other != scene and not same_meaning(other, scene):
            found[other] = None
    return list(found)


def changed(scene, things, rng, changes):
    """One or two random changes."""
    of_order, of_background, of_arrangement = accumulate(changes)
    for _ in range(1 + (rng.random() < 0.3)):
        kind = rng.random()
        if kind < of_order and len(scene.things) > 1:
            scene = replace(scene, things=tuple(scene.things[at] for at in rng.permutation(len(scene.things))))
        elif kind < of_background:
            scene = replace(scene, background=choose(rng, list(COLORS)))
        elif kind < of_arrangement:
            same_number = [form for form in FORMS if number(form) == len(scene.things)]
            form = choose(rng, same_number)
            detail, counts = details(form, rng)
            scene = replace(scene, form=form, detail=detail, counts=counts)
        else:
            at, new = int(rng.integers(len(scene.things))), choose(rng, things).code
            if new not in scene.things:
                scene = replace(scene, things=(*scene.things[:at], new, *scene.things[at + 1 :]))
    return scene


def number(form):
    """How many kinds of things a form has."""
    return {"beside": 2, "above": 2, "groups": 2, "row": 3, "column": 3, "triangle": 3}.get(form, 1)


def same_meaning(one, other):
    """Whether two scenes look so alike that a caption need not tell them apart."""
    close = {frozenset(("small", "at center")), frozenset(("single", "large"))}
    layouts = frozenset((one.layout(), other.layout()))
    return one.things == other.things and one.background == other.background and (len(layouts) == 1 or layouts in close)


def caption(scene, names, rng, *, style=None, tells_style=0.3, templates=None, leads=0.3, exact=False):
    """A caption, in one of training's templates or of those given. `names` maps codes to lists of names; `exact` leaves nothing out, but the style is told only by a share
    of the captions. Of those that can, a share has words before it: a picture of."""
    chosen = [choose(rng, names[code]) if rng.random() < 0.4 else names[code][0] for code in scene.things]
    sizes = PAIR_SIZES.get(scene.detail, (30, 30)) if scene.form in ("beside", "above") else (30,) * len(chosen)
    nouns = [f"{choose(rng, ADJECTIVES[size])} {name}".strip() for size, name in zip(sizes, chosen)]
    if scene.form == "beside" and not exact and rng.random() < 0.12:
        text = choose(rng, UNORDERED).format(*(with_article(nouns[at]) for at in rng.permutation(2)))
    else:
        template = choose(rng, templates[scene.form]) if templates else random_template(scene.form, rng)
        text = template.format(
            *map(with_article, nouns),
            n0=nouns[0],
            p=place_words(scene.detail, rng),
            **{f"c{at}": counted(noun, count) for at, (noun, count) in enumerate(zip(nouns, scene.counts))},
        )
    if text.startswith(BEGINNINGS) and rng.random() < leads:
        text = f"{lead(rng)} {text}"
    # Whether it is told does not depend on which it is: see `views`.
    if exact or rng.random() < 0.6:
        text = with_background(text, scene.background, rng)
    if style and rng.random() < tells_style:
        text = f"{text}, {choose(rng, STYLE_WORDS[style])}"
    return text


def draw(scene, sprites, style, rng):
    """`(96, 96, 3)` uint8."""
    return sprites.draw(color(scene.background), scene.objects(rng), style)
