"""Trains the CLIP's text tower on, with the image tower locked. It resumes where it was stopped.

Captions cost a fraction of what pictures do, and an image embedding that no longer changes can be compared with the
captions of later batches too: the text tower sees more captions and more pictures in the same time.
"""

import torch
from torch import nn

from .bank import Bank, what_is_shown
from .batches import normalize
from .clip import SCALE, WEIGHTS, mean
from .sources import cache
from .trained_clip import load_clip, text_checkpoint
from .train_clip import retrieval
from .training import Run, arguments, load_batches, optimizer

SINGLES, GROUPS, GROUP_SIZE = 192, 16, 16
CAPTIONS = 4


class TextTower(nn.Module):
    """What is trained: the text tower and its heads."""

    def __init__(self, towers):
        super().__init__()
        # In a list, so that the image tower's weights are not taken for this module's.
        self.towers = [towers]
        self.text, self.text_heads = towers.text.requires_grad_(True), towers.text_heads.requires_grad_(True)

    def forward(self, images, batch, bank):
        """`(loss, parts)`; `images` are embeddings of length 1."""
        entropy, target = nn.functional.cross_entropy, torch.arange(len(images))
        shown = what_is_shown(batch)
        parts = {"contrastive": [], "text_heads": [], "accuracy": [], "cosine": []}
        for captions in batch["captions"]:
            texts = self.towers[0].embed_texts(captions)
            direction = nn.functional.normalize(texts.float(), dim=-1)
            scores = SCALE * direction @ images.T
            among_all = torch.cat([scores, bank.scores(direction, shown)], 1)
            of_texts = entropy(among_all, target)
            parts["contrastive"].append((of_texts + entropy(scores.T, target)) / 2)
            parts["text_heads"].append(self.text_heads(texts, batch["labels"]))
            with torch.no_grad():
                parts["accuracy"].append((among_all.argmax(1) == target).float().mean())
                parts["cosine"].append(scores.diagonal().mean() / SCALE)
        bank.add(images, shown)
        means = {name: mean(values) for name, values in parts.items()}
        loss = sum(WEIGHTS[name] * means[name] for name in ("contrastive", "text_heads"))
        return loss, {name: value.detach() for name, value in means.items()}


def main():
    """Trains."""
    options = arguments(__doc__, 2600, rate=6e-4)
    world, tokenizer, towers = load_clip(with_text=False)
    tower = TextTower(towers).train()
    bank = Bank(towers.text.config.projection_dim)
    run = Run(cache() / "run" / "text", tower, optimizer(tower, 0.05), options.steps, options.rate)
    sizes = (SINGLES, GROUPS, GROUP_SIZE, CAPTIONS)
    for batch in load_batches(world, tokenizer, options.seed + 4, run, *sizes):
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                images = towers.image(pixel_values=normalize(batch["pictures"])).image_embeds.float()
            loss, parts = tower(nn.functional.normalize(images, dim=-1), batch, bank)
        run.backward(loss, parts)
        if run.step % 500 == 0 or run.step == options.steps:
            run.write(**retrieval(world, towers, tokenizer))
    torch.save(tower.text.state_dict(), text_checkpoint())


if __name__ == "__main__":
    main()
