"""Keeps what is trained so far, or puts it back into the cache, to be trained on:

    cd scripts && PYTHONPATH=. ./reference-python ../assets/next/carry.py save|restore

Weights are kept as float16, averaged where a run averages them; optimizers begin anew.
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
from emoji.train_decoder import Critic
from emoji.train_prior import Denoiser, make_prior
from emoji.training import Optimizer
from emoji.vocabulary import CLIPTokenizer

FOLDER, RUN = Path(__file__).parent, cache() / "run"


def save():
    """Writes what the runs have beside CLIP, which no longer changes."""
    for name in ("prior", "refined", "decoder"):
        path = RUN / name / "checkpoint.pt"
        if path.is_file():
            saved = torch.load(path)
            state = saved["model"] | saved["average"]
            if name == "refined":
                # The text tower is the prior's.
                state = {key: value for key, value in state.items() if not key.startswith("text.")}
            state = {key: value.half().contiguous() for key, value in state.items()}
            save_file(state, FOLDER / f"{name}.safetensors", {"step": str(saved["step"])})
            print(name, saved["step"])
    critic = RUN / "decoder" / "critic.pt"
    if critic.is_file():
        save_file({key: value.half() for key, value in torch.load(critic)["model"].items()}, FOLDER / "critic.safetensors")


def read(name):
    """`(weights, step)`."""
    path = FOLDER / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        return {key: value.float() for key, value in load_file(path).items()}, int((file.metadata() or {}).get("step", 1900))


def write(name, model, step, **more):
    """A checkpoint to go on from."""
    (RUN / name).mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": Optimizer(model, 0.0).state_dict(), "step": step, **more}
    torch.save(state, RUN / name / "checkpoint.pt")


def restore():
    """Makes checkpoints of what is here."""
    copytree(FOLDER / "tokenizer", RUN / "tokenizer", dirs_exist_ok=True)
    tokenizer = CLIPTokenizer.from_pretrained(RUN / "tokenizer")
    towers, denoiser, decoder = Towers(tokenizer, classes(World())), None, Decoder()
    weights, step = read("clip")
    # The heads are not in the file: no later stage needs them.
    assert not towers.load_state_dict(weights, strict=False).unexpected_keys
    write("clip", towers, step)
    denoiser = Denoiser(make_prior(), towers.text)
    for name, model in (("prior", denoiser), ("refined", denoiser), ("decoder", decoder)):
        if (FOLDER / f"{name}.safetensors").is_file():
            weights, step = read(name)
            assert not model.load_state_dict(weights, strict=name != "refined").unexpected_keys
            if name == "refined":
                model.text.requires_grad_(False)
            trained = {key: value.detach().clone() for key, value in model.named_parameters() if value.requires_grad}
            write(name, model, step, average=trained)
    if (FOLDER / "critic.safetensors").is_file():
        critic = Critic(192, RUN / "decoder" / "critic.pt")
        critic.model.load_state_dict(read("critic")[0])
        critic.save()


if __name__ == "__main__":
    {"save": save, "restore": restore}[sys.argv[1]]()
