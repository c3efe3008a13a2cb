"""The scripts' cache folder, which the Python package shares, and a lock for it."""

from prior_embed._cache import cache_folder, exclusive

__all__ = ["cache_folder", "exclusive"]
