"""Checks that prior-embed and Python's huggingface_hub share a cache: each finds the other's downloads of models and of
data sets, offline.

Run it with `scripts/reference-python scripts/check_hub_cache.py` after `cargo build --release --bins --examples`. Both
download from the tests' server, not from the hub. Exits with 1 if anything differs.
"""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from tools.built import BINARY, RELEASE, ROOT

MODELS = ROOT / "tests/fixtures/pipelines"
NAMES = ["kandinsky22", "kandinsky22_sharded_bf16", "stable_unclip_layout", "fp16_variant"]
DATASET = "owner/captions"
# The files of a data set; those in data/ are rows.
ROWS = {"README.md": "a card\n", "data/a.txt": "a red apple\n", "data/b/c.csv": "caption\ntwo cats\n"}

PYTHON = """
import json, sys
from huggingface_hub import snapshot_download, hf_hub_download, try_to_load_from_cache, scan_cache_dir
{body}
"""
DOWNLOAD = "print(json.dumps(snapshot_download(sys.argv[1])))"
DOWNLOAD_ROWS = "print(json.dumps(snapshot_download(sys.argv[1], repo_type='dataset')))"
FIND_ROWS = """
from huggingface_hub import get_cached_repo_tree
repo = sys.argv[1]
# Raises unless all files are there that match.
folder = snapshot_download(repo, repo_type="dataset", local_files_only=True, allow_patterns="data/*")
listed = {file.path: file.size for file in get_cached_repo_tree(repo, repo_type="dataset")}
entry = next(entry for entry in scan_cache_dir().repos if entry.repo_type == "dataset")
warnings = [str(warning) for warning in scan_cache_dir().warnings]
print(json.dumps({
    "folder": folder, "listed": listed, "id": entry.repo_id, "files": entry.nb_files, "refs": sorted(entry.refs),
    "warnings": warnings,
}))
"""
FIND = """
repo, files = sys.argv[1], json.loads(sys.argv[2])
paths = [hf_hub_download(repo, file, local_files_only=True) for file in files]
repos = {entry.repo_id: entry for entry in scan_cache_dir().repos}
warnings = [str(warning) for warning in scan_cache_dir().warnings]
absent = try_to_load_from_cache(repo, "tokenizer/added_tokens.json")
print(json.dumps({
    "paths": paths, "warnings": warnings, "files": repos[repo].nb_files, "refs": sorted(repos[repo].refs),
    "absent": absent is not None and not isinstance(absent, str),
}))
"""


class Failed(Exception):
    """A failed check."""


def check(condition, what):
    """Raises Failed unless a condition holds."""
    if not condition:
        raise Failed(what)


@contextmanager
def server(rows):
    """Runs the tests' server with the small models and a data set in the folder `rows`; yields its address."""
    repositories = [f"owner/{name}={MODELS / name}" for name in NAMES] + [f"datasets/{DATASET}={rows}"]
    command = [RELEASE / "examples/hub_server", *repositories]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


@contextmanager
def dataset():
    """Yields a folder with the files of a data set."""
    with tempfile.TemporaryDirectory() as folder:
        for path, text in ROWS.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_text(text)
        yield folder


class Side:
    """Runs both programs with the same cache."""

    def __init__(self, endpoint, home):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
        self.environment = kept | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
        self.home = home

    def run(self, command, offline):
        """Returns the output of a command."""
        environment = self.environment | {"HF_HUB_OFFLINE": "1" if offline else "0"}
        done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
        check(done.returncode == 0, f"{command[0]}: {done.stderr}")
        return done.stdout

    def python(self, body, *arguments, offline):
        """Returns the JSON that a Python program prints."""
        return json.loads(self.run([sys.executable, "-c", PYTHON.format(body=body), *arguments], offline))

    def embed(self, model, offline=False):
        """Returns the bytes of an embedding."""
        out = self.home / "e.npy"
        options = ["-p", "a red apple", "--steps", "3", "--seed", "5", "--overwrite", "--out", out]
        self.run([BINARY, "--model", model, *options], offline)
        return out.read_bytes()

    def embed_rows(self, prompts, offline=False):
        """Returns the embeddings of prompts as JSON lines."""
        out = self.home / "e.jsonl"
        self.run([BINARY, "--prompts", *prompts, "--steps", "2", "--overwrite", "--out", out], offline)
        return out.read_bytes()


