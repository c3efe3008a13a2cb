"""Prompt files: which, in what order, and what is in them. The program itself reads them, so that every format, column
and encoding means what it means there."""

from __future__ import annotations

import glob
import io
import json
import os
import subprocess
import tempfile
from typing import Any, Iterator, NamedTuple

from .._errors import PriorInputError
from .._process import failure, run, start

EXTENSIONS = ("txt", "jsonl", "ndjson", "csv", "tsv", "parquet")
COMPRESSIONS = ("gz", "zst")


class InputFile(NamedTuple):
    """A file of prompts as it was when its rows were counted."""

    path: str
    bytes: int
    modified_ns: int
    prompts: int
    rows: int
    """Embeddings: a prompt may ask for several."""

    def is_unchanged(self) -> bool:
        """Whether nobody wrote to it since its rows were counted. Raises PriorInputError if it is gone."""
        status = stat(self.path)
        return (status.st_size, status.st_mtime_ns) == (self.bytes, self.modified_ns)


def find_files(arguments: list[str]) -> list[str]:
    """The files that paths, globs and folders stand for, absolute: in the order of the arguments, those of one sorted
    by the bytes of their paths. Raises PriorInputError."""
    files = []
    for argument in arguments:
        if os.path.isdir(argument):
            found = [path for path in files_below(argument) if is_prompt_file(path)]
            if not found:
                endings = ", ".join(f".{extension}" for extension in EXTENSIONS)
                raise PriorInputError(f"the folder {argument!r} holds no file that ends in {endings}")
        elif os.path.exists(argument):
            found = [argument]
        elif glob.has_magic(argument):
            found = [path for path in glob.iglob(argument, recursive=True) if not os.path.isdir(path)]
            if not found:
                raise PriorInputError(f"no file matches {argument!r}")
        else:
            raise PriorInputError(f"there is no file or folder {argument!r}")
        files += sorted(found, key=os.fsencode)
    return [os.path.abspath(path) for path in files]


def files_below(folder: str) -> Iterator[str]:
    """The files in a folder and those in it, but for hidden ones and those whose names begin with an underscore, which
    other programs use for what is no data."""
    for entry in os.scandir(folder):
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir():
            yield from files_below(entry.path)
        elif entry.is_file():
            yield entry.path


def is_prompt_file(path: str) -> bool:
    """Whether its name has an extension that the program reads."""
    extensions = os.path.basename(path).lower().split(".")[1:]
    if extensions and extensions[-1] in COMPRESSIONS:
        extensions.pop()
    return bool(extensions) and extensions[-1] in EXTENSIONS


def count(path: str, options: list[str], folder: str) -> InputFile:
    """Reads a file to its end. Raises PriorError."""
    status = stat(path)
    found = json.loads(run(["rows", "--count", *options, "--", path], folder))
    return InputFile(path, status.st_size, status.st_mtime_ns, found["prompts"], found["rows"])


def read(file: InputFile, start_at: int, stop_at: int, options: list[str], folder: str) -> Iterator[dict[str, Any]]:
    """The prompts of a file from one place to another: what it says of each, and `row`, the number of its first row in
    the file; or `reason`, why it cannot be used. Raises PriorError."""
    if not file.is_unchanged():
        raise changed(file.path)
    arguments = ["rows", f"--range={start_at}..{stop_at}", *options, "--", file.path]
    with tempfile.TemporaryFile() as log, start(arguments, folder, subprocess.DEVNULL, log) as child:
        assert child.stdout is not None
        try:
            seen = 0
            for seen, line in enumerate(io.BufferedReader(child.stdout, 1 << 16), 1):  # type: ignore[type-var]
                yield json.loads(line)
        except BaseException:
            child.kill()
            raise
        if child.wait() != 0:
            log.seek(0)
            raise failure(child.returncode, log.read().decode(errors="replace").strip().rpartition("\n")[2])
    if seen != stop_at - start_at or not file.is_unchanged():
        raise changed(file.path)


def stat(path: str) -> os.stat_result:
    """Raises PriorInputError."""
    try:
        return os.stat(path)
    except OSError as error:
        raise PriorInputError(f"cannot read {path!r} ({error.strerror}); every node has to see it") from None


def changed(path: str) -> PriorInputError:
    """The error for a file whose rows are not those that were counted."""
    return PriorInputError(f"{path!r} was written to after its rows were counted; give another output, or --overwrite")
