"""What an actor does: it makes one file after the other with one process of the program."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple

from .._errors import PriorError, PriorInputError
from .._stream import BadRow, Stream, row_line
from ._inputs import at, read
from ._plan import Plan, Shard, publish

if TYPE_CHECKING:
    import pyarrow

GROUP_ROWS = 1024  # of a Parquet row group, which is what is in memory
TELL_EVERY = 1.0  # seconds
NUMPY_DTYPES = {"f32": "<f4", "f16": "<f2"}


@dataclass(frozen=True)
class Job:
    """What is the same for all shards."""

    output: str
    """The folder of the shards, absolute."""
    folder: str
    """What relative names in arguments are relative to."""
    rows_arguments: list[str]
    """Those of `prior-embed rows`."""
    arguments: list[str]
    """Those of the program that embeds."""
    threads: int
    seed: int | None
    """That of row 0; None if seeds are made of the prompts."""
    samples: int
    draws: int
    skips: bool
    """Whether rows that cannot be used are zeros, and no error."""
    dim: int
    """Numbers in an embedding."""
    dtype: str
    """Their type: f32 or f16."""


def told(error: PriorError | None) -> dict[str, Any]:
    """What went wrong, as columns of a result: Ray's own way would add its stack trace to what is a line for users."""
    return {"error": str(error or ""), "is_input": isinstance(error, PriorInputError)}


def raise_told(result: dict[str, Any]) -> None:
    """Raises it again."""
    if result["error"]:
        raise (PriorInputError if result["is_input"] else PriorError)(result["error"])


class Row(NamedTuple):
    """A prompt on its way through the process."""

    number: int
    """Of its first embedding, among those of all files."""
    samples: int
    id: str | None
    place: str
    reason: str | None
    """Why it cannot be used."""


class Worker:
    """The class of the actors."""

    def __init__(self, plan: Plan, job: Job, monitor: Any) -> None:
        """`monitor` is the actor that is told how many prompts of a shard are done."""
        logging.basicConfig(format="prior-embed: warning: %(message)s")
        self._plan, self._job, self._monitor = plan, job, monitor
        self._stream: Stream[Row] = Stream(job.arguments, job.folder, job.threads)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Makes the file of a shard, unless it is there: an actor that was lost may have been through with it."""
        shard = self._plan.shard(item["shard"])
        path = os.path.join(self._job.output, self._plan.name(shard.number))
        problem: PriorError | None = None
        try:
            if not os.path.exists(path):
                publish(path, lambda temporary: self._write(shard, temporary))
            self._tell(shard.number, shard.prompts)
        except PriorError as error:
            problem = error
        except OSError as error:
            problem = PriorError(f"cannot write {path!r} ({error.strerror or error})")
        return {**item, **told(problem)}

    def _tell(self, shard: int, prompts: int) -> None:
        self._monitor.tell.remote(shard, prompts)

    def _write(self, shard: Shard, path: str) -> None:
        from pyarrow.parquet import ParquetWriter

        columns, last = Columns(self._job), time.monotonic()
        with ParquetWriter(path, columns.schema, use_dictionary=False) as writer:
            for done, (row, found) in enumerate(self._stream.embed(self._rows(shard)), 1):
                columns.add(row, found)
                if len(columns) >= GROUP_ROWS:
                    writer.write_table(columns.take())
                if time.monotonic() >= last + TELL_EVERY:
                    last = time.monotonic()
                    self._tell(shard.number, done)
            if len(columns):
                writer.write_table(columns.take())

    def _rows(self, shard: Shard) -> Iterator[tuple[Row, bytes, int]]:
        """The prompts of a shard for the process, numbered."""
        job = self._job
        for file, start, stop, first_row in shard.segments:
            for prompt in read(file, start, stop, job.rows_arguments, job.folder):
                number, samples = first_row + prompt["row"], prompt.get("samples", job.samples)
                row = Row(number, samples, prompt.get("id"), at(file.path, prompt["place"]), prompt.get("reason"))
                if row.reason is not None:
                    yield row, b"", 0
                    continue
                seed = prompt.get("seed")
                if seed is None and job.seed is not None:
                    seed = job.seed + number * job.draws
                yield row, row_line(prompt["prompt"], seed, samples, prompt), samples


class Columns:
    """Rows on their way into a file."""

    def __init__(self, job: Job) -> None:
        import numpy
        import pyarrow

        self._job = job
        self._dtype = numpy.dtype(NUMPY_DTYPES[job.dtype])
        self._zeros = bytes(job.dim * self._dtype.itemsize)
        embedding = pyarrow.list_(pyarrow.from_numpy_dtype(self._dtype), job.dim)
        fields = [
            pyarrow.field("row", pyarrow.uint64(), nullable=False),
            pyarrow.field("id", pyarrow.string()),
            pyarrow.field("prompt", pyarrow.string(), nullable=False),
            pyarrow.field("seed", pyarrow.uint64(), nullable=job.skips),
            pyarrow.field("embedding", embedding, nullable=False),
        ]
        if job.skips:
            fields.append(pyarrow.field("error", pyarrow.string()))
        self.schema = pyarrow.schema(fields)
        self._rows: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row, found: list[dict[str, Any]] | BadRow) -> None:
        """Adds the embeddings of a prompt. Raises PriorInputError for one that cannot be used, if that is an error."""
        reason = found.reason if isinstance(found, BadRow) else row.reason
        if reason is None and not isinstance(found, BadRow):
            for number, answer in enumerate(found, row.number):
                values = answer["prompt"], answer["seed"], answer["image_embeds"], None
                self._rows.append((number, row.id, *values))
            return
        error = f"{row.place}: {reason}"
        if not self._job.skips:
            raise PriorInputError(error)
        for number in range(row.number, row.number + row.samples):
            self._rows.append((number, None, "", None, self._zeros, error))

    def take(self) -> pyarrow.Table:
        """The rows so far, which are then none."""
        import numpy
        import pyarrow

        columns: list[Any] = list(zip(*self._rows))
        self._rows = []
        numbers = numpy.frombuffer(b"".join(columns[4]), self._dtype)
        columns[4] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(numbers), self._job.dim)
        return pyarrow.table(
            [
                pyarrow.array(c, f.type) if isinstance(c, tuple) else c.cast(f.type)
                for c, f in zip(columns, self.schema)
            ],
            self.schema,
        )
