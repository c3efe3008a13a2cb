"""Which decoders there are, and what each needs. Only the standard library, so that mistakes show before an install."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ..problem import Problem, first_line

BUILTIN = "emoji"


class Family(NamedTuple):
    """What decoders of one kind have in common."""

    name: str
    repository: str
    """The one on the hub that the name stands for."""
    dim: int
    """The length of the embeddings that the repository's decoder takes."""
    classes: tuple
    """diffusers' pipelines, by the name in model_index.json, that hold all its networks."""
    dim_at: tuple
    """Where a decoder says that length: the component, and the entry of its configuration."""
    prompt: str = "optional"
    """Whether it takes the text beside the embedding: `optional`, `required`, `no`."""
    guidance_scale: float | None = None
    """diffusers' default, for the decoders that also take the negative embedding where there is guidance."""
    has_size: bool = True
    """Whether the size of the picture can be chosen."""


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
            "kandinsky-2.2", "kandinsky-community/kandinsky-2-2-decoder", 1280,
            ("KandinskyV22Pipeline", "KandinskyV22CombinedPipeline"),
            ("unet", "encoder_hid_dim"), prompt="no", guidance_scale=4.0,
        ),
        Family(
            "stable-unclip", "sd2-community/stable-diffusion-2-1-unclip-small", 768,
            ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline"), ("image_normalizer", "embedding_dim"),
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

    @property
    def title(self):
        """What messages call it."""
        return f'"{self.source}" ({self.family.name})' if self.is_folder else self.family.name


def choose(name):
    """The decoder that `--decoder` names, or None for the built-in one.

    As with prior-embed's models, `./karlo` names a folder whose name is taken.
    """
    if name == BUILTIN:
        return None
    if name in FAMILIES:
        family = FAMILIES[name]
        return Choice(family, family.repository, is_folder=False, dim=family.dim)
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
    component, entry = family.dim_at
    config = read_json(folder / component / "config.json", f'"{name}" is no whole decoder')
    dim = config.get(entry)
    return Choice(family, name, is_folder=True, dim=dim if isinstance(dim, int) else None)


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
