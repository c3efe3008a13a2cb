"""The noise of a call's rows: seeds, or numbers that torch's generators draw, as diffusers' pipelines draw them."""

from __future__ import annotations

import operator
import os
import sys
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Sequence

if TYPE_CHECKING:
    import numpy
    import torch

MAX_SEED = 2**64 - 1


class RowNoise:
    """Where a row's noise comes from: a seed, or numbers, or both.

    `numbers` is what denoising starts from, (dim) float32, or that and what each step adds, (1 + steps, dim).
    """

    __slots__ = ("numbers", "seed")

    def __init__(self, seed: int | None = None, numbers: bytes | None = None) -> None:
        self.seed = seed
        self.numbers = numbers


class Draws(NamedTuple):
    """What a generator draws for a row of this model."""

    dim: int
    steps: int | None
    """Draws after the first; None if the scheduler's are not known here."""


def as_seed(value: object) -> int:
    """A seed. Raises ValueError."""
    try:
        seed = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"a seed has to be a whole number, not {value!r}") from None
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"a seed has to be between 0 and 2^64 - 1, not {seed}")
    return seed


def row_noise(
    rows: int, draws_of_model: Callable[[], Draws], generator: Any, latents: Any, seed: int | None
) -> list[RowNoise]:
    """The noise of all rows of a call, those of negative embeddings last. Seeds alone need no `draws_of_model`.

    `generator` is None, a torch.Generator or a seed, for all rows, or a list with one for each row. A single
    torch.Generator draws for all rows at once, as in diffusers, and goes on from where it is; a single seed S is that
    of row 0, and row r has S + r. Raises ValueError.
    """
    starts = None if latents is None else as_latents(latents, rows, draws_of_model().dim)
    if generator is not None and seed is not None:
        raise ValueError("`generator` and `seed` exclude each other; give one of them")
    if isinstance(generator, (list, tuple)):
        if len(generator) == 1:
            generator = generator[0]
        elif len(generator) != rows:
            raise ValueError(
                f"`generator` is a list of {len(generator)}, and the call has {rows} rows (those of "
                "negative embeddings count); give one for each"
            )
    given: Any = generator if generator is not None else seed
    if isinstance(given, (list, tuple)):
        if not any(is_generator(one) for one in given):
            return with_latents([RowNoise(as_seed(one)) for one in given], starts)
        if not all(is_generator(one) for one in given):
            raise ValueError("`generator` mixes seeds and generators; give either")
        return drawn(list(given), draws_of_model(), starts)
    if is_generator(given) or (given is None and sys.modules.get("torch") is not None):
        return drawn_at_once(given, rows, draws_of_model(), starts)
    if given is None:
        seeds = [int.from_bytes(os.urandom(8), "little") for _ in range(rows)]
    else:
        first = as_seed(given)
        as_seed(first + rows - 1)
        seeds = list(range(first, first + rows))
    return with_latents([RowNoise(one) for one in seeds], starts)


def is_generator(value: object) -> bool:
    """Whether this is torch's; torch is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Generator)


def as_latents(latents: Any, rows: int, dim: int) -> list[bytes]:
    """Each row's start as bytes of float32."""
    import numpy

    if hasattr(latents, "detach"):
        latents = latents.detach().float().cpu().numpy()
    array = numpy.asarray(latents, dtype="<f4")
    if array.shape != (rows, dim):
        raise ValueError(f"`latents` has shape {array.shape}, and the call's rows take {(rows, dim)}")
    if not numpy.isfinite(array).all():
        raise ValueError("`latents` has numbers that are not finite")
    return [row.tobytes() for row in array]


def with_latents(noise: list[RowNoise], starts: list[bytes] | None) -> list[RowNoise]:
    """With what each row starts from, if that is given."""
    for row, start in zip(noise, starts or []):
        row.numbers = start
    return noise


def drawn(generators: Sequence[torch.Generator], draws: Draws, starts: list[bytes] | None) -> list[RowNoise]:
    """Rows with a generator each."""
    if draws.steps is None:
        if all(is_fresh(generator) for generator in generators):
            return with_latents([RowNoise(generator.initial_seed()) for generator in generators], starts)
        raise ValueError("with this scheduler a torch.Generator has to be as manual_seed leaves it; give seeds")
    return [drawn_at_once(generator, 1, draws, starts and [starts[row]])[0] for row, generator in enumerate(generators)]


def drawn_at_once(
    generator: torch.Generator | None, rows: int, draws: Draws, starts: list[bytes] | None
) -> list[RowNoise]:
    """Rows that share a generator, or torch's own: each draw is for all of them at once."""
    import torch

    if draws.steps is None:
        if generator is None:
            seeds = torch.randint(2**63 - 1, (rows,)).tolist()
            return with_latents([RowNoise(seed) for seed in seeds], starts)
        if rows > 1:
            raise ValueError(
                "with this scheduler one torch.Generator cannot draw for several rows; give a list of them"
            )
        return drawn([generator], draws, starts)
    count = draws.steps + (starts is None)
    device = generator.device if generator is not None else torch.device("cpu")
    numbers: numpy.ndarray[Any, Any]
    if device.type == "cpu" and rows * draws.dim % 16 == 0:
        # torch makes normals of a CPU generator 16 at a time, so one large draw has the bits of many.
        tensor = torch.randn((count, rows, draws.dim), generator=generator, dtype=torch.float32)
    else:
        each = [
            torch.randn((rows, draws.dim), generator=generator, device=device, dtype=torch.float32)
            for _ in range(count)
        ]
        tensor = torch.stack(each) if each else torch.empty((0, rows, draws.dim))
    numbers = tensor.cpu().numpy()
    noise = [RowNoise(numbers=numbers[:, row].tobytes()) for row in range(rows)]
    for row, start in zip(noise, starts or []):
        row.numbers = start + (row.numbers or b"")
    return noise


def is_fresh(generator: torch.Generator) -> bool:
    """Whether nothing was drawn from it since it was seeded."""
    import torch

    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    return bool(torch.equal(fresh.get_state(), generator.get_state()))
