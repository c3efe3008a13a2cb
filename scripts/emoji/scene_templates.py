"""Templates of captions of scenes: many that training uses, put together from parts, and some for evaluation alone.

`{0}` is a thing with its article, `{n0}` the bare name, `{c0}` the thing with its number, `{p}` a place.
"""

from .wordings import choose

TEMPLATES = {
    "single": ("{0}",),
    "small": (
        "a small {n0}", "a tiny {n0}", "a little {n0} in the middle", "a small {n0} in the center", "a mini {n0}",
        "a {n0}, very small", "{0} of small size",
    ),
    "large": (
        "a big {n0}", "a large {n0}", "a huge {n0}", "a very big {n0}", "a giant {n0}", "a {n0}, very large",
        "{0} of large size", "{0} that fills the picture",
    ),
    "at": (
        "{0} in the {p}", "a small {n0} in the {p}", "{0} at the {p}", "in the {p}, {0}", "there is {0} in the {p}",
        "{0}, {p}", "{0} is in the {p}", "{0} sits in the {p}", "the {p} has {0}", "{p}: {0}", "at the {p} there is {0}",
        "{0} located in the {p}", "only {0} in the {p}", "look at the {p} to find {0}",
    ),
    "count": (
        "{c0}", "{c0}", "there are {c0}", "a picture of {c0}", "{c0} together", "an image of {c0}", "just {c0}",
        "{c0} in one picture", "here are {c0}", "a group of {c0}", "you see {c0}", "not more than {c0}", "all in all {c0}",
    ),
    "beside": (
        "{0} to the left of {1}", "{1} to the right of {0}", "{0} on the left and {1} on the right",
        "{1} on the right and {0} on the left", "{0} left of {1}", "{1} right of {0}", "on the left {0}, on the right {1}",
        "{0} with {1} to its right", "{1} with {0} to its left", "from left to right: {0} and {1}",
        "{0} stands to the left of {1}", "{1} is to the right of {0}", "{0} is on the left side of {1}",
        "to the left of {1} is {0}", "to the right of {0} there is {1}", "left: {0}, right: {1}", "{0} and to its right {1}",
        "{0} at the left, {1} at the right", "the left side shows {0} and the right side {1}", "{1} stands right of {0}",
        "{0} on the left side, {1} on the right side", "{1} and to its left {0}", "first {0}, then {1} to the right of it",
    ),
    "above": (
        "{0} above {1}", "{1} below {0}", "{0} on top of {1}", "{1} under {0}", "{0} over {1}", "{1} beneath {0}",
        "{0} at the top and {1} at the bottom", "{1} at the bottom and {0} at the top", "from top to bottom: {0} and {1}",
        "{0} is over {1}", "{1} is under {0}", "{1} is beneath {0}", "above {1} there is {0}", "below {0} is {1}",
        "top: {0}, bottom: {1}", "{0} stands on {1}", "{0} rests on top of {1}", "{0} floats above {1}", "{0} and under it {1}",
        "the upper one is {0} and the lower one is {1}", "{0} in the upper half and {1} in the lower half", "{1} lies below {0}",
        "{1} and over it {0}",
    ),
    "groups": (
        "{c0} above {c1}", "{c1} below {c0}", "{c0} on top of {c1}", "{c1} under {c0}",
        "{c0} at the top and {c1} at the bottom", "{c0} over {c1}", "top: {c0}, bottom: {c1}", "{c0} and below them {c1}",
        "{c1} at the bottom and {c0} at the top", "{c0} in the upper half and {c1} in the lower half", "{c1} beneath {c0}",
    ),
    "row": (
        "{0}, {1} and {2} in a row", "from left to right: {0}, {1} and {2}", "a row of {0}, {1} and {2}",
        "{1} between {0} on the left and {2} on the right", "{0} on the left, {1} in the middle, {2} on the right",
        "three in a row: {0}, {1}, {2}", "left to right: {0}, {1}, {2}", "left {0}, middle {1}, right {2}",
        "a line of {0}, {1} and {2}", "{0}, to its right {1}, and to its right {2}",
    ),
    "column": (
        "{0}, {1} and {2} in a column", "from top to bottom: {0}, {1} and {2}", "a column of {0}, {1} and {2}",
        "{1} between {0} above and {2} below", "{0} at the top, {1} in the middle, {2} at the bottom",
        "three in a column: {0}, {1}, {2}", "top to bottom: {0}, {1}, {2}", "top {0}, middle {1}, bottom {2}",
        "{0} over {1} over {2}", "a tower of {0}, {1} and {2}", "{0}, under it {1}, and under it {2}",
    ),
    "triangle": (
        "{0} above {1} and {2}", "{1} and {2} below {0}", "{0} at the top, {1} at the bottom left, {2} at the bottom right",
        "{0} on top of {1} and {2}", "{0} at the top, {1} and {2} under it", "{1} and {2} side by side under {0}",
        "top: {0}, bottom left: {1}, bottom right: {2}", "{0} over {1} and {2}", "below {0} are {1} on the left and {2} on the right",
    ),
}  # fmt: skip
# Only for evaluation.
HELD_OUT_TEMPLATES = {
    "single": ("a scene with {0}",),
    "small": ("a {n0} that is small",),
    "large": ("a {n0} that is big",),
    "at": ("you see {0} in the {p}", "{0} placed in the {p}"),
    "count": ("we see {c0}", "exactly {c0}"),
    "beside": ("{0} is left of {1}", "the left one is {0}, the right one is {1}"),
    "above": ("{0} is above {1}", "{0} sits on top of {1}"),
    "groups": ("{c0} are above {c1}",),
    "row": ("side by side: {0}, then {1}, then {2}",),
    "column": ("stacked: {0}, then {1}, then {2}",),
    "triangle": ("a triangle of {0} above {1} and {2}",),
}
# What a thing in a place of a form may be said to be, one for each thing.
PLACES = {
    "left": ("on the left", "at the left", "left", "to the left", "on the left side", "in the left half", "on the left-hand side"),
    "right": (
        "on the right", "at the right", "right", "to the right", "on the right side", "in the right half", "on the right-hand side",
    ),
    "top": ("at the top", "on top", "above", "top", "in the upper half", "in the upper part", "up", "on the upper side"),
    "bottom": ("at the bottom", "below", "bottom", "in the lower half", "in the lower part", "down", "underneath"),
    "middle": ("in the middle", "in the center", "middle", "between them", "at the center", "in between"),
    "bottom left": ("at the bottom left", "bottom left", "below on the left", "in the lower left", "down on the left"),
    "bottom right": ("at the bottom right", "bottom right", "below on the right", "in the lower right", "down on the right"),
}  # fmt: skip
SLOTS = {
    "beside": ("left", "right"), "above": ("top", "bottom"), "groups": ("top", "bottom"), "row": ("left", "middle", "right"),
    "column": ("top", "middle", "bottom"), "triangle": ("top", "bottom left", "bottom right"),
}  # fmt: skip
PLACED = ("{t} {p}", "{t} {p}", "{p} {t}", "{p}: {t}", "{p}, {t}", "{p} there is {t}", "{p} is {t}", "{t} is {p}", "{p} you find {t}",
          "{t} ({p})")  # fmt: skip
