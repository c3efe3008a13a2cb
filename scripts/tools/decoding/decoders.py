"""Which decoders there are, and what each needs. Only the standard library, so that mistakes show before an install."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ..problem import Problem, first_line

BUILTIN = "emoji"


class Task(NamedTuple):
    """What a decoder can be given beside the embedding, and what runs then."""

    pipeline: str
    """diffusers' pipeline."""
    repository: str
    """The one on the hub with weights for it."""
    kind: str
    """What weights these are."""


class Family(NamedTuple):
    """What decoders of one kind have in common."""

    name: str
    repository: str
    """The one on the hub that the name stands for."""
    dim: int
    """The length of the embeddings that the repository's decoder takes."""
    classes: tuple
    """diffusers' pipelines, by the name in model_index.json, that hold all its networks."""
    dim_at: tuple | None
    """Where a decoder says that length: the component, and the entry of its configuration."""
    prompt: str = "optional"
    """Whether it takes the text beside the embedding: `optional`, `required`, `no`."""
    guidance_scale: float | None = None
    """diffusers' default, for the decoders that also take the negative embedding where there is guidance."""
    has_size: bool = True
    """Whether the size of the picture can be chosen."""
    extras: tuple = ()
    """The options of its own, of those in `EXTRAS`."""
    tasks: dict | None = None
    """What it does by the pictures that are given, of those in `PICTURES`; without any, one thing."""


PICTURES = ("image", "mask", "hint")
"""Options that name a picture."""
EXTRAS = (*PICTURES, "strength", "noise_level", "ip_adapter", "ip_adapter_scale")
"""Options that not every family has."""
KANDINSKY22 = "kandinsky-community/kandinsky-2-2-"
DECODER, INPAINTING, CONTROLNET = "decoder", "decoder for inpainting", "decoder for hints (controlnet)"
KANDINSKY22_TASKS = {
    frozenset(given): Task(f"KandinskyV22{pipeline}Pipeline", KANDINSKY22 + repository, kind)
    for given, pipeline, repository, kind in (
        ((), "", "decoder", DECODER),
        (("image",), "Img2Img", "decoder", DECODER),
        (("image", "mask"), "Inpaint", "decoder-inpaint", INPAINTING),
        (("hint",), "Controlnet", "controlnet-depth", CONTROLNET),
        (("hint", "image"), "ControlnetImg2Img", "controlnet-depth", CONTROLNET),
    )
}

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "karlo", "kakaobrain/karlo-v1-alpha-image-variations", 768,
            ("UnCLIPImageVariationPipeline", "UnCLIPPipeline"),
            ("text_proj", "clip_embeddings_dim"), has_size=False,
        ),
        Family(
            "kandinsky-2.1", "kandinsky-community/kandinsky-2-1", 768,
            ("KandinskyPipeline", "KandinskyCombinedPipeline"),
            ("unet", "cross_attention_dim"), prompt="required", guidance_scale=4.0,
        ),
        Family(
            "kandinsky-2.2", f"{KANDINSKY22}decoder", 1280,
            ("KandinskyV22Pipeline", "KandinskyV22CombinedPipeline",
             *(f"KandinskyV22{name}Pipeline" for name in (
                 "Img2Img", "Img2ImgCombined", "Inpaint", "InpaintCombined", "Controlnet", "ControlnetImg2Img"))),
            ("unet", "encoder_hid_dim"), prompt="no", guidance_scale=4.0,
            extras=("image", "strength", "mask", "hint"), tasks=KANDINSKY22_TASKS,
        ),
        Family(
            "stable-unclip", "sd2-community/stable-diffusion-2-1-unclip-small", 768,
            ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline"), ("image_normalizer", "embedding_dim"),
            extras=("noise_level",),
        ),
        Family(
            "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", 1280, ("StableDiffusionXLPipeline",), None,
            extras=("ip_adapter", "ip_adapter_scale"),
        ),
    )
}  # fmt: skip
NAMES = ", ".join(FAMILIES)


