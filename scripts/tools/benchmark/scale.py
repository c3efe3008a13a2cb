"""Measures the memory and the overhead of long runs.

Embeds so many captions with the built-in model, reads what --stats tells, and prints a table. Ends with 1 if the largest
run takes 50 MB more than the smallest, or if more than 3 % of it is neither the model nor tokenizing.
"""

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path

from ..built import BINARY

MAX_GROWTH = 50e6
MAX_OVERHEAD = 0.03


def write_captions(path, rows):
    """Captions of 1 to 40 words, the same for the same number of rows."""
    words = "red blue old small two three apple cat house tree rain clock on under beside a the happy".split()
    random_number = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            file.write(" ".join(random_number.choices(words, k=random_number.randint(1, 40))) + "\n")


def run(options, rows, folder):
    """What the statistics of a run say."""
    captions, stats = folder / "captions.txt", folder / "stats.json"
    write_captions(captions, rows)
    command = [
        options.binary, "--prompts", captions, "--out", folder / f"embs.{options.format}", "--overwrite", "--stats",
        stats, "--steps", options.steps, "--quiet",
    ]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True)
    return json.loads(stats.read_text())


def overhead(stats):
    """The share of all workers' time in which they neither load nor tokenize nor compute."""
    seconds, workers = stats["seconds"], stats["settings"]["workers"]
    return 1 - (seconds["load"] + seconds["text"] + seconds["prior"]) / (workers * seconds["total"])


def main(program, arguments):
    """Exit status 0 if memory and overhead are within bounds."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--format", default="npy")
    options = parser.parse_args(arguments)
    print("| rows | seconds | rows/s | peak memory, MB | reading, s | writing, s | overhead |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    results = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            stats = run(options, rows, Path(folder))
        seconds = stats["seconds"]
        print(
            f"| {rows} | {seconds['total']:.1f} | {stats['rows_per_second']:.0f} | {stats['peak_rss_bytes'] / 1e6:.0f} "
            f"| {seconds['read']:.2f} | {seconds['write']:.2f} | {overhead(stats):.1%} |",
            flush=True,
        )
        results.append(stats)
    growth = results[-1]["peak_rss_bytes"] - results[0]["peak_rss_bytes"]
    share = overhead(results[-1])
    print(f"\nmemory grows by {growth / 1e6:.0f} MB (at most {MAX_GROWTH / 1e6:.0f}); overhead {share:.1%} (at most {MAX_OVERHEAD:.0%})")
    return 1 if growth > MAX_GROWTH or share > MAX_OVERHEAD else 0
