"""Draws the README's pictures: what the built-in model makes of some prompts, by the prior-embed binary and its
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
    "a smiling face with sunglasses", "an octopus", "a cactus", "a sailboat", "a crown", "a butterfly", "a mushroom",
)  # fmt: skip
TOLD = (
    "an owl, upside down", "a small fish in the top left corner", "a rocket on a black background", "a bee, tilted to the right",
    "a dragon in 3d", "a strawberry in flat fluent style", "a dog in blob style", "a waving hand with dark skin tone",
)  # fmt: skip
SCENES = (
    "a dog to the left of a cat", "a cat to the left of a dog", "a tree above a car", "three strawberries",
    "two bananas on a pink background", "a big pumpkin next to a small ghost", "a sun, a moon and a star in a row",
    "four bees on a light blue background",
)  # fmt: skip
SEEDS, GUIDANCE, BEST_OF = "a butterfly", "a teapot", "a penguin"
ENDS, EDIT = ("a red apple", "a rocket"), ("a car", "a car", "a fire engine")
SIZE, MARGIN, LABEL, COLUMNS = 96, 8, 36, 8


def embed(prompts, *options):
    """Embeddings from the binary."""
    return run([word for prompt in prompts for word in ("--prompt", prompt)], options)


def run(words, options):
    """What the binary writes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "embeds.npy"
        subprocess.run([BINARY, *words, "--out", out, "--quiet", *options], check=True)
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
    font = ImageFont.load_default(size=10)
    for down, row in enumerate(rows):
        for across, (label, picture) in enumerate(row):
            x, y = MARGIN + across * (SIZE + MARGIN), MARGIN + down * (SIZE + LABEL + MARGIN)
            canvas.paste(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.LANCZOS), (x, y))
            pen.rectangle((x - 1, y - 1, x + SIZE, y + SIZE), outline=(220, 220, 220))
            for at, line in enumerate(lines_of(label, 17)[:3]):
                pen.text((x, y + SIZE + 2 + 11 * at), line, fill=(40, 40, 40), font=font)
    return canvas


def labelled(index, labels, embeds):
    """Cells: under each picture its label and the nearest emoji's name."""
    pictures = builtin.draw(embeds, BINARY)
    names = [index.nearest(row, 1)[0][0].name for row in embeds]
    return [(f"{label} -> {name}", picture) for label, name, picture in zip(labels, names, pictures)]


def main():
    """Draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS / "gallery.png")
    options = parser.parse_args()
    index = nearest.load(ASSETS / "index")
    cells = lambda labels, embeds: labelled(index, labels, embeds)
    rows = [cells(part, embed(part)) for part in (PLAIN[:COLUMNS], PLAIN[COLUMNS:], TOLD, SCENES)]
    fair = "--guidance-scale=1"
    of_seeds = embed([SEEDS], f"--samples-per-prompt={COLUMNS}", fair)
    rows.append(cells([f"{SEEDS}, seed {seed}" for seed in range(COLUMNS)], of_seeds))
    scales = (1, 2, 4, 8)
    of_scales = [embed([GUIDANCE], f"--guidance-scale={scale}", "--samples-per-prompt=2") for scale in scales]
    rows.append(cells([f"{GUIDANCE}, guidance {scale}" for scale in scales for _ in range(2)], np.concatenate(of_scales)))
    between = run(["interpolate", *ENDS], ["--slerp", f"--frames={COLUMNS}"])
    rows.append(cells([f"{ENDS[0]} to {ENDS[1]}, {at} of {COLUMNS - 1}" for at in range(COLUMNS)], between))
    source, before, after = EDIT
    turned = run(["edit", source, "--from", before, "--to", after, "--theta", "0..0.5"], [f"--frames={COLUMNS}"])
    rows.append(cells([f"{before} to {after}, {at} of {COLUMNS - 1}" for at in range(COLUMNS)], turned))
    best = [embed([BEST_OF], fair, f"--seed={seed}", f"--best-of={count}") for count in (1, 16) for seed in range(0, 64, 16)]
    rows.append(cells([f"{BEST_OF}, best of {count}" for count in (1, 16) for _ in range(4)], np.concatenate(best)))
    grid(rows).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
