"""diffusers in float64: the same pipeline with the same noise, whose rounding is far below that of float32."""

import contextlib
from unittest import mock

import torch
from diffusers.utils.torch_utils import randn_tensor

from .weights import generator

# Where a pipeline and its scheduler look for their noise.
DRAWERS = [
    "diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_prior.randn_tensor",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_unclip.randn_tensor",
    "diffusers.schedulers.scheduling_unclip.randn_tensor",
    "diffusers.schedulers.scheduling_ddim.randn_tensor",
    "diffusers.schedulers.scheduling_ddpm.randn_tensor",
    "diffusers.schedulers.scheduling_dpmsolver_multistep.randn_tensor",
    "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
    "diffusers.schedulers.scheduling_euler_discrete.randn_tensor",
]


def float32_noise(shape, dtype=None, **options):
    """A generator's normals in float64 are other numbers than those in float32."""
    return randn_tensor(shape, dtype=torch.float32, **options).to(dtype)


@contextlib.contextmanager
def float64(pipeline):
    """A pipeline in float64 for a while; its weights come back as they were."""
    modules = networks(pipeline)
    weights = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    with contextlib.ExitStack() as stack:
        for name in DRAWERS:
            stack.enter_context(mock.patch(name, float32_noise))
        try:
            for module in modules:
                module.to(torch.float64)
            yield pipeline
        finally:
            for module, saved in zip(modules, weights, strict=True):
                module.to(torch.float32)
                module.load_state_dict(saved)


@torch.no_grad()
def jiggle(pipeline, seed):
    """Changes each weight by about what rounding it to float32 would: how much of that arrives in the embeddings?"""
    draws = generator(seed)
    for module in networks(pipeline):
        for _, parameter in sorted(module.named_parameters()):
            change = torch.rand(parameter.shape, generator=draws, dtype=parameter.dtype) - 0.5
            parameter.mul_(1 + 2**-23 * change)


def networks(pipeline):
    """The modules that have a part in image embeddings."""
    names = ["prior", "text_encoder", "prior_text_encoder"]
    return [module for name in names if isinstance(module := getattr(pipeline, name, None), torch.nn.Module)]
