"""Reads a folder of embeddings with embedding-reader and searches it with faiss: python3 scripts/check_layout.py.

The two packages come from PyPI into a virtual environment in the project's cache. Every row is its own nearest neighbour,
or the script ends with 1.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import environments
from tools.built import BINARY, SCRIPTS
from tools.problem import Problem


def embed(binary, folder, rows):
    """Makes a folder of so many embeddings in several files."""
    captions = folder / "captions.txt"
    captions.write_text("".join(f"caption number {row}\n" for row in range(rows)), encoding="utf-8")
    command = [binary, "--prompts", captions, "--out-dir", folder / "embs", "--rows-per-file", str(rows // 3 + 1)]
    subprocess.run([*command, "--normalize", "--quiet"], check=True)
    return folder / "embs"


def check(folder, rows):
    """Reads and searches; runs inside the environment."""
    import embedding_reader
    import faiss
    import numpy as np

    reader = embedding_reader.EmbeddingReader(
        str(folder / "img_emb"), metadata_folder=str(folder / "metadata"), meta_columns=["caption"], file_format="parquet_npy"
    )
    assert reader.count == rows, f"{reader.count} rows in place of {rows}"
    parts = list(reader(batch_size=64, show_progress=False))
    embeddings = np.concatenate([part for part, _ in parts]).astype("float32")
    prompts = [prompt for _, meta in parts for prompt in meta["caption"]]
    assert prompts == [f"caption number {row}" for row in range(rows)], "the prompts are not in order"
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5), "not of length one"
    index = faiss.index_factory(embeddings.shape[1], "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(embeddings)
    _, nearest = index.search(embeddings, 1)
    found = int((nearest[:, 0] == np.arange(rows)).sum())
    print(f"{reader.count} rows of {reader.dimension} numbers in {folder.name}; {found} are their own nearest neighbours")
    return 0 if found == rows else 1


def main():
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--check", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.check, arguments.rows)
    try:
        python = environments.layout().ensure(lambda message: print(f"check_layout: {message}", file=sys.stderr))
    except Problem as problem:
        sys.exit(f"check_layout: {problem}")
    with tempfile.TemporaryDirectory() as folder:
        embeddings = embed(arguments.binary, Path(folder), arguments.rows)
        command = [python, __file__, "--check", embeddings, "--rows", str(arguments.rows)]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}).returncode


if __name__ == "__main__":
    sys.exit(main())
