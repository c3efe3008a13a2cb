"""Measures `prior-embed score --in`, and compares what it finds with numpy.

Writes a bank of random rows in float16, searches it for queries some of which are rows of the bank with noise, and prints a
table. The file is in the page cache. Ends with 1 if a row differs from that of a search in float64 over the same numbers.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from ..built import BINARY

BLOCK = 4096
TOP = 10


def write_bank(path, rows, dim):
    """A bank of clusters, as embeddings of pictures are."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((1000, dim), np.float32)
    bank = np.lib.format.open_memmap(path, "w+", np.float16, (rows, dim))
    for start in range(0, rows, BLOCK):
        stop = min(rows, start + BLOCK)
        noise = random.standard_normal((stop - start, dim), np.float32)
        bank[start:stop] = centres[random.integers(0, len(centres), stop - start)] + noise
    bank.flush()
    return bank


def unit(rows):
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def expected(bank, queries):
    """The numbers of the nearest rows of each query, by a search in float64."""
    found = [(np.empty(0), np.empty(0, int)) for _ in queries]
    directions = unit(queries.astype(np.float64))
    for start in range(0, len(bank), BLOCK):
        block = unit(bank[start : start + BLOCK].astype(np.float64))
        for query, cosines in enumerate(directions @ block.T):
            cosines = np.concatenate([found[query][0], cosines])
            rows = np.concatenate([found[query][1], np.arange(start, start + len(block))])
            best = np.argsort(-cosines, kind="stable")[:TOP]
            found[query] = cosines[best], rows[best]
    return [rows.tolist() for _, rows in found]


def search(binary, bank, queries):
    """Seconds of a process, and the numbers of the nearest rows of each query."""
    command = [binary, "score", queries, "--in", bank, "--top", str(TOP), "--json"]
    start = time.perf_counter()
    output = subprocess.run([str(part) for part in command], check=True, capture_output=True).stdout
    seconds = time.perf_counter() - start
    lines = [json.loads(line) for line in output.splitlines()]
    return seconds, [[score["row"] for score in line["scores"]] for line in lines]


def main(program, arguments):
    """Exit status 0 if everything that was found is right."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        bank = write_bank(folder / "bank.npy", options.rows, options.dim)
        print(f"{options.rows} rows of {options.dim}, float16, {bank.nbytes / 1e9:.2f} GB; the {TOP} nearest")
        print("| queries | seconds, median | best | rows that differ from numpy |")
        print("| ---: | ---: | ---: | ---: |")
        for count in options.queries:
            random = np.random.default_rng(count)
            chosen = bank[random.integers(0, options.rows, count)].astype(np.float32)
            queries = chosen + 2 * random.standard_normal(chosen.shape, np.float32)
            np.save(folder / "queries.npy", queries)
            runs = [search(options.binary, folder / "bank.npy", folder / "queries.npy") for _ in range(options.repeats)]
            seconds = sorted(run[0] for run in runs)
            right = expected(bank, queries)
            differing = sum(one != other for rows, own in zip(runs[-1][1], right) for one, other in zip(rows, own))
            print(f"| {count} | {seconds[len(seconds) // 2]:.2f} | {seconds[0]:.2f} | {differing} |", flush=True)
            wrong += differing
    return 1 if wrong else 0
