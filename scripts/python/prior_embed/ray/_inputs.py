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

FORMATS = {
    "txt": ("txt",), "jsonl": ("jsonl", "ndjson"), "csv": ("csv",), "tsv": ("tsv",), "parquet": ("parquet",),
}  # fmt: skip
"""The program's names of formats, and their extensions."""
HIDDEN = (".", "_")
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


def find_files(arguments: list[str], format_in: str | None = None) -> list[str]:
    """The files that paths, patterns and folders stand for, absolute: in the order of the arguments, those of one by the
    bytes of their paths, as in the program. Of folders they are those with the extension of a format, or of the one that
    is given. Raises PriorInputError."""
    formats = [FORMATS[format_in]] if format_in in FORMATS else list(FORMATS.values())
    extensions = [extension for format in formats for extension in format]
    files = []
    for argument in arguments:
        if not os.path.exists(argument) and glob.has_magic(argument):
            matches = glob.glob(argument, recursive=True)
        else:
            matches = [argument]
        found: list[str] = []
        for path in matches:
            found += files_below(path, extensions) if os.path.isdir(path) else [path]
        if not found and os.path.isdir(argument):
            raise PriorInputError(
                f"{argument!r} holds no prompt files (.{', .'.join(extensions)}); name the files, or a pattern in quotes "
                "that they match"
            )
        if not found:
            raise PriorInputError(f"{argument!r} matches no files")
        if not os.path.exists(found[0]):
            raise PriorInputError(f"there is no file or folder {argument!r}")
        files += sorted(set(found), key=os.fsencode)
    return [os.path.abspath(path) for path in files]


def files_below(folder: str, extensions: list[str]) -> Iterator[str]:
    """The prompt files in a folder and in those below it. Names that begin with a dot or an underscore are left out, as
    they are by others who read data sets, and links to folders."""
    for entry in os.scandir(folder):
        if entry.name.startswith(HIDDEN):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(entry.path, extensions)
        elif has_extension(entry.name, extensions) and not entry.is_dir():
            yield entry.path


def has_extension(name: str, extensions: list[str]) -> bool:
    """Whether a name ends in one of these, perhaps before that of a compression."""
    parts = name.lower().split(".")[1:]
    if parts and parts[-1] in COMPRESSIONS:
        parts.pop()
    return bool(parts) and parts[-1] in extensions


def holds(arguments: list[str], path: str) -> str | None:
    """The folder among the arguments that what is written to a path would be found in."""
    for argument in filter(os.path.isdir, arguments):
        below = os.path.relpath(os.path.realpath(path), os.path.realpath(argument))
        if not any(name.startswith(HIDDEN) for name in below.split(os.sep) if name != os.curdir):
            return argument
    return None


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
            with io.BufferedReader(child.stdout, 1 << 16) as lines:  # type: ignore[type-var]
                for seen, line in enumerate(lines, 1):
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


def at(path: str, place: str) -> str:
    """A row of a file, for a message: as the program names it."""
    return f"{path}:{place.removeprefix('line ')}" if place.startswith("line ") else f"{path}: {place}"
