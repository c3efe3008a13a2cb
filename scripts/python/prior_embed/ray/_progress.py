"""How far a run is."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

DRAW_EVERY = 1.0  # seconds, on a terminal
SAY_EVERY = 60.0  # elsewhere


def say(line: str) -> None:
    """A line on standard error, as the program's own."""
    print(f"prior-embed: {line}", file=sys.stderr, flush=True)


class Monitor:
    """The actor that all others tell how far they are."""

    def __init__(self) -> None:
        self._done: dict[int, int] = {}

    def tell(self, shard: int, prompts: int) -> None:
        """So many prompts of a shard are done. They may be fewer than before: a lost actor's are done again."""
        self._done[shard] = prompts

    def done(self) -> int:
        """Of all shards of this run."""
        return sum(self._done.values())


class Progress:
    """Shows it: on a terminal as a line that changes, else as a line a minute."""

    def __init__(self, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._is_terminal = sys.stderr.isatty()
        self._total = self._before = self._done = 0
        self._start = time.monotonic()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, line: str) -> None:
        """A line that is no error."""
        if not self._is_quiet:
            say(line)

    def start(self, total: int, before: int, monitor: Any) -> None:
        """Of so many prompts, some were done before."""
        self._total, self._before = total, before
        self._start = time.monotonic()
        self._thread = threading.Thread(target=self._watch, args=[monitor], name="prior-embed-progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more is shown."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            if self._is_terminal and not self._is_quiet:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def took(self) -> str:
        """How long, for a message."""
        return f", in {self._seconds:.1f} s" if self._thread is not None else ""

    @property
    def _seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def _watch(self, monitor: Any) -> None:
        import ray

        while not self._end.wait(DRAW_EVERY if self._is_terminal else SAY_EVERY):
            try:
                self._done = ray.get(monitor.done.remote(), timeout=SAY_EVERY)
            except ray.exceptions.RayError:
                continue
            rate = self._done / self._seconds
            left = (self._total - self._before - self._done) / rate if rate else 0
            line = f"prior-embed: {self._before + self._done:,} of {self._total:,} prompts, {rate:.3g}/s, {clock(left)} left"
            if not self._is_quiet:
                start, end = ("\r\x1b[K", "") if self._is_terminal else ("", "\n")
                print(f"{start}{line}", end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """A time for people."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return (
        f"{hours} h {minutes % 60} min"
        if hours
        else f"{minutes} min {int(seconds % 60)} s"
        if minutes
        else f"{int(seconds)} s"
    )
