"""Writes what was trained to assets/: the model in diffusers' layout, the decoder, the index of emoji."""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import KandinskyV22PriorPipeline
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil

from tools.built import ROOT

from .decoder import Decoder
from .drawing import CANVAS
from .pool import Pool
from .train_prior import Denoiser, make_prior, make_scheduler
from .trained_clip import load_clip
from .training import trained

ASSETS = ROOT / "assets"
# Of what transformers and diffusers write beside the model, the parts that only this machine knows.
PRIVATE = {"_name_or_path"}


@torch.no_grad()
def shorten(model):
    """Rounds weights to the eight digits of bfloat16. Stored as float16, they pack into three quarters of the space, which
    lets the published crate hold them. What says where embeddings lie stays as it is."""
    for name, weight in model.named_parameters():
        if not name.startswith("clip_"):
            weight.copy_(weight.bfloat16())
    return model.half()


def write_pipeline(towers, tokenizer, prior, folder):
    """The pipeline as diffusers saves it, in float16."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": CANVAS}, crop_size={"height": CANVAS, "width": CANVAS},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    pipeline = KandinskyV22PriorPipeline(
        prior=shorten(prior), image_encoder=towers.image.half(), text_encoder=shorten(towers.text), tokenizer=tokenizer,
        scheduler=make_scheduler(), image_processor=processor,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "emoji"
        pipeline.save_pretrained(saved)
        for path in saved.rglob("*.json"):
            tidy(path)
        # The model card stays.
        shutil.copytree(saved, folder, dirs_exist_ok=True)


def tidy(path):
    """Leaves out of a configuration what only this machine knows."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in PRIVATE}
    if path.name == "tokenizer.json":
        path.write_text(json.dumps(kept, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    elif kept != content:
        path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def write_index(world, means, folder):
    """The mean direction of the image embeddings of every emoji, `(emoji, dim)`, and what the emoji are called. Any one picture
    is of some style, on some background: a caption that says neither is nearer to the mean of all."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"mean": means.half()}, folder / "index.safetensors")
    names = [{"code": one.code, "name": one.name, "group": one.group} for one in world.emoji]
    lines = ",\n".join(json.dumps(name, ensure_ascii=False) for name in names)
    (folder / "emoji.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main():
    """Exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    options = parser.parse_args()
    world, tokenizer, towers = load_clip()
    tokenizer.init_kwargs.pop("local_files_only", None)
    pool = Pool(world, towers, tokenizer)
    denoiser = trained("prior", Denoiser(make_prior(), towers.text))
    prior = trained("refined", denoiser).prior
    prior.set_default_attn_processor()
    write_pipeline(towers, tokenizer, prior, options.assets / "emoji")
    with torch.no_grad():
        # As it was written: rounded to float16, computing in float32.
        zero = towers.image.float()(pixel_values=torch.zeros(1, 3, CANVAS, CANVAS)).image_embeds
    save_file({"image_embeds": zero}, options.assets / "emoji" / "zero_image_embed.safetensors")
    write_index(world, pool.emoji_means(), options.assets / "index")
    decoder = Decoder()
    trained("decoder", decoder.arranger), trained("sprites", decoder.sprites)
    (options.assets / "decoder").mkdir(parents=True, exist_ok=True)
    save_file(decoder.half().state_dict(), options.assets / "decoder" / "decoder.safetensors")
    for path in options.assets.rglob("*.safetensors"):
        # Written as private files.
        path.chmod(0o644)


if __name__ == "__main__":
    main()
