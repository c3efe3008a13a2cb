"""Muon: steps along the momentum with all its singular values made about one, by a Newton-Schulz iteration.

`torch.optim.Muon` with `match_rms_adamw` takes the same steps; it iterates in bfloat16 on every processor.
"""

import torch

from .precision import has_bfloat16

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that each iteration applies to the singular values: five of them take (0.01, 1) to about 1."""
ITERATIONS = 5


def orthogonalize(matrices):
    """`(matrices, rows, columns)` with singular values near 1."""
    found = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    found = found.bfloat16() if has_bfloat16() else found
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), found, beta=first)
    found = found.to(matrices.dtype)
    return found.mT if matrices.shape[1] > matrices.shape[2] else found


class Muon(torch.optim.Optimizer):
    """For weights that are matrices. A step is as long as one of AdamW."""

    def __init__(self, matrices, weight_decay):
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One step at each group's learning rate."""
        for group in self.param_groups:
            by_shape = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault(weight.shape, []).append(weight)
            for shape, weights in by_shape.items():
                updates = orthogonalize(torch.stack([self.momentum(weight) for weight in weights]))
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, list(updates), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def momentum(self, weight):
        """With Nesterov's look ahead."""
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        state["momentum_buffer"].lerp_(weight.grad, 1 - MOMENTUM)
        return weight.grad.lerp(state["momentum_buffer"], MOMENTUM)
