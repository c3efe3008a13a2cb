"""prior-embed on Ray: data sets of prompts to embeddings, on a laptop and on a cluster.

    python -m prior_embed.ray captions/*.parquet embeddings/ --model kandinsky-2.2

embeds files and folders into Parquet shards; `--help` has the options. In a pipeline of Ray Data's,

    ray.data.read_parquet("captions/").map_batches(PriorEmbedder, fn_constructor_kwargs={"model": "kandinsky-2.2"}, …)

adds a column. Needs `ray[data]`; importing this needs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._embedder import PriorEmbedder

__all__ = ["PriorEmbedder"]


def __getattr__(name: str) -> object:
    """Imports what is asked for."""
    if name == "PriorEmbedder":
        from ._embedder import PriorEmbedder

        return PriorEmbedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
