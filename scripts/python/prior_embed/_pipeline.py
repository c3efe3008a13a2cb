"""PriorPipeline: called like diffusers' KandinskyV22PriorPipeline, computed by the program.

Source: diffusers 0.42 `pipelines/kandinsky2_2/pipeline_kandinsky2_2_prior.py`.
"""

from __future__ import annotations

import binascii
import json
import math
import operator
import os
import threading
import weakref
from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, Any, Iterable, Iterator, Mapping, NamedTuple, Sequence

from ._errors import PriorError, PriorInputError
from ._noise import MAX_SEED, Draws, RowNoise, as_seed, row_noise
from ._process import Process, Ticket, run

if TYPE_CHECKING:
    import numpy
    import torch

    Array = numpy.ndarray[Any, numpy.dtype[numpy.float32]]

BUILT_IN = "emoji"
STEPS = 25
NEGATIVE_SEED_OFFSET = 2**63
"""Added to the seed of a row of embed_iter for its negative embedding, as the program does with rows from a pipe."""

ROW_KEYS = ("prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale")
DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "int8"}


class PriorOutput:
    """What a call gives: `(rows, dim)` each. Also a mapping, as diffusers' outputs are: `decoder(**prior("a cat"))`.

    Attributes:
        image_embeds: the image embeddings: torch.Tensor or numpy.ndarray.
        negative_image_embeds: the embeddings of the negative prompts, or of a black image without these; None if the
            model has no image encoder.
    """

    __slots__ = ("image_embeds", "negative_image_embeds")

    def __init__(self, image_embeds: Any, negative_image_embeds: Any) -> None:
        self.image_embeds = image_embeds
        self.negative_image_embeds = negative_image_embeds

    def __repr__(self) -> str:
        return f"PriorOutput(image_embeds={self.image_embeds!r}, negative_image_embeds={self.negative_image_embeds!r})"

    def to_tuple(self) -> tuple[Any, Any]:
        """Both."""
        return self.image_embeds, self.negative_image_embeds

    def keys(self) -> tuple[str, str]:
        """The names."""
        return "image_embeds", "negative_image_embeds"

    def __getitem__(self, key: str | int) -> Any:
        return getattr(self, key) if isinstance(key, str) and key in self.keys() else self.to_tuple()[key]  # type: ignore[index]


class Embedding(NamedTuple):
    """A row of embed_iter."""

    image_embeds: Array
    """(dim,)"""
    negative_image_embeds: Array | None
    """(dim,); None if there is no negative prompt and the model has no image encoder."""
    prompt: str
    seed: int


