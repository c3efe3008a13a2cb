"""The cache folder of the project, and a lock for it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator


def cache_folder() -> Path:
    """Return PRIOR_EMBED_CACHE, or prior-embed in XDG_CACHE_HOME or ~/.cache; it need not exist."""
    own = os.environ.get("PRIOR_EMBED_CACHE")
    root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "prior-embed"
    return root.expanduser().absolute()


@contextmanager
def exclusive(path: Path, before_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file. The system releases the lock when the process ends."""
    import fcntl  # not on Windows, where nothing here runs

    with open(path, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            before_waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
