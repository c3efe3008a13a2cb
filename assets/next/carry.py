"""Keeps what is trained so far, or puts it back into the cache, to be trained on:

    cd scripts && PYTHONPATH=. ./reference-python ../assets/next/carry.py save|restore

Weights are averaged where a run averages them, and kept as float16; the decoder's matrices in 8 bits, with a scale a row.
Optimizers begin anew.
"""

import sys
from pathlib import Path
from shutil import copytree

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from emoji.batches import World, classes
from emoji.clip import Towers
from emoji.decoder import Decoder
from emoji.packages import cache
from emoji.train_prior import Denoiser, make_prior
from emoji.training import Optimizer
from emoji.vocabulary import CLIPTokenizer

FOLDER, RUN = Path(__file__).parent, cache() / "run"
SCALE = ".scale"


def pack(state):
    """Large matrices in 8 bits."""
    packed = {}
    for key, value in state.items():
        if value.ndim == 2 and value.numel() > 4096:
            scale = value.abs().amax(1, keepdim=True) / 127
            packed[key], packed[key + SCALE] = (value / scale).round().to(torch.int8), scale
        else:
            packed[key] = value.half().contiguous()
    return packed


def unpack(state):
    """As float32."""
    scaled = lambda key, value: value.float() * state[key + SCALE] if key + SCALE in state else value.float()
    return {key: scaled(key, value) for key, value in state.items() if not key.endswith(SCALE)}


def save():
    """Writes what the runs have beside CLIP, which no longer changes."""
    for name in ("prior", "decoder"):
        path = RUN / name / "checkpoint.pt"
        if path.is_file():
            saved = torch.load(path)
            state = saved["model"] | saved["average"]
            state = pack(state) if name == "decoder" else {key: value.half().contiguous() for key, value in state.items()}
            save_file(state, FOLDER / f"{name}.safetensors", {"step": str(saved["step"])})
            print(name, saved["step"])


def read(name):
    """`(weights, step)`."""
    path = FOLDER / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        return unpack(load_file(path)), int((file.metadata() or {}).get("step", 1900))


def write(name, model, step, **more):
    """A checkpoint to go on from."""
    (RUN / name).mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": Optimizer(model, 0.0).state_dict(), "step": step, **more}
    torch.save(state, RUN / name / "checkpoint.pt")


def restore():
    """Makes checkpoints of what is here."""
    copytree(FOLDER / "tokenizer", RUN / "tokenizer", dirs_exist_ok=True)
    tokenizer = CLIPTokenizer.from_pretrained(RUN / "tokenizer")
    towers, decoder = Towers(tokenizer, classes(World())), Decoder()
    weights, step = read("clip")
    # The heads are not in the file: no later stage needs them.
    assert not towers.load_state_dict(weights, strict=False).unexpected_keys
    write("clip", towers, step)
    denoiser = Denoiser(make_prior(), towers.text)
    for name, model in (("prior", denoiser), ("decoder", decoder)):
        if (FOLDER / f"{name}.safetensors").is_file():
            weights, step = read(name)
            model.load_state_dict(weights)
            trained = {key: value.detach().clone() for key, value in model.named_parameters() if value.requires_grad}
            write(name, model, step, average=trained)


if __name__ == "__main__":
    {"save": save, "restore": restore}[sys.argv[1]]()
