"""Synonyms and broader terms of nouns, from WordNet's own database files (wndb(5WN))."""

# The lexicographer files that nouns come from, by number (lexnames(5WN)).
FILES = {4: "act", 5: "animal", 6: "artifact", 8: "body", 13: "food", 17: "object", 18: "person", 19: "phenomenon", 20: "plant"}
# Broader than these a term says nothing.
VAGUE = {"entity", "object", "whole", "artifact", "instrumentality", "thing", "matter", "organism", "living thing"}


class WordNet:
    """Noun senses by word."""

    def __init__(self, files):
        """`files` holds `dict/index.noun` and `dict/data.noun`."""
        self.data = files["dict/data.noun"]
        self.senses = {}
        for line in files["dict/index.noun"].decode().splitlines():
            if not line.startswith(" "):
                word, _, count, *rest = line.split()
                self.senses[word.replace("_", " ")] = [int(offset) for offset in rest[-int(count) :]]

    def synset(self, offset):
        """Its file's name, its words, and the offsets of what is directly broader."""
        line = self.data[offset : self.data.index(b"\n", offset)].decode().split("|")[0].split()
        count = int(line[3], 16)
        words = [word.replace("_", " ").lower() for word in line[4 : 4 + 2 * count : 2]]
        pointers = line[5 + 2 * count :]
        broader = [int(pointers[at + 1]) for at in range(0, len(pointers) - 3, 4) if pointers[at] == "@"]
        return FILES.get(int(line[1])), words, broader

    def related(self, word, files):
        """Synonyms of a word's first sense in one of `files`, and up to three steps of broader terms."""
        for offset in self.senses.get(word, ()):
            file, words, parents = self.synset(offset)
            if file in files:
                return [name for name in words if name != word], self.broader(parents)
        return [], []

    def broader(self, parents, steps=3):
        """One term for each step up, until they say nothing."""
        terms = []
        while parents and len(terms) < steps:
            _, words, parents = self.synset(parents[0])
            if words[0] in VAGUE:
                break
            terms.append(words[0])
        return terms
