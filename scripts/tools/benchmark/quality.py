"""Measures how close bf16 and int8 embeddings are to those in f32.

All three come from prior-embed, on the same captions and seeds. Ends with 1 if a mean cosine misses its threshold or a
run fails. Arguments after `--` go to prior-embed as they are.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from ..built import BINARY
from ..command_line import number, parse_with_extra
from .captions import LIMIT, captions
from .children import BenchError
from .machine import usable_cores
from .report import table
from .runs import PriorEmbed, Unsupported, cosines
from .shapes import ensure_model

STEPS = 25


def parse(program, arguments):
    """The command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = usable_cores()
    parser.add_argument("--model", type=Path, help="a folder in diffusers' layout (default: karlo's shape)")
    parser.add_argument("--prompts", type=number(1, LIMIT), default=200, help="number of captions (default 200)")
    parser.add_argument("--bf16-at-least", type=float, default=0.9999, help="mean cosine wanted (default 0.9999)")
    parser.add_argument("--int8-at-least", type=float, default=0.999, help="mean cosine wanted (default 0.999)")
    parser.add_argument("--binary", type=Path, default=BINARY, help="default: what cargo build --release made")
    parser.add_argument("--threads", type=number(1, cores), default=cores, help="default: all cores")
    return parse_with_extra(parser, arguments)


def row(dtype, cosine, at_least):
    """One line of the table."""
    verdict = "pass" if cosine.mean() >= at_least else "miss"
    figures = (cosine.mean(), np.percentile(cosine, 1), cosine.min())
    return [dtype, str(len(cosine)), *(f"{value:.6f}" for value in figures), f"{at_least:g}", verdict]


def run(options):
    """Runs all types and prints the table; whether every threshold is met."""
    binary = PriorEmbed(options.binary, options.model or ensure_model("karlo"), options.threads, options.extra)
    prompts = captions(options.prompts)

    def embed(dtype):
        print(f"quality: {dtype}, {len(prompts)} prompts, {STEPS} steps", file=sys.stderr)
        return binary.run(dtype, prompts, STEPS).embeds

    expected, rows = embed("f32"), []
    for dtype, at_least in {"bf16": options.bf16_at_least, "int8": options.int8_at_least}.items():
        try:
            rows.append(row(dtype, cosines(embed(dtype), expected), at_least))
        except Unsupported as error:
            rows.append([dtype, "0", *["—"] * 3, f"{at_least:g}", f"not measured: {error}"])
    print(table(["cosine to f32", "prompts", "mean", "1st percentile", "least", "mean at least", "verdict"], rows))
    return all(line[-1] != "miss" for line in rows)


def main(program, arguments):
    """Exit status 0 if no threshold is missed."""
    try:
        return 0 if run(parse(program, arguments)) else 1
    except BenchError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 1
