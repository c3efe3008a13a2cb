"""prior-embed in Python: text to CLIP image embeddings with a diffusion prior, diffusers' numbers without its wait.

    from prior_embed import PriorPipeline

    with PriorPipeline.from_pretrained("kandinsky-2.2") as prior:
        out = prior("a red apple", negative_prompt="blurry", generator=torch.Generator().manual_seed(0))
        out.image_embeds, out.negative_image_embeds

`PriorPipeline` is called like diffusers' KandinskyV22PriorPipeline. The work is done by the program `prior-embed`,
which this package brings: one process, which keeps the model loaded. Importing the package imports nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._errors import PriorError, PriorInputError
    from ._pipeline import Embedding, PriorOutput, PriorPipeline

    __version__: str

__all__ = ["Embedding", "PriorError", "PriorInputError", "PriorOutput", "PriorPipeline", "__version__"]


def __getattr__(name: str) -> object:
    """Imports what is asked for: the launcher of the program needs none of it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("prior-embed")
    if name in ("PriorError", "PriorInputError"):
        from . import _errors as module
    elif name in __all__:
        from . import _pipeline as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
