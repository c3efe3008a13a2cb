"""Writes the trained autoregressive prior to assets/emoji-ar. Text encoder and tokenizer are those of assets/emoji."""

import json

import torch

from tools.built import ROOT

from .autoregressive import CLASS, EXACT, save
from .train_autoregressive import make_autoregressive
from .training import trained

FOLDER = ROOT / "assets" / "emoji-ar"
INDEX = {
    "_class_name": "AutoregressivePriorPipeline",
    "prior": ["prior_embed", CLASS],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}


def main():
    """Exports."""
    prior = trained("autoregressive", make_autoregressive())
    with torch.no_grad():
        for name, weight in prior.named_parameters():
            # They pack into less space, as those of assets/emoji.
            if not name.startswith(EXACT):
                weight.copy_(weight.bfloat16())
    save(prior, FOLDER / "prior")
    (FOLDER / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
