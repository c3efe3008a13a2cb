"""Where the scripts keep what they fetch and make, and how one run waits for another that is at it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator


def cache_folder() -> Path:
    """PRIOR_EMBED_CACHE, or prior-embed in XDG_CACHE_HOME or ~/.cache; it need not be there yet."""
    own = os.environ.get("PRIOR_EMBED_CACHE")
    root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "prior-embed"
    return root.expanduser().absolute()


@contextmanager
def exclusive(path: Path, before_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file; the system drops the lock when a process dies, however that happens."""
    import fcntl  # not on Windows, where the scripts do not run anyway

    with open(path, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            before_waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