def check_ours_is_theirs(endpoint, name):
    """huggingface_hub finds prior-embed's download, offline."""
    with tempfile.TemporaryDirectory() as folder:
        side, repo = Side(endpoint, Path(folder)), f"owner/{name}"
        side.run([BINARY, "download", repo], offline=False)
        info = json.loads(side.run([BINARY, "info", "--json", "--model", repo], offline=True))
        files = [file["path"] for file in info["files"]]
        found = side.python(FIND, repo, json.dumps(files), offline=True)
        for file, path in zip(files, found["paths"]):
            check(Path(path).read_bytes() == (MODELS / name / file).read_bytes(), f"{name}: {file} differs")
        check(not found["warnings"], f"{name}: {found['warnings']}")
        check(found["refs"] == ["main"], f"{name}: refs {found['refs']}")
        check(found["files"] == len(files), f"{name}: {found['files']} files, not {len(files)}")
        has_tokens = (MODELS / name / "tokenizer/added_tokens.json").exists()
        if name != "stable_unclip_layout":
            check(found["absent"] == (not has_tokens), f"{name}: absent files")
        # It keeps the cached files and downloads the rest.
        whole = Path(side.python(DOWNLOAD, repo, offline=False))
        for path in (MODELS / name).rglob("*"):
            if path.is_file():
                copy = whole / path.relative_to(MODELS / name)
                check(copy.read_bytes() == path.read_bytes(), f"{name}: {copy} differs after theirs")


def check_theirs_is_ours(endpoint, name):
    """prior-embed uses huggingface_hub's download, offline and unchanged."""
    with tempfile.TemporaryDirectory() as folder:
        side, repo = Side(endpoint, Path(folder)), f"owner/{name}"
        side.python(DOWNLOAD, repo, offline=False)
        blobs = lambda: sorted(path.name for path in (side.home / "hub").rglob("blobs/*"))
        before = blobs()
        expected = side.embed(MODELS / name)
        check(side.embed(repo, offline=True) == expected, f"{name}: theirs gives another embedding")
        check(side.embed(repo) == expected, f"{name}: theirs gives another embedding online")
        check(blobs() == before, f"{name}: files were downloaded again")


def check_rows(endpoint):
    """Each finds the other's download of a data set, offline."""
    prompts = [f"hf://datasets/{DATASET}/data"]
    with tempfile.TemporaryDirectory() as folder:
        side = Side(endpoint, Path(folder))
        expected = side.embed_rows(prompts)
        found = side.python(FIND_ROWS, DATASET, offline=True)
        for path in ["data/a.txt", "data/b/c.csv"]:
            check((Path(found["folder"]) / path).read_text() == ROWS[path], f"{path} differs")
        listed = {path: len(text) for path, text in ROWS.items()}
        check(found["listed"] == listed, f"the list of files is {found['listed']}")
        check((found["id"], found["refs"], found["files"]) == (DATASET, ["main"], 2), f"the cache has {found}")
        check(not found["warnings"], f"{found['warnings']}")
    with tempfile.TemporaryDirectory() as folder:
        side = Side(endpoint, Path(folder))
        side.python(DOWNLOAD_ROWS, DATASET, offline=False)
        for offline in [True, False]:
            check(side.embed_rows(prompts, offline) == expected, "theirs gives other rows")


def main():
    """Checks both ways for each model, and for a data set."""
    with dataset() as rows, server(rows) as endpoint:
        for name in NAMES:
            try:
                check_ours_is_theirs(endpoint, name)
                check_theirs_is_ours(endpoint, name)
            except Failed as failed:
                sys.exit(f"check_hub_cache: {failed}")
            print(f"{name}: the same cache for both")
        try:
            check_rows(endpoint)
        except Failed as failed:
            sys.exit(f"check_hub_cache: data set: {failed}")
        print("data set: the same cache for both")


if __name__ == "__main__":
    main()
