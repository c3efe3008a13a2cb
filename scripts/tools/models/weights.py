"""Random weights, reproducible, and the libraries set up for them."""

import diffusers
import torch
import transformers


def set_up():
    """One thread, for sums in one order, and silent libraries."""
    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity(50)


def generator(seed):
    """A CPU generator with a seed: nothing here draws from torch's global state."""
    return torch.Generator().manual_seed(seed)


EMBEDDINGS = ("token_embedding.weight", "position_embedding.weight", "positional_embedding", "prd_embedding")


@torch.no_grad()
def spread_parameters(module, seed):
    """Fills a module with weights large and uneven enough that a wrong term shows in the output.

    The default initialisation hides mistakes: its biases are 0, its norm weights 1 and its attention nearly uniform.
    """
    draws = generator(seed)
    for name, parameter in sorted(module.named_parameters()):
        values = torch.randn(parameter.shape, generator=draws)
        if name == "clip_std":
            values = 0.75 + 0.5 * values.sigmoid()
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        elif parameter.dim() < 2 or name == "clip_mean":
            values = 0.2 * values
        elif name.endswith(EMBEDDINGS):
            values = 0.4 * values
        else:
            fan_in = parameter[0].numel()
            values = values * min(max(fan_in**-0.5, 0.1), 0.3)
        parameter.copy_(values)
    return module.eval()


# What is added to the residual stream; scaled down with depth, as in GPT-2, so that the input still shows at the end.
RESIDUAL = ("to_out.0.weight", "ff.net.2.weight", "out_proj.weight", "mlp.fc2.weight")


@torch.no_grad()
def trained_parameters(module, seed, layers):
    """Fills a module with weights that keep activations and embeddings at the scale of a trained model's."""
    draws = generator(seed)
    for name, parameter in sorted(module.named_parameters()):
        values = torch.randn(parameter.shape, generator=draws)
        if name == "clip_std":
            values = 0.5 + 0.05 * values
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.1 * values
        elif name == "clip_mean":
            values = 0.05 * values
        elif name.endswith("bias") or "token_embedding" in name or "position_embedding" in name:
            values = 0.02 * values
        elif "embedding" in name and not name.endswith("weight"):
            values = 0.3 * values
        else:
            depth = (2 * layers) ** -0.5 if name.endswith(RESIDUAL) else 1.0
            values = values * (depth * parameter.shape[-1] ** -0.5)
        parameter.copy_(values)
    return module.eval()
