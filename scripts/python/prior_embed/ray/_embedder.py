"""A stage for pipelines of Ray Data."""

from __future__ import annotations

import json
import os
from functools import cached_property
from typing import Any, Iterator, Sequence

from .._errors import PriorInputError
from .._noise import as_seed
from .._pipeline import BUILT_IN, info_arguments
from .._process import run
from .._stream import SETTINGS, BadRow, Stream, program_arguments, row_line


class PriorEmbedder:
    """Adds a column of embeddings; for `Dataset.map_batches`:

        from prior_embed.ray import PriorEmbedder

        captions = ray.data.read_parquet("captions/")
        captions.map_batches(
            PriorEmbedder,
            fn_constructor_kwargs={"model": "kandinsky-2.2", "prompt_column": "caption"},
            compute=ray.data.ActorPoolStrategy(size=4),
            num_cpus=8,
            batch_size=1024,
            batch_format="pyarrow",
        ).write_parquet("embeddings/")

    Each actor has one process of the program, with as many threads as the actor has CPUs. A process that dies is
    replaced, and its rows are done again.

    Columns of the batch that the program knows count: `seed`, `negative_prompt`, `guidance_scale` and `steps`, where
    they are not null. A row without a seed of its own gets one: with `seed`, which needs a column `row` of the rows'
    numbers, `seed + row`, as in the program; else one that is made of its prompt, as `--seed-by prompt` does. So a row
    does not depend on the batch that it comes in, nor on how often Ray computes it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        prompt_column: str = "prompt",
        output_column: str = "embedding",
        seed: int | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            model: a name from `prior-embed models`, `owner/name` on the hub, or a folder as diffusers saves it; the
                built-in `emoji` if not given.
            prompt_column, output_column: what is embedded, and where the embedding goes: (dim) float32, in batches of
                numpy an array (rows, dim), in those of pyarrow a fixed-size list.
            seed: that of row 0.
            threads: of the process; by default the actor's CPUs.
            options: the program's, by their names with underscores: `steps=10`, `guidance_scale=2.0`,
                `negative_prompt="rain"`, `dtype="bf16"`, `normalize=True`, `lora=["a", "b:0.5"]`.
        """
        self._prompt_column, self._output_column = prompt_column, output_column
        self._seed = None if seed is None else as_seed(seed)
        options = {"seed_by": "prompt" if seed is None else None, **options}
        name = BUILT_IN if model is None else os.fspath(model)
        self._arguments, self._folder = ["--model", name, *program_arguments(options)], os.getcwd()
        self._stream: Stream[int] = Stream(self._arguments, self._folder, threads or cpus())

    @cached_property
    def embedding_dim(self) -> int:
        """Numbers in an embedding. Raises PriorError if there is no such model."""
        info = json.loads(run(["info", "--json", *info_arguments(self._arguments)], self._folder))
        return int(info["prior"]["embedding_dim"])

    def __call__(self, batch: Any) -> Any:
        """The batch with the column, in the format that it came in: a dict of numpy arrays or a pyarrow.Table.

        Raises:
            PriorInputError: a column is missing, or a row or an option cannot be used.
            PriorError: the process failed.
        """
        import numpy

        is_arrow = not isinstance(batch, dict)
        if is_arrow and not hasattr(batch, "column_names"):
            kind = type(batch).__name__
            raise PriorInputError(f'batches are of numpy or pyarrow, not {kind}; give batch_format="pyarrow"')
        names = batch.column_names if is_arrow else list(batch)
        wanted = [self._prompt_column, "seed", *SETTINGS, *(["row"] if self._seed is not None else [])]
        columns = {
            name: batch.column(name).to_pylist() if is_arrow else numpy.asarray(batch[name]).tolist()
            for name in wanted
            if name in names
        }
        if self._prompt_column not in columns:
            raise PriorInputError(f"there is no column {self._prompt_column!r}, only {', '.join(map(repr, names))}")
        numbers = []
        for row, found in self._stream.embed(self._rows(columns)):
            if isinstance(found, BadRow):
                prompt = columns[self._prompt_column][row]
                raise PriorInputError(f"the row of {prompt!r}: {found.reason}")
            numbers.append(found[0]["image_embeds"])
        # Of no rows, the column has the type that it has of others.
        shape = (len(numbers), -1 if numbers else self.embedding_dim)
        array = numpy.frombuffer(bytearray(b"".join(numbers)), "<f4").reshape(shape)
        if not is_arrow:
            return {**batch, self._output_column: array}
        import pyarrow

        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(array.reshape(-1)), array.shape[1])
        return batch.append_column(self._output_column, column)

    def _rows(self, columns: dict[str, Sequence[Any]]) -> Iterator[tuple[int, bytes, int]]:
        """The rows of a batch for the process."""
        for row, prompt in enumerate(columns[self._prompt_column]):
            values = {name: none_if_nan(column[row]) for name, column in columns.items()}
            if not isinstance(prompt, str):
                raise PriorInputError(f"{self._prompt_column!r} holds texts, and in one row {prompt!r}")
            seed = values.get("seed")
            if seed is None and self._seed is not None:
                if values.get("row") is None:
                    raise PriorInputError(
                        "with `seed`, rows need a column 'row' of their numbers; without `seed`, seeds are made of the "
                        "prompts"
                    )
                seed = self._seed + values["row"]
            yield row, row_line(prompt, seed, 1, values), 1


def none_if_nan(value: Any) -> Any:
    """What pandas puts in the place of a value that is missing is none."""
    return None if value != value else value


def cpus() -> int:
    """Those that Ray gives to the actor that this runs in."""
    import ray

    assigned = ray.get_runtime_context().get_assigned_resources().get("CPU", 1) if ray.is_initialized() else 1
    return max(1, int(assigned))