class Choice(NamedTuple):
    """A decoder that diffusers runs."""

    family: Family
    source: str
    """The repository, or the path of a folder."""
    is_folder: bool
    dim: int | None
    """The length of the embeddings it takes, as far as that is known before it is loaded."""
    task: Task | None

    @property
    def title(self):
        """What messages call it."""
        return f'"{self.source}" ({self.family.name})' if self.is_folder else self.family.name


def choose(name, given=frozenset()):
    """The decoder that `--decoder` names, or None for the built-in one. `given`: the names of options for it.

    As with prior-embed's models, `./karlo` names a folder whose name is taken.
    """
    if name == BUILTIN:
        return None
    if name in FAMILIES:
        family = FAMILIES[name]
        task = choose_task(family, given)
        # Another adapter may take embeddings of another length.
        dim = None if "ip_adapter" in given else family.dim
        return Choice(family, task.repository if task else family.repository, is_folder=False, dim=dim, task=task)
    folder = Path(name)
    if not name or not folder.is_dir():
        raise Problem(f'decoder "{name}" is neither a folder nor one of {BUILTIN}, {NAMES}')
    index = read_json(folder / "model_index.json", f'"{name}" is no decoder in diffusers\' layout')
    wanted = index.get("_class_name")
    family = next((family for family in FAMILIES.values() if wanted in family.classes), None)
    if family is None:
        kind = "a prior and no decoder" if "Prior" in str(wanted) else "which is no decoder known here"
        known = ", ".join(family.classes[0] for family in FAMILIES.values())
        raise Problem(f'"{name}" holds a {wanted}, {kind}; give a folder with {known}')
    task = choose_task(family, given)
    if family.dim_at is None:
        return Choice(family, name, is_folder=True, dim=None, task=task)
    component, entry = family.dim_at
    config = read_json(folder / component / "config.json", f'"{name}" is no whole decoder')
    if task is not None and kind_of(config) != task.kind:
        options = ", ".join(option(picture) for picture in PICTURES if picture in given) or "an embedding alone"
        raise Problem(f'"{name}" holds a {kind_of(config)}, and {options} is for a {task.kind}; give a folder with '
                      f"one, as {task.repository} is")  # fmt: skip
    dim = config.get(entry)
    return Choice(family, name, is_folder=True, dim=dim if isinstance(dim, int) else None, task=task)


def choose_task(family, given):
    """What a family does with these options; None if it does one thing."""
    for name in EXTRAS:
        if name in given and name not in family.extras:
            others = ", ".join(other.name for other in FAMILIES.values() if name in other.extras)
            raise Problem(f"{option(name)} is for {others}, not for {family.name}; leave it out")
    if family.tasks is None:
        return None
    if "strength" in given and ("image" not in given or "mask" in given):
        raise Problem("--strength is how far to go from --image FILE; it needs that, and no --mask")
    task = family.tasks.get(frozenset(given).intersection(PICTURES))
    if task is None:
        what = "goes with no --hint" if "hint" in given else "says where to repaint --image FILE; give that too"
        raise Problem(f"--mask {what}")
    return task


def kind_of(config):
    """What weights of Kandinsky 2.2 these are, by the configuration of the network."""
    if config.get("addition_embed_type") == "image_hint":
        return CONTROLNET
    # The latents, those of the masked picture, and the mask.
    return INPAINTING if config.get("in_channels") == 9 else DECODER


def option(name):
    """The option of the command line."""
    return f"--{name.replace('_', '-')}"


def read_json(path, what):
    """The object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problem(f'{what}: {path.name} in "{path.parent}" cannot be read ({first_line(error)})') from None
    if not isinstance(content, dict):
        raise Problem(f'{what}: {path.name} in "{path.parent}" holds no JSON object')
    return content


def check_dim(dim, rows, name, title, advice="use the decoder that belongs to the prior that made them (--decoder)"):
    """Refuses embeddings of another length than the decoder takes."""
    if dim is not None and rows.shape[1] != dim:
        raise Problem(f"{title} takes embeddings of {dim} numbers, and those in {name} have {rows.shape[1]}; {advice}")
