"""Runs diffusers' decoders on embeddings. torch and diffusers, which take seconds, are imported when one is loaded."""

import contextlib
import os
import sys
import warnings

import numpy as np

from . import kandinsky, karlo, sdxl, stable_unclip
from .decoders import check_dim
from .environment import say
from ..problem import FAILED, Problem, first_line

DECODERS = {
    "karlo": karlo.Karlo,
    "kandinsky-2.1": kandinsky.Kandinsky21,
    "kandinsky-2.2": kandinsky.Kandinsky22,
    "stable-unclip": stable_unclip.StableUnclip,
    "sdxl": sdxl.Sdxl,
}


class DiffusersDecoder:
    """A decoder that was loaded, with the settings to draw with."""

    def __init__(self, choice, options, pictures):
        """`options`: those of the command line. `pictures`: what `input_pictures.read` gives."""
        self.choice, self.options = choice, options
        with in_one_line(f"cannot load {choice.title}", self.advice(), options.verbose):
            import torch

            self.torch = torch
            self.device = find_device(torch, options.device or "auto")
            self.dtype = find_dtype(torch, options.dtype or "auto", self.device)
            silence(options.verbose)
            if not choice.is_folder:
                say(f"loading {choice.source}; what the hub's cache lacks is downloaded")
            self.decoder = DECODERS[choice.family.name](choice, options, pictures, self.dtype)
            self.decoder.pipeline.to(self.device)
        self.decoder.pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())

    def advice(self):
        """What to do if it cannot be loaded."""
        if self.choice.is_folder:
            return "is it whole?"
        return f"download {self.choice.source} where the hub can be reached, and give --decoder its folder"

    def draw(self, embeddings, negative):
        """A picture `(height, width, 3)` uint8 for each row, drawn one by one.

        As in prior-embed, row r draws its noise from a generator with the seed S + r, on the CPU whatever the device.
        So a picture does not depend on the rows beside it.
        """
        check_dim(self.decoder.dim, embeddings.rows, embeddings.name, self.choice.title)
        prompts = self.options.prompt or [None]
        for row, embed in enumerate(embeddings.rows):
            generator = self.torch.Generator().manual_seed((self.options.seed or 0) + row)
            prompt = prompts[row if len(prompts) > 1 else 0]
            with in_one_line(f"{self.choice.title} could not draw row {row}", "-v tells more", self.options.verbose):
                pixels = self.run(embed, None if negative is None else negative[row], prompt or "", generator)
            if not np.isfinite(pixels).all():
                reason = f"{self.choice.title} gave no numbers (NaN) for row {row}; try --dtype f32 or bf16"
                raise Problem(reason, FAILED)
            yield (pixels * 255).round().astype(np.uint8)

    def run(self, embed, negative, prompt, generator):
        """Pixels from 0 to 1 for one row."""
        embed, negative = (
            None if array is None else self.torch.tensor(array[None], dtype=self.dtype, device=self.device)
            for array in (embed, negative)
        )
        settings = self.decoder.settings(embed, negative, prompt)
        return self.decoder.pipeline(generator=generator, output_type="np", return_dict=False, **settings)[0][0]


def find_device(torch, name):
    """The torch device of a `--device`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= count:
        raise Problem(f"this machine, or the torch installed on it, has no {name}; use --device auto or cpu")
    return torch.device(name)


def find_dtype(torch, name, device):
    """The torch type of a `--dtype`."""
    if name == "auto":
        name = "f32" if device.type == "cpu" else "f16"
    return {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[name]


def silence(verbose):
    """Keeps the libraries' warnings from the user, who can do nothing about them, and their bars from log files."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the libraries are imported
    import diffusers
    import huggingface_hub
    import transformers

    for library in (diffusers, transformers, huggingface_hub):
        if not verbose:
            library.utils.logging.set_verbosity(50)  # what is fatal comes as an exception
        if not sys.stderr.isatty() and library is not huggingface_hub:
            library.utils.logging.disable_progress_bar()
    if not verbose:
        warnings.simplefilter("ignore")


@contextlib.contextmanager
def in_one_line(what, advice, verbose):
    """Makes any error of the libraries a problem of one line."""
    try:
        yield
    except (Problem, KeyboardInterrupt):
        raise
    except Exception as error:
        if verbose:
            import traceback

            traceback.print_exc()
        raise Problem(f"{what}: {first_line(error)}; {advice}", FAILED) from None
