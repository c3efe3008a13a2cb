"""Random Shap-E pipelines, compared with diffusers."""

import random
import tempfile
from pathlib import Path

import torch

from .pipelines import case
from .random_runs import TEXTS, relative_error, run_binary
from .shap_e import ShapESpec, load_shap_e, run_shap_e, save_shap_e, sensitivity
from .tokenizers import EOS


def random_pipeline(draw):
    """The parts of one pipeline."""
    heads = draw.randint(1, 5)
    prior = {
        "time_embed_act_fn": draw.choice(["silu", "gelu", "gelu", "mish"]),
        "norm_in_type": draw.choice(["layer", "layer", None]),
        "embedding_proj_norm_type": draw.choice([None, "layer"]),
    }
    heun = {
        "use_karras_sigmas": draw.random() < 0.6,
        "clip_sample": draw.random() < 0.7,
        "clip_sample_range": draw.choice([1.0, 2.0]),
        "beta_schedule": draw.choice(["exp", "exp", "linear", "squaredcos_cap_v2"]),
        "num_train_timesteps": draw.choice([1024, 1000, 200]),
        "prediction_type": draw.choice(["sample", "sample", "epsilon", "v_prediction"]),
        "timestep_spacing": draw.choice(["linspace", "leading", "trailing"]),
    }
    return ShapESpec(
        seed=draw.getrandbits(32),
        width=heads * draw.randint(2, 10),
        text_heads=heads,
        text_layers=draw.randint(1, 3),
        hidden_act=draw.choice(["gelu", "quick_gelu"]),
        argmax_pooling=draw.random() < 0.5,
        prior_heads=draw.randint(1, 5),
        prior_head_dim=draw.randint(2, 16),
        prior_layers=draw.randint(1, 4),
        prior=prior,
        heun=heun,
        tokens=draw.randint(1, 40),
        latent_dim=draw.randint(1, 24),
        merges=draw.randint(0, 400),
        max_length=draw.choice([77, 77, draw.randint(6, 60)]),
        pad_token=draw.choice([EOS, EOS, "!", "a</w>"]),
        dtype=draw.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16]),
    )


def random_case(draw):
    """The settings of one run."""
    return case(
        prompts=[draw.choice(TEXTS) for _ in range(draw.randint(1, 4))],
        steps=draw.choice([2, 3, 5, 10, 25, draw.randint(2, 40)]),
        guidance_scale=draw.choice([0.5, 1.0, 4.0, 15.0, round(draw.uniform(0.5, 15), 3)]),
        seed=draw.choice([0, 1, 42, 2**32 - 1, draw.getrandbits(63)]),
        samples_per_prompt=draw.randint(1, 3),
    )


def compare(index, options):
    """Makes pipeline number `index`, runs both sides, and returns the error of the latents, and whether it is a failure."""
    draw = random.Random(f"shap-e {options.seed} {index}")
    spec, settings = random_pipeline(draw), random_case(draw)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        save_shap_e(spec, work / "model")
        pipeline = load_shap_e(work / "model")
        expected = run_shap_e(pipeline, settings)
        shape = f"prior {spec.prior_layers}x{spec.prior_heads}x{spec.prior_head_dim}, {spec.tokens}x{spec.latent_dim}"
        run = ", ".join(f"{key} {settings[key]}" for key in ("steps", "guidance_scale", "seed"))
        made = f"{spec.heun['prediction_type']}, {tuple(expected.shape)}"
        print(f"{index:3} Shap-E, {shape}, {made}, {run}: ", end="", flush=True)
        try:
            found = run_binary(options.binary, work / "model", settings, work / "out.npy", options.extra)
        except (RuntimeError, OSError) as error:
            print(f"FAILED: {error}")
            return float("inf"), True
        error = relative_error(found, expected)
        is_failure = not error <= options.tolerance
        print(f"{error:.1e}", end="")
        if is_failure:
            moved = sensitivity(pipeline, settings)
            print(f", and diffusers moves by {moved:.1e} with a bit of its noise", end="")
            # Nothing here is more exact than that.
            is_failure = not error <= moved
            print("  DIFFERS" if is_failure else "", end="")
    print()
    return error, is_failure
