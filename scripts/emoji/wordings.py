"""Captions of single emoji: names, keywords and paraphrases in many templates, and the ones kept for evaluation."""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

from .english import with_article
from .split import order_is_held_out, unseen_keyword, wording_is_held_out

# {a} is a name with its article, {n} the bare name.
TEMPLATES = (
    "{a}", "{a}", "{a}", "{n}", "{n}", "the {n}", "{n} emoji", "an emoji of {a}", "the {n} emoji", "emoji: {n}",
    "a picture of {a}", "an image of {a}", "a drawing of {a}", "a photo of {a}", "an icon of {a}", "{n} icon",
    "a cartoon of {a}", "a cartoon {n}", "this is {a}", "just {a}", "{a}, nothing else", "a small picture showing {a}",
    "illustration of {a}", "{n} clip art", "draw {a}", "a nice picture of {a}", "{a} on its own", "there is {a}",
    "please show me {a}", "i want {a}", "a symbol for {n}", "it shows {a}", "picture: {n}", "a close-up of {a}",
)  # fmt: skip
HELD_OUT_TEMPLATES = (
    "an illustration that shows {a}", "a sketch of {a}", "could you draw {a} for me", "a sticker of {a}",
    "here we see {a}", "a simple image with {a} in it", "give me {a}", "clip art of {a}", "a painting of {a}",
)  # fmt: skip
KEYWORD_TEMPLATES = ("{w}", "{w}", "{w}", "something about {w}", "{w} emoji", "a picture of {w}", "an emoji for {w}", "{w} icon")
STYLES = {
    "google": ("in google style", "google style", "in noto style", "in the style of noto emoji", "by google"),
    "twitter": ("in twitter style", "twitter style", "twemoji style", "in the style of twemoji", "by twitter"),
}
TONES = ("with {} skin", "with {} skin tone", "{} skin tone", "with {} skin color")


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
    if kind < 0.62:
        return fill(choose(rng, TEMPLATES), pick_name(emoji, rng))
    if kind < 0.70:
        others = [text for text in orders(pick_name(emoji, rng)) if not is_held_out(emoji, text)]
        return choose(rng, others) if others else fill(choose(rng, TEMPLATES), emoji.name)
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
            return text if with_name else choose(rng, KEYWORD_TEMPLATES).format(w=text)
    return fill(choose(rng, TEMPLATES), emoji.name)


def held_out_wordings(emoji, everything, rng):
    """Texts for evaluation: two names in new templates, one new order, two new sets of keywords, one new keyword."""
    found = []
    add = lambda kind, text: found.append(Wording(emoji.code, text, kind))
    for template in rng.permutation(len(HELD_OUT_TEMPLATES))[:2]:
        add("template", fill(HELD_OUT_TEMPLATES[template], pick_name(emoji, rng)))
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
