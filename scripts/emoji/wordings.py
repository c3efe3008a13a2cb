"""Captions of single emoji: names, keywords and paraphrases in many templates, and the ones kept for evaluation."""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

from .english import with_article
from .split import order_is_held_out, unseen_keyword, wording_is_held_out

# {a} is a name with its article, {n} the bare name.
PLAIN_TEMPLATES = ("{a}", "{n}", "the {n}")
BARE_TEMPLATES = (
    "{n} emoji", "the {n} emoji", "emoji: {n}", "{n} icon", "a cartoon {n}", "{n} clip art", "a symbol for {n}",
    "picture: {n}", "{n} symbol", "{n} sign", "{n} picture", "the emoji called {n}", "emoji {n}", "icon: {n}", "{n} image",
    "a {n} pictogram", "{n} graphic", "the word {n} as a picture", "what {n} looks like", "{n} drawing", "one {n}",
)  # fmt: skip
# A caption is often one of these, some {a}, and some words more. The more of them, the less does it matter which.
MEDIA = (
    "picture", "image", "drawing", "photo", "icon", "cartoon", "pictogram", "print", "doodle", "logo", "graphic", "portrait",
    "rendering", "poster", "stamp", "badge", "card", "decal", "glyph", "figure", "snapshot", "view", "close-up", "miniature",
    "mural", "collage", "watercolor", "engraving", "tattoo", "mosaic", "silhouette", "model", "replica", "design",
    "thumbnail", "banner", "scribble", "depiction", "wallpaper", "cutout", "magnet", "postcard", "screenshot", "emoji",
)  # fmt: skip
ADJECTIVES = (
    "nice", "cute", "colorful", "flat", "clean", "plain", "beautiful", "modern", "detailed", "minimal", "bright", "lovely",
    "digital", "funny", "quick", "fine",
)  # fmt: skip
LINKS = ("of", "of", "of", "with", "showing", "that has", "depicting", "for")
LEADS = (
    "draw", "please draw", "show", "please show me", "show me", "i want", "i would like", "i need", "can you show", "can i see",
    "let us see", "make", "make me", "find", "find me", "look at", "you see", "we have", "there is", "this is", "that is",
    "it is", "it shows", "this shows", "the picture shows", "what you see is", "imagine", "think of", "here is", "here you have",
    "just", "only", "nothing but", "simply", "one can see", "i drew", "she wants", "they like", "this must be", "surely",
)  # fmt: skip
TAILS = (
    ", nothing else", "on its own", "alone", "in the picture", ", please", "in this image", "as an emoji", "as an icon",
    "in color", "to look at", "for you", "and that is all", "for my page", "once more", ", drawn well",
)  # fmt: skip
# Sounds of words that mean nothing.
ONSETS = ("b", "br", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "k", "l", "m", "n", "p", "pl", "r", "s", "sk", "st", "t", "tr", "v", "w", "z")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "oo", "ou")
CODAS = ("", "", "", "ck", "ft", "l", "ll", "m", "n", "nd", "r", "rt", "s", "sh", "st", "t", "tion", "ng", "ing", "er")
HELD_OUT_TEMPLATES = (
    "an illustration that shows {a}", "a sketch of {a}", "could you draw {a} for me", "a sticker of {a}",
    "here we see {a}", "a simple image with {a} in it", "give me {a}", "clip art of {a}", "a painting of {a}",
)  # fmt: skip
KEYWORD_TEMPLATES = ("something about {w}", "{w} emoji", "an emoji for {w}", "{w} icon", "tags: {w}", "it is about {w}", "#{w}")


@dataclass(frozen=True)
class Wording:
    """A text for an emoji that training never sees."""

    code: str
    text: str
    kind: str
    """`template` (a name in a new template), `order` (a name's words in a new order), `keywords` (a new set of
    keywords that only this emoji has all of), `vague` (one that others have too), `unseen` (a new keyword)."""


def choose(rng, options):
    """One of them."""
    return options[int(rng.integers(len(options)))]


def nonsense(rng):
    """A word that means nothing, as `flindor`: what stands around a name is not always known, and is not to matter."""
    return "".join(choose(rng, ONSETS) + choose(rng, VOWELS) + choose(rng, CODAS) for _ in range(1 + rng.integers(3)))


def lead(rng):
    """Words that a caption may begin with before it comes to what there is to see; some of them nobody has heard of."""
    kind = rng.random()
    if kind < 0.1:
        return " ".join(nonsense(rng) for _ in range(1 + rng.integers(3)))
    if kind < 0.5:
        return choose(rng, LEADS)
    medium = choose(rng, MEDIA) if kind < 0.8 else nonsense(rng)
    if rng.random() < 0.3:
        medium = f"{choose(rng, ADJECTIVES)} {medium}"
    return f"{with_article(medium)} {choose(rng, LINKS)}"


