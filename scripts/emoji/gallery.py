"""Draws the README's pictures: what the built-in model makes of some prompts, by the prior-embed binary and decode.py's
decoder. `scripts/reference-python -m emoji.gallery` in scripts/."""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.built import BINARY, ROOT
from tools.decoding import builtin, nearest

ASSETS = ROOT / "assets"
PLAIN = (
    "a red apple", "a cat", "a rocket", "a pizza", "an umbrella", "a snowman", "the flag of Japan", "a guitar", "a house",
    "a smiling face with sunglasses",
)  # fmt: skip
SCENES = (
    "a dog to the left of a cat", "a cat to the left of a dog", "a tree above a car", "three strawberries",
    "a small fish in the top left corner", "two bananas on a pink background", "a crown on a blue background",
    "a big pumpkin next to a small ghost", "a sun, a moon and a star in a row", "a waving hand with dark skin",
)  # fmt: skip
SEEDS, GUIDANCE = "a butterfly", "a cactus on a yellow background"
SIZE, MARGIN, LABEL = 128, 8, 44


def embed(prompts, *options):
    """Embeddings from the binary."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "embeds.npy"
        given = [word for prompt in prompts for word in ("--prompt", prompt)]
        subprocess.run([BINARY, *given, "--out", out, "--quiet", *options], check=True)
        return np.load(out)


def lines_of(text, width):
    """Words as lines of at most so many characters."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def grid(rows):
    """Rows of `(label, picture)` as one picture."""
    columns = max(map(len, rows))
    width, height = columns * (SIZE + MARGIN) + MARGIN, len(rows) * (SIZE + LABEL + MARGIN) + MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=12)
    for down, row in enumerate(rows):
        for across, (label, picture) in enumerate(row):
            x, y = MARGIN + across * (SIZE + MARGIN), MARGIN + down * (SIZE + LABEL + MARGIN)
            canvas.paste(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.LANCZOS), (x, y))
            pen.rectangle((x - 1, y - 1, x + SIZE, y + SIZE), outline=(220, 220, 220))
            for at, line in enumerate(lines_of(label, 21)[:3]):
                pen.text((x, y + SIZE + 2 + 14 * at), line, fill=(40, 40, 40), font=font)
    return canvas


def labelled(index, labels, embeds):
    """Cells: under each picture its label and the nearest emoji's name."""
    pictures = builtin.load(ASSETS / "decoder" / "decoder.safetensors").draw(embeds)
    names = [index.nearest(row, 1)[0][0].name for row in embeds]
    return [(f"{label} -> {name}", picture) for label, name, picture in zip(labels, names, pictures)]


def main():
    """Draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS / "gallery.png")
    options = parser.parse_args()
    index = nearest.load(ASSETS / "index")
    rows = []
    for prompts in (PLAIN, SCENES):
        cells = labelled(index, prompts, embed(prompts))
        rows += [cells[:5], cells[5:]]
    rows.append(labelled(index, [f"{SEEDS}, seed {seed}" for seed in range(5)], embed([SEEDS], "--samples-per-prompt=5")))
    scales = ("1", "2", "4", "8")
    of_scales = np.concatenate([embed([GUIDANCE], f"--guidance-scale={scale}") for scale in scales])
    rows.append(labelled(index, [f"{GUIDANCE}, guidance {scale}" for scale in scales], of_scales))
    grid(rows).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
