"""Any number of rows through a process of the program: in order, so many in flight, and what a process that dies has
not answered is done again by another."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import deque
from typing import Any, Generic, Iterable, Iterator, Mapping, NamedTuple, TypeVar

from ._errors import PriorError, PriorInputError
from ._process import Process, Ticket

logger = logging.getLogger("prior_embed")

Key = TypeVar("Key")

BATCH = 64  # rows that the program computes together
BATCHES = 4  # for each of its threads: in work, and waiting on either side
ATTEMPTS = 3  # processes that may die one after the other without an answer

FILTER = ("--prompts=-", "--format-in=jsonl", "--out=-", "--format=jsonl-base64", "--no-negative")
SETTINGS = ("negative_prompt", "guidance_scale", "steps")
"""What a row may have of its own beside a seed, by the names of the program's JSON lines."""


class BadRow(NamedTuple):
    """A row that the program refuses."""

    reason: str


class Sent(NamedTuple):
    """A row that is not answered yet."""

    key: Any
    line: bytes
    tickets: list[Ticket]


def program_arguments(options: Mapping[str, Any]) -> list[str]:
    """The program's arguments for options by its names, with underscores. A list is of an option that is repeated, True
    of one that takes no value; None and False are of one that is not given."""
    arguments = []
    for name, given in options.items():
        option = "--" + name.replace("_", "-")
        for value in given if isinstance(given, (list, tuple)) else [given]:
            if value is True:
                arguments.append(option)
            elif value is not None and value is not False:
                arguments.append(f"{option}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    return arguments


def row_line(prompt: str, seed: int | None, samples: int, settings: Mapping[str, Any]) -> bytes:
    """A row as the program reads it. `settings` are those of SETTINGS, if they are there and not None."""
    row: dict[str, Any] = {"prompt": prompt, "samples": samples}
    if seed is not None:
        row["seed"] = seed
    row.update((name, settings[name]) for name in SETTINGS if settings.get(name) is not None)
    return json.dumps(row).encode()


class Stream(Generic[Key]):
    """A process, which starts with the first row, and the processes that take its place if it dies."""

    def __init__(self, arguments: list[str], folder: str, threads: int) -> None:
        """`arguments` are the program's, but for its threads, what it embeds and where to. Names of files are relative
        to `folder`."""
        self._arguments = [*arguments, f"--threads={threads}", *FILTER]
        self._folder = folder
        self._most = threads * BATCH * BATCHES
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """The process, if there is one."""
        return self._process.pid if self._process is not None and self._process.is_alive else None

    def embed(self, rows: Iterable[tuple[Key, bytes, int]]) -> Iterator[tuple[Key, list[dict[str, Any]] | BadRow]]:
        """The answers to rows, in order. A row is what the caller knows it by, its line and its number of samples, each
        of which is an answer; one without any is passed on. No row is taken before there is room for it. Raises
        PriorError."""
        if self._process is not None and not self._process.is_alive:
            self.close()
        source, is_open = iter(rows), True
        waiting: deque[Sent] = deque()
        in_flight = deaths = 0
        try:
            while is_open or waiting:
                while is_open and in_flight < self._most:
                    item = next(source, None)
                    if item is None:
                        is_open = False
                    else:
                        key, line, samples = item
                        waiting.append(Sent(key, line, self._send(line, samples)))
                        in_flight += samples
                if not waiting:
                    break
                found: list[dict[str, Any]] | BadRow | None
                try:
                    found = [self._wait(ticket) for ticket in waiting[0].tickets]
                    deaths = 0 if found else deaths
                except PriorError as error:
                    self.close()
                    found = bad_row(error)
                    deaths += 1
                    if found is None and (isinstance(error, PriorInputError) or deaths == ATTEMPTS):
                        raise
                    if found is None:
                        logger.warning("%s; its rows are done again", error)
                if found is not None:
                    sent = waiting.popleft()
                    in_flight -= len(sent.tickets)
                if self._process is None:
                    # What was sent after it is lost.
                    waiting = deque(Sent(key, line, self._send(line, len(old))) for key, line, old in waiting)
                if found is not None:
                    yield sent.key, found
        finally:
            if self._process is not None:
                self._process.drop([ticket for sent in waiting for ticket in sent.tickets])

    def _send(self, line: bytes, samples: int) -> list[Ticket]:
        if samples == 0:
            return []
        if self._process is None:
            self._process = Process(self._arguments, self._folder)
        return self._process.send([line], samples)

    def _wait(self, ticket: Ticket) -> dict[str, Any]:
        assert self._process is not None
        return self._process.wait(ticket)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
            self._process = None


def bad_row(error: PriorError) -> BadRow | None:
    """Why the program refused the row that it would have answered next, if that is what ended it."""
    found = re.match(r"standard input:\d+: (.*)", str(error), re.DOTALL)
    return BadRow(found[1]) if found and error.exit_code == 2 else None