def random_template(rng):
    """A template for a name."""
    kind = rng.random()
    if kind < 0.3:
        return choose(rng, PLAIN_TEMPLATES)
    if kind < 0.43:
        return choose(rng, BARE_TEMPLATES)
    words = f"{lead(rng)} {{a}}" if rng.random() < 0.85 else "{a}"
    tail = choose(rng, TAILS) if rng.random() < 0.25 else ""
    if rng.random() < 0.05:
        tail = " ".join(nonsense(rng) for _ in range(1 + rng.integers(3)))
    return f"{words}{tail}" if tail.startswith(",") else f"{words} {tail}".strip()


def fill(template, name):
    """A template with a name in it."""
    return template.format(a=with_article(name), n=name)


def orders(name):
    """Another order of a name's words: `apple, red`."""
    *before, last = name.split(" ")
    if not before or len(before) > 3 or "," in name:
        return []
    rest = " ".join(before)
    return [f"{last} {rest}", f"{last}, {rest}", f"{last} - {rest}", f"{last} ({rest})"]


def plain(text):
    """A text's words alone, as it is compared."""
    return " ".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


@cache
def sets_of_words(texts):
    """The words of each text, in alphabetical order."""
    return {tuple(sorted(plain(text).split())) for text in texts}


def is_a_name(emoji, text):
    """Whether a text's words are those of a name in some order: then it is no set of keywords, but an order."""
    return tuple(sorted(plain(text).split())) in sets_of_words(tuple(emoji.names))


def is_held_out(emoji, text):
    """Whether training may not use this text for this emoji: an order of a name's words, or a set of keywords."""
    if plain(text) in map(plain, (*emoji.names, *emoji.keywords, *emoji.broader)):
        return False
    if is_a_name(emoji, text):
        return order_is_held_out(emoji, plain(text))
    return wording_is_held_out(emoji, [word for word in plain(text).split() if word != "and"])


def known_keywords(emoji):
    """Its keywords without the one that is kept from training; broader terms as well."""
    unseen = unseen_keyword(emoji)
    return [word for word in dict.fromkeys([*emoji.keywords, *emoji.broader]) if word != unseen]


def pick_name(emoji, rng):
    """Mostly the name that Unicode gives it."""
    return emoji.name if not emoji.aliases or rng.random() < 0.6 else choose(rng, emoji.aliases)


def train_caption(emoji, rng):
    """A random caption of a single emoji for training."""
    kind = rng.random()
    if kind < 0.56:
        return fill(random_template(rng), pick_name(emoji, rng))
    if kind < 0.62:
        others = [text for text in orders(pick_name(emoji, rng)) if not is_held_out(emoji, text)]
        return choose(rng, others) if others else fill(random_template(rng), emoji.name)
    return keyword_caption(emoji, rng)


def keyword_caption(emoji, rng):
    """Some of its keywords, at times after its name, and at times all of them: texts of every length."""
    known = known_keywords(emoji)
    # The length first: a long list may be drawn even if there are few keywords.
    count = min(len(known), int(rng.choice([1, 2, 3, 4, 12], p=[0.2, 0.3, 0.25, 0.15, 0.1])))
    for _ in range(8):
        words = [known[at] for at in rng.permutation(len(known))[:count]]
        with_name = rng.random() < 0.35
        text = choose(rng, (", ", " ", " ", " and ")).join(words)
        if with_name:
            text = f"{pick_name(emoji, rng)}{choose(rng, (', ', ': ', ' '))}{text}"
        if not is_held_out(emoji, text):
            if with_name or rng.random() < 0.5:
                return text
            return f"{lead(rng)} {text}" if rng.random() < 0.4 else choose(rng, KEYWORD_TEMPLATES).format(w=text)
    return fill(random_template(rng), emoji.name)


def held_out_wordings(emoji, everything, rng):
    """Texts for evaluation: two names in new templates, one new order, two new sets of keywords, one new keyword."""
    found = []
    add = lambda kind, text: found.append(Wording(emoji.code, text, kind))
    for at in rng.permutation(len(HELD_OUT_TEMPLATES))[:2]:
        add("template", fill(HELD_OUT_TEMPLATES[at], pick_name(emoji, rng)))
    others = [text for name in emoji.names for text in orders(name) if is_held_out(emoji, text)]
    if others:
        add("order", choose(rng, others))
    known = known_keywords(emoji)
    sets = [words for n in (2, 3) for words in combinations(known, n)]
    sets = [words for words in sets if is_held_out(emoji, " ".join(words)) and not is_a_name(emoji, " ".join(words))]
    for at in rng.permutation(len(sets))[:2]:
        words = [str(word) for word in rng.permutation(sets[at])]
        is_vague = any(other is not emoji and covers(other, words) for other in everything)
        add("vague" if is_vague else "keywords", choose(rng, (", ", " ", " and ")).join(words))
    if unseen := unseen_keyword(emoji):
        add("unseen", unseen)
    return found


def covers(emoji, words):
    """Whether all the words are said of an emoji."""
    said = emoji.words.union(emoji.broader)
    return all(word in said for word in words)
