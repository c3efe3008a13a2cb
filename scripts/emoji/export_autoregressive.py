"""Writes the trained autoregressive prior to assets/emoji-ar. Text encoder and tokenizer are those of assets/emoji."""

import json

import torch

from tools.built import ROOT

from .autoregressive import CLASS, save
from .sources import cache
from .train_autoregressive import make_autoregressive

FOLDER = ROOT / "assets" / "emoji-ar"
INDEX = {
    "_class_name": "AutoregressivePriorPipeline",
    "prior": ["prior_embed", CLASS],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}


def main():
    """Exports."""
    prior = make_autoregressive()
    prior.load_state_dict(torch.load(cache() / "run" / "autoregressive" / "checkpoint.pt")["model"])
    save(prior, FOLDER / "prior")
    (FOLDER / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
