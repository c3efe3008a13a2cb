"""Trains the small CLIP: `scripts/train-emoji` runs this first. It resumes where it was stopped."""

import json

import numpy as np
import torch

from . import vocabulary
from .batches import World, classes, encode, normalize, scene_group, single
from .clip import MAX_LENGTH, MERGES, Towers
from .drawing import Placed
from .packages import cache, unpack_sentence_model
from .pictures import STYLES
from .precision import reduced
from .training import Optimizer, Run, arguments, load_batches
from .wordings import held_out_wordings

SINGLES, GROUPS, GROUP_SIZE = 256, 16, 16
PATCHES, MASKED = 32, 0.9
"""How many patches of a picture the image tower sees in this share of the steps, as in FLIP (arXiv 2212.00794): most of
what is to be learned of a picture is in half of its patches, and a step takes half the time. Then it sees all."""


def make_tokenizer(world, folder, seed):
    """Learns the byte pairs from captions of training and common English words."""
    if not (folder / "tokenizer.json").is_file():
        rng = np.random.default_rng((seed, 2**40))
        texts = [text for one in world.emoji for _ in range(8) for text in single(world, one, rng, rng).texts]
        texts += [text for _ in range(3000) for sample in scene_group(world, 2, rng, rng) for text in sample.texts]
        # English beyond emoji.
        words = json.loads((unpack_sentence_model() / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        texts += [word for word in words if word.isascii() and word.isalpha() and len(word) > 2 for _ in range(6)]
        vocabulary.save(vocabulary.learn(texts, MERGES), MAX_LENGTH, folder)
    return vocabulary.CLIPTokenizer.from_pretrained(folder)


@torch.no_grad()
def retrieval(world, towers, tokenizer):
    """Of held-out names, the share whose emoji is first, by the two towers alone: to watch the training by."""
    was_training = towers.training
    towers.eval()
    pictures = [world.sprites.draw((255.0,) * 3, [Placed(one.code, 84, 48, 48)], STYLES[0]) for one in world.emoji]
    pixels = normalize(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))
    rng = np.random.default_rng(0)
    wordings = [w for one in world.emoji[::4] for w in held_out_wordings(one, world.emoji, rng) if w.kind in ("template", "keywords")]
    with reduced():
        images = torch.cat([towers.image(pixel_values=part).image_embeds for part in pixels.split(500)]).float()
        texts = towers.text(**encode(tokenizer, [w.text for w in wordings])).text_embeds.float()
    scores = torch.nn.functional.normalize(texts, dim=-1) @ torch.nn.functional.normalize(images, dim=-1).T
    best = scores.topk(5).indices
    right = best == torch.tensor([world.index[w.code] for w in wordings])[:, None]
    towers.train(was_training)
    found = {}
    for kind in ("template", "keywords"):
        of_kind = right[torch.tensor([w.kind == kind for w in wordings])]
        found |= {f"{kind}_top1": of_kind[:, 0].float().mean().item(), f"{kind}_top5": of_kind.any(1).float().mean().item()}
    return {name: round(value, 3) for name, value in found.items()}


def main():
    """Trains."""
    options = arguments(__doc__, 1900, rate=2e-3)
    world = World()
    tokenizer = make_tokenizer(world, cache() / "run" / "tokenizer", options.seed)
    towers = Towers(tokenizer, classes(world))
    run = Run(cache() / "run" / "clip", towers, Optimizer(towers, 0.05), options.steps, options.rate)
    for batch in load_batches(world, tokenizer, options.seed, run, SINGLES, GROUPS, GROUP_SIZE, 1):
        patches = PATCHES if run.step < MASKED * options.steps else None
        with reduced():
            loss, parts = towers(normalize(batch["pictures"]), batch["captions"], batch["labels"], patches)
        run.backward(loss, parts)
        if run.step % 500 == 0 or run.step == options.steps:
            run.write(**retrieval(world, towers, tokenizer))


if __name__ == "__main__":
    main()
