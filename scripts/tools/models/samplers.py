"""diffusers' schedulers by prior-embed's names, and random configurations of them."""

import math
from contextlib import contextmanager
from unittest.mock import patch

import numpy
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

CLASSES = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpm-solver++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
}

PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["linspace", "leading", "trailing"]
BETAS = [
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
]
# What a class may have beside what all have.
OPTIONS = {
    "ddpm": {
        "variance_type": ["fixed_small", "fixed_small_log", "fixed_large"],
        "clip_sample": [True, False],
        "clip_sample_range": [1.0, 5.0],
        "rescale_betas_zero_snr": [False, False, True],
    },
    "ddim": {
        "clip_sample": [True, False],
        "clip_sample_range": [1.0, 5.0],
        "set_alpha_to_one": [True, False],
        "rescale_betas_zero_snr": [False, False, True],
    },
    "dpm-solver++": {
        "solver_order": [1, 2, 2, 3],
        "algorithm_type": ["dpmsolver++", "dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"],
        "solver_type": ["midpoint", "heun"],
        "lower_order_final": [True, False],
        "euler_at_final": [False, False, True],
        "final_sigmas_type": ["zero", "sigma_min"],
        "use_karras_sigmas": [False, False, True],
        "use_exponential_sigmas": [False, False, False, True],
        "use_lu_lambdas": [False, False, False, True],
        "lambda_min_clipped": [-math.inf, -math.inf, -5.1],
        "rescale_betas_zero_snr": [False, False, True],
    },
    "euler": {
        "interpolation_type": ["linear", "linear", "log_linear"],
        "use_karras_sigmas": [False, False, True],
        "use_exponential_sigmas": [False, False, True],
        "sigma_min": [None, None, 0.05],
        "sigma_max": [None, None, 20.0],
        "timestep_type": ["discrete", "discrete", "continuous"],
        "final_sigmas_type": ["zero", "zero", "sigma_min"],
        "rescale_betas_zero_snr": [False, False, True],
    },
    "euler-ancestral": {"rescale_betas_zero_snr": [False, False, True]},
    "heun": {
        "use_karras_sigmas": [False, False, True],
        "use_exponential_sigmas": [False, False, True],
        "clip_sample": [False, False, True],
        "clip_sample_range": [1.0, 5.0],
    },
}


@contextmanager
def nearest_roots():
    """Has torch take the nearest number for a square root, also for `x ** 0.5`.

    It takes MKL's, whose last bit is another on each kind of processor: enough to decide whether the root of a small
    difference is one of a number below 0.
    """
    power = torch.Tensor.__pow__

    def root(tensor):
        return torch.from_numpy(numpy.asarray(numpy.sqrt(tensor.numpy())))

    def raised(base, exponent):
        return root(base) if exponent == 0.5 else power(base, exponent)

    with (
        patch.object(torch.Tensor, "sqrt", root),
        patch.object(torch, "sqrt", root),
        patch.object(torch.Tensor, "__pow__", raised),
    ):
        yield


def random_configuration(draw, name):
    """A configuration of a class, as its `scheduler_config.json` may hold it; diffusers may refuse it."""
    configuration = {
        "prediction_type": draw.choice(PREDICTIONS),
        "timestep_spacing": draw.choice(SPACINGS),
        "steps_offset": draw.choice([0, 0, 1]),
        "num_train_timesteps": draw.choice([1000, 1000, 1000, 200]),
    }
    configuration |= draw.choice(BETAS)
    options = {key: draw.choice(values) for key, values in OPTIONS[name].items()}
    # A few at a time: most combinations of all are refused.
    return configuration | {key: options[key] for key in options if draw.random() < 0.5}


def step_options(scheduler, eta):
    """What `step` takes beside the sample, as diffusers' pipelines choose it."""
    return {"eta": eta} if isinstance(scheduler, DDIMScheduler) else {}


@torch.no_grad()
def trajectory(scheduler, inputs, eta=0.0, steps=None):
    """The model's inputs and the samples of a run with the model's outputs given, and the noise through `randn_tensor`."""
    scheduler.set_timesteps(steps)
    sample, scaled, samples = inputs["sample"] * scheduler.init_noise_sigma, [], []
    for index, timestep in enumerate(scheduler.timesteps):
        scaled.append(scheduler.scale_model_input(sample, timestep))
        output = inputs["model_output"][index]
        sample = scheduler.step(output, timestep, sample, **step_options(scheduler, eta), return_dict=False)[0]
        samples.append(sample)
    return torch.stack(scaled), torch.stack(samples)

