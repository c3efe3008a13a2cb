"""What all training runs share: a schedule, checkpoints to resume from, a log."""

import argparse
import json
import math
import os
import time

import torch
from torch.utils.data import DataLoader

from .batches import Batches
from .muon import Muon
from .packages import cache

BLOCKS = ("layers.", "blocks.")
"""What the transformers call their blocks."""


def arguments(description, steps, rate=1e-3):
    """The command line that all training scripts have; seeds torch."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--rate", type=float, default=rate, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    return options


def load_batches(world, tokenizer, seed, run, *sizes, **options):
    """The batches that are left of a run, made by a process of their own while the model trains."""
    batches = Batches(world, tokenizer, seed, run.step, run.steps, *sizes, **options)
    return DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)


def rate(step, steps, peak, warmup=100):
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


class Optimizer:
    """Muon for the matrices of the transformers' blocks, which learn from fewer steps by it, AdamW for all else. Vectors
    and embeddings do not decay."""

    def __init__(self, model, weight_decay):
        weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        in_block = lambda name, weight: weight.ndim == 2 and any(part in name for part in BLOCKS)
        decays = lambda name, weight: weight.ndim > 1 and "embedding" not in name
        matrices = [weight for name, weight in weights if in_block(name, weight)]
        others = [(name, weight) for name, weight in weights if not in_block(name, weight)]
        self.parts = {"muon": Muon(matrices, weight_decay)} if matrices else {}
        groups = [
            {"params": [w for n, w in others if decays(n, w)], "weight_decay": weight_decay},
            {"params": [w for n, w in others if not decays(n, w)], "weight_decay": 0.0},
        ]
        self.parts["adamw"] = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)

    def step(self, rate):
        """One step at this learning rate; the gradients are gone after it."""
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self):
        """Of each part."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state):
        """Of each part."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def trained(name, model):
    """The model with a run's weights, or with their average where the run has one."""
    saved = torch.load(cache() / "run" / name / "checkpoint.pt")
    model.load_state_dict(saved["model"] | saved.get("average", {}))
    return model.eval()


class Average:
    """The exponential moving average of a model's weights: what is kept of a run in which single steps are noisy."""

    def __init__(self, model, decay):
        self.model, self.decay, self.weights = model, decay, None

    @torch.no_grad()
    def update(self, step):
        """Takes in the weights after a step; early ones are soon forgotten."""
        state = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        if self.weights is None:
            self.weights = {name: value.detach().clone() for name, value in state.items()}
        decay = min(self.decay, (1 + step) / (10 + step))
        values = list(self.weights.values())
        torch._foreach_lerp_(values, [state[name] for name in self.weights], 1 - decay)


class Run:
    """A training run in a folder: it resumes from its last checkpoint."""

    def __init__(self, folder, model, optimizer, steps, peak, average=None):
        self.folder, self.model, self.optimizer, self.steps, self.peak = folder, model, optimizer, steps, peak
        self.average = average
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / "checkpoint.pt"
        self.step = 0
        if self.checkpoint.is_file():
            saved = torch.load(self.checkpoint)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]
            if average:
                average.weights = saved.get("average")
        self.log = open(folder / "log.jsonl", "a", encoding="utf-8")
        self.sums, self.summed = {}, 0
        self.since = self.last_save = time.time()

    def backward(self, loss, parts, every=50):
        """One optimizer step, with what goes along."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step(rate(self.step, self.steps, self.peak))
        self.step += 1
        if self.average:
            self.average.update(self.step)
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.summed += 1
        if self.step % every == 0:
            # Fewer than `every` after the run was resumed.
            means = {name: round(value / self.summed, 4) for name, value in self.sums.items()}
            self.write(**means, seconds_per_step=round((time.time() - self.since) / self.summed, 3))
            self.sums, self.summed, self.since = {}, 0, time.time()
        if self.step == self.steps or time.time() - self.last_save > 120:
            self.save()

    def write(self, **values):
        """A line in the log and on the screen."""
        line = json.dumps({"step": self.step, **values})
        print(line, flush=True)
        print(line, file=self.log, flush=True)

    def save(self):
        """Writes a checkpoint beside the old one and puts it in its place."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        if self.average:
            state["average"] = self.average.weights
        torch.save(state, self.checkpoint.with_suffix(".new"))
        os.replace(self.checkpoint.with_suffix(".new"), self.checkpoint)
        self.last_save = time.time()
