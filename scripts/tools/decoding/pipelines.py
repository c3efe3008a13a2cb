"""Runs diffusers' decoders on embeddings. torch and diffusers, which take seconds, are imported when one is loaded."""

import contextlib
import os
import sys
import warnings

import numpy as np

from .decoders import check_dim
from .environment import say
from ..problem import FAILED, Problem, first_line


class DiffusersDecoder:
    """A decoder that was loaded, with the settings to draw with."""

    def __init__(self, choice, options):
        """`options`: those of the command line."""
        self.choice, self.options = choice, options
        with in_one_line(f"cannot load {choice.title}", self.advice(), options.verbose):
            import torch

            self.torch = torch
            self.device = find_device(torch, options.device or "auto")
            self.dtype = find_dtype(torch, options.dtype or "auto", self.device)
            silence(options.verbose)
            if not choice.is_folder:
                say(f"loading {choice.source}; what the hub's cache lacks is downloaded")
            self.pipeline = load(choice, self.dtype).to(self.device)
        self.pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())

    def advice(self):
        """What to do if it cannot be loaded."""
        if self.choice.is_folder:
            return "is it whole?"
        return f"download {self.choice.source} where the hub can be reached, and give --decoder its folder"

    @property
    def dim(self):
        """The length of the embeddings that it takes."""
        component, entry = self.choice.family.dim_at
        return getattr(self.pipeline, component).config[entry]

    def draw(self, embeddings, negative):
        """A picture `(height, width, 3)` uint8 for each row, drawn one by one.

        As in prior-embed, row r draws its noise from a generator with the seed S + r, on the CPU whatever the device.
        So a picture does not depend on the rows beside it.
        """
        check_dim(self.dim, embeddings.rows, embeddings.name, self.choice.title)
        prompts = self.options.prompt or [None]
        for row, embed in enumerate(embeddings.rows):
            generator = self.torch.Generator().manual_seed((self.options.seed or 0) + row)
            prompt = prompts[row if len(prompts) > 1 else 0]
            with in_one_line(f"{self.choice.title} could not draw row {row}", "-v tells more", self.options.verbose):
                pixels = self.run(embed, None if negative is None else negative[row], prompt, generator)
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
        settings = {"generator": generator, "output_type": "np", "return_dict": False}
        # The options that are not given stay at diffusers' defaults.
        for name in ("height", "width"):
            settings |= given(name, getattr(self.options, name))
        steps, guidance_scale = self.options.steps, self.options.guidance_scale
        if self.choice.family.name == "karlo":
            self.pipeline.text = prompt or ""
            settings |= given("decoder_num_inference_steps", steps) | given("decoder_guidance_scale", guidance_scale)
            return self.pipeline(image_embeddings=embed, **settings)[0][0]
        settings |= given("num_inference_steps", steps) | given("guidance_scale", guidance_scale)
        if self.choice.family.prompt != "no":
            settings["prompt"] = prompt or ""
        if self.choice.family.guidance_scale is not None:
            settings["negative_image_embeds"] = negative
        return self.pipeline(image_embeds=embed, **settings)[0][0]


def given(name, value):
    """A setting, if there is one."""
    return {} if value is None else {name: value}


def load(choice, dtype):
    """The pipeline, without the networks that only turn pictures into embeddings: those are here already."""
    from diffusers import KandinskyPipeline, KandinskyV22Pipeline

    # Newer diffusers call it dtype, but take this too.
    settings = {"torch_dtype": dtype, "local_files_only": choice.is_folder}
    family = choice.family.name
    if family == "karlo":
        return load_karlo(choice.source, dtype, choice.is_folder)
    if family == "stable-unclip":
        settings |= {"image_encoder": None, "feature_extractor": None}
        return stable_unclip_class().from_pretrained(choice.source, **settings)
    pipeline_class = KandinskyPipeline if family == "kandinsky-2.1" else KandinskyV22Pipeline
    return pipeline_class.from_pretrained(choice.source, **settings)


def load_karlo(source, dtype, local_files_only):
    """UnCLIPImageVariationPipeline, which takes embeddings, with the text of UnCLIPPipeline, which takes a prompt.

    Part by part: diffusers moved the module of UnCLIPTextProjModel, and since then it cannot load a whole Karlo itself.
    """
    from diffusers import (
        UnCLIPImageVariationPipeline,
        UnCLIPPipeline,
        UnCLIPScheduler,
        UNet2DConditionModel,
        UNet2DModel,
    )
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    class Karlo(UnCLIPImageVariationPipeline):
        """Needs no image encoder, and lets the prompt be something else than empty."""

        text = ""

        def _encode_prompt(self, prompt, *arguments):
            return UnCLIPPipeline._encode_prompt(self, [self.text] * len(prompt), *arguments)

        def _encode_image(self, image, device, num_images_per_prompt, image_embeddings=None):
            return image_embeddings

    def part(name, part_class, **settings):
        return part_class.from_pretrained(source, subfolder=name, local_files_only=local_files_only, **settings)

    networks = {
        "text_encoder": CLIPTextModelWithProjection, "text_proj": UnCLIPTextProjModel, "decoder": UNet2DConditionModel,
        "super_res_first": UNet2DModel, "super_res_last": UNet2DModel,
    }  # fmt: skip
    others = {"tokenizer": CLIPTokenizer, "decoder_scheduler": UnCLIPScheduler, "super_res_scheduler": UnCLIPScheduler}
    return Karlo(
        **{name: part(name, part_class, torch_dtype=dtype) for name, part_class in networks.items()},
        **{name: part(name, part_class) for name, part_class in others.items()},
        image_encoder=None, feature_extractor=None,
    )  # fmt: skip


def stable_unclip_class():
    """StableUnCLIPImg2ImgPipeline without an image encoder, which it would only ask for its type."""
    from diffusers import StableUnCLIPImg2ImgPipeline

    class StableUnCLIP(StableUnCLIPImg2ImgPipeline):
        """Lets the text encoder, of the same type, stand in for the image encoder."""

        def _encode_image(self, *arguments, **settings):
            self.image_encoder = self.text_encoder
            try:
                return super()._encode_image(*arguments, **settings)
            finally:
                self.image_encoder = None

    return StableUnCLIP


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