class PriorPipeline:
    """A prior in a process of its own, which starts at once and keeps the model loaded.

    Made by `from_pretrained`. Threads may share it; a forked child gets a process of its own when it first calls. The
    process ends with `close()`, at the end of a `with` block, with the last reference, and with the interpreter.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """`arguments` are the program's, but for what to embed and where to write it; first `--model` and a name."""
        self._arguments = list(arguments)
        # That of a process which starts later, too: the names of files may be relative.
        self._folder = os.getcwd()
        self._lock = threading.Lock()
        self._is_closed = False
        self._output_place: tuple[Any, Any] = (None, None)
        # What the finalizer may hold: not the pipeline itself.
        self._holder: list[Process] = []
        self._finalizer = weakref.finalize(self, end, self._holder)
        PIPELINES.add(self)
        # Started first: it reads the weights while the rest is done.
        self._process()
        try:
            import numpy  # noqa: F401  # It takes a while, and the answers need it.

            if self._arguments[1] != BUILT_IN:
                self._check_kind()
        except BaseException:
            self.close()
            raise

    @cached_property
    def _info(self) -> dict[str, Any]:
        """The program's description of the model. Raises if there is no such model."""
        out = run(["info", "--json", *info_arguments(self._arguments)], self._folder)
        info: dict[str, Any] = json.loads(out)
        return info

    def _check_kind(self) -> None:
        if self._info["prior"].get("latents") is not None:
            raise ValueError("the model makes latents and no embeddings, which takes the program itself")

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        scheduler: str | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        prior: str | os.PathLike[str] | None = None,
        text_encoder: str | os.PathLike[str] | None = None,
        image_encoder: str | os.PathLike[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        lora: str | Sequence[str] = (),
        textual_inversion: str | Sequence[str] = (),
    ) -> PriorPipeline:
        """Start a process with a model.

        Args:
            model: a name from `prior-embed models`, `owner/name` on the hub, or a folder as diffusers saves it; the
                built-in `emoji` if not given.
            dtype: what the networks compute in: "f32" (the default: diffusers' numbers), "bf16", "f16" or "int8", or a
                torch.dtype. `torch_dtype` is the same under diffusers' name. Embeddings are float32 in any case; `to`
                changes that.
            device: "cpu", "cuda", "cuda:1" or "mps", or a torch.device; by default a GPU if there is one.
            scheduler: another than the model's own, as `--scheduler`.
            threads, batch_size, revision, cache_dir, prior, text_encoder, image_encoder, tokenizer, lora,
                textual_inversion: as the program's options of these names. `local_files_only` is `--offline`.

        Raises:
            PriorInputError: there is no such model, or an option does not fit.
            PriorError: the model cannot be loaded.
        """
        name = BUILT_IN if model is None else os.fspath(model)
        arguments = ["--model", name]
        if dtype is not None and torch_dtype is not None:
            raise ValueError("`dtype` and `torch_dtype` are the same; give one of them")
        dtype = torch_dtype if dtype is None else dtype
        options: dict[str, Any] = {
            "--dtype": None if dtype is None else DTYPES.get(str(dtype).removeprefix("torch."), str(dtype)),
            "--device": None if device is None else str(device), "--scheduler": scheduler, "--threads": threads,
            "--batch-size": batch_size, "--revision": revision, "--cache-dir": cache_dir, "--prior": prior,
            "--text-encoder": text_encoder, "--image-encoder": image_encoder, "--tokenizer": tokenizer,
        }  # fmt: skip
        arguments += [f"{option}={value}" for option, value in options.items() if value is not None]
        for option, values in (("--lora", lora), ("--textual-inversion", textual_inversion)):
            arguments += [f"{option}={value}" for value in ([values] if isinstance(values, str) else values)]
        if local_files_only:
            arguments.append("--offline")
        return cls(arguments)

    @property
    def embedding_dim(self) -> int:
        """Numbers in an embedding."""
        return int(self._info["prior"]["embedding_dim"])

    def to(self, *args: Any, device: Any = None, dtype: Any = None) -> PriorPipeline:
        """Where the tensors of answers go, and in which type: `prior.to("cuda", torch.float16)` for a decoder there.

        Where the prior computes, and in which numbers, is said to `from_pretrained`.
        """
        for value in args:
            if type(value).__name__ == "dtype":
                dtype = value
            else:
                device = value
        before = self._output_place
        self._output_place = (before[0] if device is None else device, before[1] if dtype is None else dtype)
        return self

    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | int | Sequence[int] | None = None,
        latents: torch.Tensor | Array | None = None,
        guidance_scale: float | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
        *,
        seed: int | None = None,
    ) -> PriorOutput | tuple[Any, Any]:
        """The image embeddings of prompts, and negative ones.

        Args:
            prompt: one or several.
            negative_prompt: what guidance steers away from: one, or one for each prompt. It is then what the negative
                embeddings are of; without it that is a black image.
            num_images_per_prompt: K; row i * K + k is the k-th of prompt i.
            num_inference_steps, guidance_scale: 25 and 4 unless given, as in diffusers. A model without them is to be
                given none.
            generator: a torch.Generator, which draws what it draws in diffusers and goes on from where it is; a list of
                them, one a row, those of the negative rows last; or seeds in their place: S is S + r for row r.
            seed: the same as a single seed in `generator`. Without either, torch's own generator draws, as in
                diffusers, if torch has been imported; else seeds are random.
            latents: the noise to start from, `(rows, dim)`, twice as many with a negative prompt.
            output_type: "pt", which needs torch, or "np".
            return_dict: False gives a tuple.

        Raises:
            ValueError: an argument does not fit (PriorInputError if the program says so).
            PriorError: the process failed, or was killed. The next call starts another.
        """
        if output_type not in ("pt", "np"):
            raise ValueError(f'`output_type` is "pt" or "np", not {output_type!r}')
        if output_type == "pt":
            import_torch()
        prompts, negatives = texts("prompt", prompt), None
        if negative_prompt is not None:
            negatives = texts("negative_prompt", negative_prompt)
            if len(negatives) != len(prompts):
                raise ValueError(
                    f"`negative_prompt` has batch size {len(negatives)}, and `prompt` has {len(prompts)}; "
                    "give one for each prompt"
                )
        count = operator.index(num_images_per_prompt)
        if not prompts or count < 1:
            raise ValueError("there is nothing to do: give a prompt and `num_images_per_prompt` of 1 or more")
        settings = self._settings(num_inference_steps, guidance_scale)
        rows = len(prompts) * count
        all_rows = rows if negatives is None else 2 * rows
        noise = row_noise(all_rows, lambda: self._draws(num_inference_steps), generator, latents, seed)
        lines = []
        for row in range(rows):
            of_negative = None if negatives is None else (negatives[row // count], noise[rows + row])
            lines.append(line(prompts[row // count], noise[row], of_negative, settings))
        answers = self._answers(lines)
        image, negative = stacked(answers, "image_embeds"), stacked(answers, "negative_image_embeds")
        if negative is None and negatives is not None:
            # A model without an image encoder makes none beside the others.
            pairs = [(negatives[row // count], noise[rows + row]) for row in range(rows)]
            lines = [line(text, of_row, (text, RowNoise()), settings) for text, of_row in pairs]
            negative = stacked(self._answers(lines), "image_embeds")
        out = PriorOutput(self._output(image, output_type), self._output(negative, output_type))
        return out if return_dict else out.to_tuple()

    def interpolate(
        self,
        images_and_prompts: Sequence[Any],
        weights: Sequence[float],
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        generator: Any = None,
        latents: Any = None,
        negative_prior_prompt: str | None = None,
        negative_prompt: str = "",
        guidance_scale: float | None = None,
        device: Any = None,
        *,
        seed: int | None = None,
        output_type: str = "pt",
    ) -> PriorOutput:
        """Mixes prompts, pictures and embeddings, as KandinskyV22PriorPipeline.interpolate.

        Args:
            images_and_prompts: a str is a prompt, a PIL image or a path a picture, which the model's image encoder
                encodes; an array or tensor of `(dim,)` or `(rows, dim)` is an embedding.
            weights: one for each.
            generator: as in a call. One torch.Generator goes on from prompt to prompt, as in diffusers. With a seed S
                the item at place i has S + i, as in `prior-embed interpolate` (of K images each, S + i * K and the
                next).
            negative_prior_prompt: what guidance steers away from.
            negative_prompt: what the negative embeddings are of, unless it is empty.
            device: of the tensors.

        The others are those of a call.
        """
        if len(images_and_prompts) != len(weights):
            raise ValueError(
                f"{len(images_and_prompts)} `images_and_prompts` and {len(weights)} `weights`; give one each"
            )
        if not images_and_prompts:
            raise ValueError("`images_and_prompts` is empty; give what to mix")
        if output_type == "pt":
            import_torch()
        if generator is not None and not isinstance(generator, (list, tuple)) and isinstance(generator, int):
            generator, seed = None, generator

        rows = operator.index(num_images_per_prompt)

        def embed(text: str, place: int) -> PriorOutput:
            out = self(
                text,
                negative_prior_prompt,
                num_images_per_prompt,
                num_inference_steps,
                generator,
                latents,
                guidance_scale,
                "np",
                seed=None if seed is None else as_seed(seed) + place * rows,
            )
            assert isinstance(out, PriorOutput)
            return out

        pictures = iter(self._encode_pictures([item for item in images_and_prompts if is_picture(item)]))
        mixed: Any = 0
        for place, (item, weight) in enumerate(zip(images_and_prompts, weights)):
            if isinstance(item, str):
                embeds = embed(item, place).image_embeds
            elif is_picture(item):
                embeds = next(pictures)
            else:
                embeds = self._as_embedding(item, rows)
            mixed = mixed + embeds.reshape(-1, self.embedding_dim) * float32(weight)
        mixed = broadcast(mixed, rows)
        if seed is not None and negative_prompt == "" and negative_prior_prompt is not None:
            # In the program, the seed after the last item's is that of the negative embedding.
            zero = embed(negative_prior_prompt, len(weights)).image_embeds
        else:
            out_zero = embed(negative_prompt, len(weights))
            zero = out_zero.negative_image_embeds if negative_prompt == "" else out_zero.image_embeds
        out = PriorOutput(self._output(mixed, output_type), self._output(zero, output_type))
        if device is not None and output_type == "pt":
            out = PriorOutput(*(value if value is None else value.to(device) for value in out.to_tuple()))
        return out

    def embed_iter(
        self,
        rows: Iterable[str | Mapping[str, Any]],
        *,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        prefetch: int = 128,
    ) -> Iterator[Embedding]:
        """The embeddings of any number of rows, in order, in memory that does not grow with them.

        Args:
            rows: prompts, or mappings of `prompt` and what else a row has of its own: `negative_prompt`, `seed`,
                `num_inference_steps`, `guidance_scale`. Up to `prefetch` of them are taken before the first embedding
                is given, and no more than so many are between the two; 1 answers each before the next is taken.
            negative_prompt, num_inference_steps, guidance_scale: of rows that have none of their own.
            seed: row r has the seed `seed + r` unless it has its own, as in the program; a negative embedding 2^63
            more.

        The numbers are those of `prior-embed -f -` with these rows. Raises as a call does, after the rows before the
        one at fault.
        """
        if operator.index(prefetch) < 1:
            raise ValueError("`prefetch` has to be 1 or more")
        shared = {"negative_prompt": negative_prompt, "num_inference_steps": num_inference_steps,
                  "guidance_scale": guidance_scale}  # fmt: skip
        first = as_seed(seed)
        return self._embed_iter(rows, shared, first, prefetch)

    def _embed_iter(
        self, rows: Iterable[str | Mapping[str, Any]], shared: dict[str, Any], first: int, prefetch: int
    ) -> Iterator[Embedding]:
        process = self._process()
        # The row's ticket, its prompt and its seed.
        waiting: deque[tuple[Ticket, str, int]] = deque()

        def take() -> Embedding:
            ticket, prompt, seed = waiting[0]
            answer = process.wait(ticket)
            waiting.popleft()
            return Embedding(vector(answer["image_embeds"]), vector(answer.get("negative_image_embeds")), prompt, seed)

        try:
            items, row = iter(rows), 0
            error: Exception | None = None
            while error is None:
                while len(waiting) >= prefetch or (waiting and waiting[0][0].is_done):
                    yield take()
                try:
                    item = next(items)
                except StopIteration:
                    break
                except Exception as wrong:
                    error = wrong
                    break
                try:
                    prompt, seed, text = self._row(item, shared, first + row)
                except (TypeError, ValueError) as wrong:
                    error = PriorInputError(f"row {row}: {wrong}")
                else:
                    waiting.append((process.send([text])[0], prompt, seed))
                    row += 1
            while waiting:
                yield take()
            if error is not None:
                raise error
        finally:
            process.drop([ticket for ticket, _, _ in waiting])

    def _row(self, item: str | Mapping[str, Any], shared: dict[str, Any], seed: int) -> tuple[str, int, bytes]:
        """A row of embed_iter: its prompt, its seed and its line."""
        own: dict[str, Any] = {"prompt": item} if isinstance(item, str) else dict(item)
        unknown = [key for key in own if key not in ROW_KEYS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(ROW_KEYS)}")
        values = {**shared, "seed": seed, **{key: value for key, value in own.items() if value is not None}}
        if not isinstance(values.get("prompt"), str):
            raise ValueError(f"a row's prompt is a text, not {type(values.get('prompt')).__name__}")
        settings = self._settings(values["num_inference_steps"], values["guidance_scale"])
        of_row = RowNoise(as_seed(values["seed"]))
        of_negative = None
        if values["negative_prompt"] is not None:
            offset = (as_seed(values["seed"]) + NEGATIVE_SEED_OFFSET) & MAX_SEED
            of_negative = (texts("negative_prompt", values["negative_prompt"])[0], RowNoise(offset))
        return values["prompt"], values["seed"], line(values["prompt"], of_row, of_negative, settings)

    def close(self) -> None:
        """End the process. A closed pipeline cannot be called again."""
        self._is_closed = True
        self._finalizer()

    def __enter__(self) -> PriorPipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _process(self) -> Process:
        """The process, a new one if the last is gone."""
        with self._lock:
            if self._is_closed:
                raise PriorError("the pipeline is closed")
            if not self._holder or not self._holder[0].is_alive:
                filter_arguments = ["--prompts", "-", "--format-in", "jsonl", "--row-noise", "--out", "-",
                                    "--format", "jsonl-base64"]  # fmt: skip
                end(self._holder)
                self._holder.append(Process([*self._arguments, *filter_arguments], self._folder))
            return self._holder[0]

    def _answers(self, lines: list[bytes]) -> list[dict[str, Any]]:
        """The answers to rows."""
        process = self._process()
        tickets = process.send(lines)
        try:
            return [process.wait(ticket) for ticket in tickets]
        except BaseException:
            process.drop(tickets)
            raise

    def _settings(self, steps: int | None, guidance_scale: float | None) -> dict[str, Any]:
        """What a row's line says of steps and guidance."""
        settings: dict[str, Any] = {}
        if steps is not None:
            settings["steps"] = operator.index(steps)
            scheduler = self._info.get("scheduler")
            if not scheduler:
                raise ValueError("this model's prior takes no steps; leave out `num_inference_steps`")
            most = scheduler["num_train_timesteps"]
            if not 1 <= settings["steps"] <= most:
                raise ValueError(f"`num_inference_steps` has to be between 1 and {most}, not {steps}")
        if guidance_scale is not None:
            settings["guidance_scale"] = float(guidance_scale)
            if not math.isfinite(guidance_scale):
                raise ValueError(f"`guidance_scale` has to be a finite number, not {guidance_scale}")
            if self._arguments[1] != BUILT_IN and self._info["prior"]["is_one_step"]:
                raise ValueError("this model's prior takes no guidance; leave out `guidance_scale`")
        return settings

    def _draws(self, steps: int | None) -> Draws:
        """What a generator draws for a row."""
        prior, scheduler = self._info["prior"], self._info.get("scheduler")
        own = next((a.partition("=")[2] for a in self._arguments if a.startswith("--scheduler=")), "auto")
        if prior["is_one_step"]:
            return Draws(self.embedding_dim, 0)
        is_unclip = own == "unclip" or (own == "auto" and scheduler and scheduler["class"] == "UnCLIPScheduler")
        if prior.get("tokens") is not None or not is_unclip:
            return Draws(self.embedding_dim, None)
        # The last step adds none.
        return Draws(self.embedding_dim, (STEPS if steps is None else operator.index(steps)) - 1)

    def _output(self, array: Any, output_type: str) -> Any:
        """An array as the caller wants it."""
        if array is None or output_type == "np":
            return array
        import torch

        device, dtype = self._output_place
        return torch.from_numpy(array).to(device=device, dtype=dtype)

    def _encode_pictures(self, pictures: list[Any]) -> list[Array]:
        """The image embeddings of pictures, by a process of its own."""
        if not pictures:
            return []
        import tempfile

        with tempfile.TemporaryDirectory(prefix="prior-embed-") as folder:
            paths = []
            for number, picture in enumerate(pictures):
                if isinstance(picture, os.PathLike):
                    paths.append(os.path.abspath(picture))
                else:
                    # What the image processor does first, too.
                    paths.append(os.path.join(folder, f"{number}.png"))
                    picture.convert("RGB").save(paths[-1], compress_level=1)
            arguments = [a for a in self._arguments if not a.startswith(NOT_OF_PICTURES)]
            out = run(["encode-image", *arguments, "--out", "-", "--format", "npy", "--", *paths], self._folder)
        import io

        import numpy

        return list(numpy.load(io.BytesIO(out)))

    def _as_embedding(self, item: Any, rows: int) -> Array:
        """An embedding that is given."""
        import numpy

        if not (hasattr(item, "shape") and hasattr(item, "dtype")):
            kind = type(item).__name__
            raise ValueError(f"`images_and_prompts` holds prompts, PIL images, paths and embeddings, not {kind}")
        array = numpy.asarray(item.detach().float().cpu() if hasattr(item, "detach") else item, dtype="float32")
        if array.shape not in ((self.embedding_dim,), (1, self.embedding_dim), (rows, self.embedding_dim)):
            raise ValueError(
                f"an embedding has shape {array.shape}, not ({self.embedding_dim},) or ({rows}, "
                f"{self.embedding_dim}); a picture is given as a PIL image or a path"
            )
        return array

    def _forget(self) -> None:
        """In a forked child."""
        self._lock = threading.Lock()
        for process in self._holder:
            process.forget()
        self._holder.clear()


PIPELINES: weakref.WeakSet[PriorPipeline] = weakref.WeakSet()


def forget_all() -> None:
    """In a forked child: the processes are the parent's."""
    for pipeline in list(PIPELINES):
        pipeline._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_all)

NOT_OF_PICTURES = ("--scheduler=", "--lora=", "--textual-inversion=", "--prior=", "--text-encoder=", "--tokenizer=")
OF_INFO = (
    "--revision=",
    "--cache-dir=",
    "--offline",
    "--prior=",
    "--text-encoder=",
    "--image-encoder=",
    "--tokenizer=",
)


def info_arguments(arguments: list[str]) -> list[str]:
    """The model's name, and those of its options that describing it takes."""
    return arguments[:2] + [argument for argument in arguments[2:] if argument.startswith(OF_INFO)]


def end(holder: list[Process]) -> None:
    """Ends a pipeline's process."""
    while holder:
        holder.pop().close()


def import_torch() -> None:
    """Raises ImportError with advice."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ImportError('output_type="pt" needs torch; install it, or give output_type="np"') from None


def texts(name: str, value: object) -> list[str]:
    """Prompts as a list."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError(f"`{name}` is a text or a list of texts, not {type(value).__name__}")
    wrong = [one for one in value if not isinstance(one, str)]
    if wrong:
        raise ValueError(f"`{name}` is a list of texts, and holds {type(wrong[0]).__name__}")
    return value


def line(prompt: str, noise: RowNoise, negative: tuple[str, RowNoise] | None, settings: dict[str, Any]) -> bytes:
    """A row as the program reads it."""
    row: dict[str, Any] = {"prompt": prompt, **settings}
    noises = [("", noise)]
    if negative is not None:
        row["negative_prompt"] = negative[0]
        noises.append(("negative_", negative[1]))
    row.update((f"{prefix}seed", noise.seed) for prefix, noise in noises if noise.seed is not None)
    try:
        parts = [json.dumps(row, ensure_ascii=False).encode().removesuffix(b"}")]
    except UnicodeEncodeError:
        raise ValueError(f"prompt {prompt!r} holds half of a surrogate pair, which is no text") from None
    # They are long, and need no escapes.
    for prefix, noise in noises:
        if noise.numbers is not None:
            parts += [b', "%snoise": "' % prefix.encode(), binascii.b2a_base64(noise.numbers, newline=False), b'"']
    return b"".join([*parts, b"}"])


def vector(numbers: bytes | None) -> Any:
    """An array of an answer, which may be written to."""
    import numpy

    return None if numbers is None else numpy.frombuffer(bytearray(numbers), dtype="<f4")


def stacked(answers: list[dict[str, Any]], name: str) -> Any:
    """An array of all answers, (rows, dim)."""
    if name not in answers[0]:
        return None
    return vector(b"".join(answer[name] for answer in answers)).reshape(len(answers), -1)


def is_picture(item: object) -> bool:
    """Whether it is a PIL image or a path."""
    return isinstance(item, os.PathLike) or callable(getattr(item, "convert", None))


def float32(value: float) -> Any:
    """A number as torch multiplies float32 by it."""
    import numpy

    return numpy.float32(value)


def broadcast(array: Any, rows: int) -> Any:
    """A row for each of `rows`."""
    import numpy

    return numpy.array(numpy.broadcast_to(array, (rows, array.shape[1])), dtype="float32")
