"""The little grammar that captions need: articles and plurals."""

import re

IRREGULAR = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "mouse": "mice", "tooth": "teeth",
    "foot": "feet", "goose": "geese", "wolf": "wolves", "leaf": "leaves", "knife": "knives", "ox": "oxen",
    "loaf": "loaves", "scarf": "scarves", "cactus": "cacti", "fish": "fish", "sheep": "sheep", "deer": "deer",
    "broccoli": "broccoli", "garlic": "garlic", "rice": "rice",
}  # fmt: skip
NUMBERS = ("no", "one", "two", "three", "four", "five")
# A name's noun is the word before the first of these: `face with tongue`, `bowl of soup`.
AFTER_NOUN = r" (?:with|of|in|on|and|without|behind|for|at|from|showing|wearing|holding|over) "


def is_plural(name):
    """Whether a name is plural as it stands: `scissors`, but not `cactus` or `compass`."""
    noun = re.split(AFTER_NOUN, name)[0].split()[-1]
    return noun.endswith("s") and not noun.endswith(("ss", "us", "is", "ous"))


def with_article(name):
    """`a red apple`, `an owl`; proper names, plurals and what counts itself stay as they are."""
    if name.startswith("flag of "):
        return f"the {name}"
    if name[0].isupper() or name[0].isdigit() or is_plural(name):
        return name
    return f"{'an' if name[0].lower() in 'aeiou' and not name.startswith(('uni', 'eu', 'one')) else 'a'} {name}"


def plural(name):
    """`red apples`, `faces with tongue`."""
    if is_plural(name):
        return name
    parts = re.split(f"({AFTER_NOUN})", name, maxsplit=1)
    *before, noun = parts[0].split(" ")
    return " ".join([*before, plural_noun(noun)]) + "".join(parts[1:])


def plural_noun(noun):
    """One word's plural."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def counted(name, count):
    """`a red apple`, `three red apples`."""
    return with_article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"
