"""Makes checkpoints of the weights in assets/, to be trained on without what comes before: `reference-python -m
emoji.from_assets` in scripts/. Optimizers begin anew, and stages that are done stay so."""

import shutil

import torch
from diffusers import PriorTransformer
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from tools.built import ROOT

from .batches import World, classes
from .clip import Towers
from .decoder import Decoder
from .packages import cache
from .train_prior import Denoiser
from .training import Optimizer

ASSETS, RUN = ROOT / "assets", cache() / "run"


def write(name, model, step):
    """A run's checkpoint, if it has none."""
    path = RUN / name / "checkpoint.pt"
    if path.is_file():
        print(f"{path} is kept")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "optimizer": Optimizer(model, 0.0).state_dict(), "step": step}, path)


def main():
    """Writes them."""
    emoji = ASSETS / "emoji"
    shutil.copytree(emoji / "tokenizer", RUN / "tokenizer", dirs_exist_ok=True)
    towers = Towers(CLIPTokenizer.from_pretrained(emoji / "tokenizer"), classes(World()))
    load = lambda kind, part: kind.from_pretrained(emoji / part, dtype=torch.float32)
    towers.text.load_state_dict(load(CLIPTextModelWithProjection, "text_encoder").state_dict())
    towers.image.load_state_dict(load(CLIPVisionModelWithProjection, "image_encoder").state_dict())
    decoder = Decoder()
    decoder.load_state_dict(load_file(ASSETS / "decoder" / "decoder.safetensors"))
    # Heads are not kept: only CLIP's own training needs them.
    write("clip", towers, 1900)
    write("prior", Denoiser(PriorTransformer.from_pretrained(emoji / "prior", torch_dtype=torch.float32), towers.text), 3000)
    write("sprites", decoder.sprites, 2500)
    write("decoder", decoder.arranger, 6000)


if __name__ == "__main__":
    main()
