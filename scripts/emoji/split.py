"""What training never sees. Decided by hashes, so that it is the same in every run and on every machine."""

import zlib
from itertools import combinations


def share(*parts):
    """A number from 0 to 1 that depends on the parts alone."""
    return zlib.crc32("\t".join(parts).encode()) / 2**32


def wording_is_held_out(emoji, words):
    """Whether these words, in whatever order, are kept from training as a wording for this emoji."""
    return share("wording", emoji.code, *sorted(words)) < 0.2


def order_is_held_out(emoji, words):
    """Whether a name's words in this order, whatever stands between them, are kept from training."""
    return share("order", emoji.code, words) < 0.3


def unseen_keyword(emoji):
    """The keyword that training never sees with this emoji; None if it has too few of them."""
    in_names = {word for name in emoji.names for word in name.lower().split()}
    candidates = [word for word in emoji.keywords if not in_names & set(word.split())]
    return min(candidates, key=lambda word: share("keyword", emoji.code, word)) if len(candidates) >= 3 else None


def pair_is_held_out(first, second):
    """Whether no training scene shows these two things together."""
    return share("pair", *sorted((first, second))) < 0.1


def place_is_held_out(thing, place):
    """Whether no training scene shows this thing at this place of a layout."""
    return share("place", thing, place) < 0.1


def scene_is_held_out(things, places):
    """Whether a scene has a pair of things, or a thing at a place, that training never sees."""
    return any(pair_is_held_out(*pair) for pair in combinations(sorted(set(things)), 2)) or any(
        place_is_held_out(*both) for both in zip(things, places)
    )
