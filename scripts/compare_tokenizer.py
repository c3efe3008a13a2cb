"""Compares prior-embed's tokenizer with transformers' CLIPTokenizer on random texts; exits with 1 if any differs.

Run it with `scripts/reference-python scripts/compare_tokenizer.py` after `cargo build --release --example tokenize`.
The example reads a JSON string a line, and writes `{"ids":[...],"real":N}` a line: padded ids, and how many of them are
no padding.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

from transformers import CLIPTokenizer

from tools.built import RELEASE
from tools.fixtures.tokenizers import assemble
from tools.models.texts import CONTROLS, EMOJI, PUNCTUATION, SPECIAL, WHITESPACE, hard_texts
from tools.models.tokenizers import clip_merges, encode
from tools.models.weights import set_up

VARIANTS = ["clip", "bang"]
CHUNK = 5000

HARD = hard_texts()
WORDS = [merge.replace(" ", "").replace("</w>", "") for merge in clip_merges() if merge.isascii()]
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "'", "''"]
TOKENS = [
    "<|endoftext|>",
    "<|startoftext|>",
    "<|ENDOFTEXT|>",
    "<|StartOfText|>",
    "<|endoftext",
    "|>",
    "<|",
    "!",
    "</w>",
]
JOINERS = ["", "", " ", " ", "  ", "\t", "\n", "\u00a0", "\u200d", "\u0301", "!", "-"]

# Where characters behave unlike their neighbours: combining marks, Hangul, casing, digits, presentation forms, emoji.
BLOCKS = [
    (0x00, 0x7F),
    (0x80, 0x24F),
    (0x250, 0x36F),
    (0x370, 0x52F),
    (0x590, 0x6FF),
    (0x900, 0xDFF),
    (0xE00, 0xFFF),
    (0x10A0, 0x11FF),
    (0x13A0, 0x13FF),
    (0x1AB0, 0x1CFF),
    (0x1D00, 0x1FFF),
    (0x2000, 0x20CF),
    (0x20D0, 0x2BFF),
    (0x2C00, 0x2DFF),
    (0x3000, 0x33FF),
    (0x4E00, 0x9FFF),
    (0xA640, 0xABFF),
    (0xAC00, 0xD7FF),
    (0xE000, 0xF8FF),
    (0xF900, 0xFFFF),
    (0x10000, 0x10FFF),
    (0x11000, 0x11FFF),
    (0x16A00, 0x18FFF),
    (0x1D000, 0x1D7FF),
    (0x1E000, 0x1EFFF),
    (0x1F000, 0x1FBFF),
    (0x20000, 0x3FFFF),
    (0xE0000, 0xE01FF),
    (0xF0000, 0x10FFFF),
]


def character(draw):
    """A code point: of one block, or of any plane."""
    while True:
        first, last = draw.choice(BLOCKS) if draw.random() < 0.8 else (0, 0x10FFFF)
        code = draw.randint(first, last)
        if not 0xD800 <= code <= 0xDFFF:
            return chr(code)


def characters(draw):
    """Unrelated characters, or neighbours of one block."""
    count = draw.randint(0, 40)
    if draw.random() < 0.5:
        return "".join(character(draw) for _ in range(count))
    centre = ord(character(draw))
    codes = (min(max(centre + draw.randint(-40, 40), 0), 0x10FFFF) for _ in range(count))
    return "".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF)


def word(draw):
    """A word of the vocabulary in some spelling, with or without a contraction."""
    text = draw.choice(WORDS)
    text = draw.choice([text, text, text.upper(), text.title()])
    return text + (draw.choice(CONTRACTIONS) if draw.random() < 0.2 else "")


def emoji(draw):
    """Emoji glued by joiners, selectors and skin tones in any order."""
    parts = []
    for _ in range(draw.randint(1, 8)):
        parts.append(
            chr(
                draw.choice(
                    [draw.randint(0x1F300, 0x1FAFF), draw.randint(0x2600, 0x27BF), draw.randint(0x1F1E6, 0x1F1FF)]
                )
            )
        )
        parts.append(draw.choice(["", "", "\u200d", "\ufe0f", "\u20e3", chr(draw.randint(0x1F3FB, 0x1F3FF)), " "]))
    return "".join(parts)


def mutated(draw):
    """A hard text with characters dropped, doubled, swapped, replaced, or in another case or normal form."""
    text = list(draw.choice(HARD)[:300])
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(text) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            text[at : at + 1] = []
        elif kind == 1:
            text[at:at] = text[at - 1 : at] * draw.randint(1, 3)
        elif kind == 2:
            text[at : at + 2] = reversed(text[at : at + 2])
        else:
            text[at : at + draw.randint(0, 1)] = draw.choice(
                [character(draw), draw.choice(TOKENS), draw.choice(CONTRACTIONS)]
            )
    text = "".join(text)
    return draw.choice(
        [
            text,
            text,
            text,
            text.upper(),
            text.lower(),
            unicodedata.normalize("NFD", text),
            unicodedata.normalize("NFKC", text),
        ]
    )


def piece(draw):
    """One part of a text."""
    return draw.choice([characters, word, word, word, emoji, mutated, from_lists])(draw)


def from_lists(draw):
    """A special token, a contraction, or a hard text of the kinds that matter when glued to others."""
    return draw.choice([*TOKENS, *CONTRACTIONS, *WHITESPACE, *CONTROLS, *EMOJI, *PUNCTUATION, *SPECIAL])


def random_text(draw):
    """Up to 300 characters of parts and joiners; one in a hundred is much longer."""
    count, limit = (draw.randint(60, 400), 20000) if draw.random() < 0.01 else (draw.randint(1, 12), 300)
    parts = []
    for _ in range(count):
        parts += [piece(draw), draw.choice(JOINERS)]
    return "".join(parts)[:limit]


def reference(tokenizer, texts):
    """Padded ids and the number of ones in the mask, a text a row."""
    encoded = encode(tokenizer, texts, tokenizer.model_max_length)
    return list(zip(encoded.input_ids, map(sum, encoded.attention_mask)))


def example(program, folder, texts):
    """The same from the Rust tokenizer."""
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    done = subprocess.run([program, folder], input=lines, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if len(rows) != len(texts):
        raise RuntimeError(f"{program} answered {len(rows)} of {len(texts)} lines")
    return [(row["ids"], row["real"]) for row in rows]


def differences(program, variant, texts):
    """The texts on which the two sides differ, with what each gave."""
    with tempfile.TemporaryDirectory() as work:
        folder = assemble(variant, Path(work))
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            rows = zip(chunk, reference(tokenizer, chunk), example(program, folder, chunk))
            yield from ((text, expected, found) for text, expected, found in rows if expected != found)


def show(variant, text, expected, found):
    """One difference, with the ids up to where the two part."""
    same = os.path.commonprefix([expected[0], found[0]])
    print(
        f"{variant}: {json.dumps(text)}\n    the first {len(same)} ids agree; then {expected[0][len(same) :][:12]}, "
        f"{expected[1]} real, here {found[0][len(same) :][:12]}, {found[1]} real"
    )


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=100_000, help="how many texts (default 100000)")
    parser.add_argument("--program", type=Path, default=RELEASE / "examples" / "tokenize")
    parser.add_argument("--seed", type=int, default=0, help="other texts with another seed")
    parser.add_argument("--show", type=int, default=5, help="how many differences to show (default 5)")
    return parser.parse_args()


def main():
    """Splits the texts among the variants, compares, and sums up."""
    options = arguments()
    set_up()
    draw = random.Random(options.seed)
    texts = HARD + [random_text(draw) for _ in range(options.count - len(HARD))]
    compared = failed = 0
    for offset, variant in enumerate(VARIANTS):
        share = texts[: options.count][offset :: len(VARIANTS)]
        for text, expected, found in differences(options.program, variant, share):
            failed += 1
            if failed <= options.show:
                show(variant, text, expected, found)
        compared += len(share)
    print(f"{compared} texts compared, {failed} differ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
