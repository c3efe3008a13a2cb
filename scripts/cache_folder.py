"""Where the scripts keep what they fetch and make."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """PRIOR_EMBED_CACHE, or prior-embed in XDG_CACHE_HOME or ~/.cache; it need not be there yet."""
    own = os.environ.get("PRIOR_EMBED_CACHE")
    root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "prior-embed"
    return root.expanduser().absolute()