JOINS = (", ", ", ", " and ", "; ", ", and ", ". ")
RELATIONS = {
    "beside": (
        ("to the left of", "left of", "on the left of", "on the left side of", "just left of"),
        ("to the right of", "right of", "on the right of", "on the right side of", "just right of"),
    ),
    "above": (
        ("above", "over", "on top of", "higher than", "right above"),
        ("below", "under", "beneath", "underneath", "lower than", "right below"),
    ),
}  # fmt: skip
RELATIONS["groups"] = RELATIONS["above"]
VERBS = ("", "", "", "is", "stands", "lies", "appears", "is drawn", "is seen", "stays", "can be seen", "is found")
SEQUENCES = {
    "row": ("from left to right", "left to right", "in a row", "in a line", "lined up", "side by side", "one beside the other"),
    "column": (
        "from top to bottom", "top to bottom", "in a column", "stacked", "one above the other", "in a stack", "one under the other",
    ),
    "beside": ("from left to right", "left to right", "side by side from left to right"),
    "above": ("from top to bottom", "top to bottom", "one above the other", "stacked", "in a stack"),
}  # fmt: skip
LISTS = {
    2: ("{0} and {1}", "{0}, {1}", "{0} then {1}", "first {0}, then {1}", "{0} followed by {1}"),
    3: ("{0}, {1} and {2}", "{0}, {1}, {2}", "{0} then {1} then {2}", "first {0}, then {1}, then {2}", "{0} and {1} and {2}"),
}  # fmt: skip
BEFORE_COUNT = ("there are", "i see", "a picture with", "only", "you can see", "show", "draw", "nothing but", "this is", "all of")
AFTER_COUNT = ("", "", "together", "in the picture", "and nothing else", "in all", "of the same kind")


def placed_template(form, rng):
    """Every thing with its place, in any order."""
    style = choose(rng, PLACED)
    slots = SLOTS[form]
    thing = "{{c{}}}" if form == "groups" else "{{{}}}"
    said = [style.format(t=thing.format(at), p=choose(rng, PLACES[place])) for at, place in enumerate(slots)]
    order = range(len(slots)) if rng.random() < 0.7 else rng.permutation(len(slots))
    return choose(rng, JOINS).join(said[at] for at in order)


def relation_template(form, rng):
    """One of two things by where the other is."""
    way = int(rng.integers(2))
    relation, verb = choose(rng, RELATIONS[form][way]), "" if form == "groups" else choose(rng, VERBS)
    thing = "{{c{}}}" if form == "groups" else "{{{}}}"
    one, other = thing.format(way), thing.format(1 - way)
    if rng.random() < 0.25 and " than" not in relation:
        return f"{relation} {other} {verb or 'there is'} {one}"
    return " ".join(filter(None, (one, verb, relation, other)))


def sequence_template(form, rng):
    """The things in order."""
    things, order = choose(rng, LISTS[len(SLOTS[form])]), choose(rng, SEQUENCES[form])
    return choose(rng, ("{o}: {t}", "{t}, {o}", "{t} {o}", "{o}, {t}")).format(o=order, t=things)


def composed_template(form, rng):
    """A template put together from parts; None for a form that has none."""
    if form == "at":
        verb, there = choose(rng, (*VERBS, "put", "located", "drawn")), choose(rng, ("in", "at"))
        return " ".join(filter(None, ("{0}", verb, there, "the {p}")))
    if form == "count":
        return f"{choose(rng, BEFORE_COUNT)} {{c0}} {choose(rng, AFTER_COUNT)}".strip()
    kinds = [kind for kind, forms in ((placed_template, SLOTS), (relation_template, RELATIONS), (sequence_template, SEQUENCES))
             if form in forms]  # fmt: skip
    return choose(rng, kinds)(form, rng) if kinds else None


def random_template(form, rng):
    """One of training's templates."""
    if rng.random() < 0.5:
        template = composed_template(form, rng)
        if template and template not in HELD_OUT_TEMPLATES[form]:
            return template
    return choose(rng, TEMPLATES[form])
