"""Which rows go into which file, and the record of it that a later run resumes by."""

from __future__ import annotations

import json
import os
import uuid
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Callable, NamedTuple

from .._errors import PriorInputError
from ._inputs import InputFile

MANIFEST = "_manifest.json"
"""Of the output folder. Readers of data sets skip names that begin with an underscore."""
VERSION = 1
MOST_PROMPTS = 10_000  # of a shard: what a lost worker does again
SHARDS_PER_ACTOR = 4  # at least, so that all end at about the same time


class Segment(NamedTuple):
    """Consecutive prompts of a file."""

    file: InputFile
    start: int
    stop: int
    first_row: int
    """The number of the file's first row among those of all files."""


class Shard(NamedTuple):
    """What one output file holds."""

    number: int
    segments: list[Segment]

    @property
    def prompts(self) -> int:
        """How many."""
        return sum(segment.stop - segment.start for segment in self.segments)


@dataclass(frozen=True)
class Plan:
    """All shards. It depends on the input and the settings alone, so that a run that resumes has the same."""

    settings: dict[str, str]
    """What decides the rows, under the names that the user knows it by."""
    prompts_per_shard: int
    files: list[InputFile]

    @property
    def prompts(self) -> int:
        """Of all files."""
        return sum(file.prompts for file in self.files)

    @property
    def rows(self) -> int:
        """Of all files."""
        return sum(file.rows for file in self.files)

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.prompts // self.prompts_per_shard)

    def name(self, shard: int) -> str:
        """The file of a shard. The order of the names is that of the rows."""
        width = max(5, len(str(self.shards)))
        return f"part-{shard:0{width}d}-of-{self.shards:0{width}d}.parquet"

    @cached_property
    def _firsts(self) -> tuple[list[int], list[int]]:
        """The numbers of each file's first prompt and first row, and of those after the last file."""
        prompts = accumulate((file.prompts for file in self.files), initial=0)
        return list(prompts), list(accumulate((file.rows for file in self.files), initial=0))

    def shard(self, number: int) -> Shard:
        """One of them."""
        first_prompts, first_rows = self._firsts
        start = number * self.prompts_per_shard
        stop = min(start + self.prompts_per_shard, self.prompts)
        segments = []
        place = bisect_right(first_prompts, start) - 1
        while start < stop:
            first, file = first_prompts[place], self.files[place]
            end = min(stop, first + file.prompts)
            if start < end:
                segments.append(Segment(file, start - first, end - first, first_rows[place]))
            start, place = end, place + 1
        return Shard(number, segments)

    def write(self, folder: str) -> None:
        """Writes the record."""
        record = {
            "version": VERSION,
            "settings": self.settings,
            "prompts_per_shard": self.prompts_per_shard,
            "files": [file._asdict() for file in self.files],
        }
        text = json.dumps(record, indent=1) + "\n"
        publish(os.path.join(folder, MANIFEST), lambda path: write_text(path, text))

    @classmethod
    def read(cls, folder: str) -> Plan | None:
        """The record in a folder, if there is one. Raises PriorInputError if it is none of this version."""
        path = os.path.join(folder, MANIFEST)
        try:
            with open(path, encoding="utf-8") as file:
                record = json.load(file)
            if record.pop("version") != VERSION:
                raise ValueError("another version wrote it")
            files = [InputFile(**entry) for entry in record.pop("files")]
            return cls(**record, files=files)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PriorInputError(f"{path!r} cannot be read ({error}); give another output, or --overwrite") from None

    def difference(self, settings: dict[str, str], paths: list[str], prompts_per_shard: int | None) -> str | None:
        """How another run differs from this, if it does."""
        for name in [*self.settings, *settings]:
            was, now = (which.get(name, "not set") for which in (self.settings, settings))
            if was != now:
                return f"{name} was {was}, is {now}"
        if prompts_per_shard not in (None, self.prompts_per_shard):
            return f"a file holds {self.prompts_per_shard} prompts, and --rows-per-file makes that {prompts_per_shard}"
        if paths != [file.path for file in self.files]:
            known = {file.path for file in self.files}
            added = next((path for path in paths if path not in known), None)
            return f"{added!r} is new" if added else "files of the input are gone, or in another order"
        edited = next((file.path for file in self.files if not file.is_unchanged()), None)
        return f"{edited!r} was written to" if edited else None


def prompts_per_shard(prompts: int, actors: int) -> int:
    """How many, unless the user says."""
    return max(1, min(MOST_PROMPTS, -(-prompts // (actors * SHARDS_PER_ACTOR))))


def publish(path: str, write: Callable[[str], None]) -> None:
    """Has a file written under a hidden name beside `path`, which then takes its place: whole, or not at all."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    directory = os.open(folder or os.curdir, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_text(path: str, text: str) -> None:
    """Writes a file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
