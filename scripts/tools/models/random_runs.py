"""Random pipelines, and prior-embed's runs of them."""

import subprocess

import numpy as np
import torch

from .pipelines import Spec
from .texts import hard_texts
from .tokenizers import EOS

# What an argument of a process can hold.
TEXTS = [text for text in hard_texts() if "\0" not in text]


def random_spec(draw, seed):
    """The parts of one pipeline."""
    text_heads = draw.randint(1, 6)
    prior = {
        "time_embed_act_fn": draw.choice(["silu", "silu", "mish", "gelu", "relu", "swish"]),
        "time_embed_dim": draw.choice([None, None, draw.randint(3, 40)]),
        "norm_in_type": draw.choice([None, None, "layer"]),
        "embedding_proj_norm_type": draw.choice([None, None, "layer"]),
    }
    scheduler = {
        "clip_sample": draw.random() < 0.75,
        "clip_sample_range": draw.choice([5.0, 10.0]),
        "num_train_timesteps": draw.choice([1000, 1000, 1000, 200]),
    }
    return Spec(
        seed=seed,
        width=text_heads * draw.randint(2, 12),
        text_heads=text_heads,
        text_layers=draw.randint(1, 4),
        hidden_act=draw.choice(["gelu", "quick_gelu"]),
        argmax_pooling=draw.random() < 0.5,
        prior_heads=draw.randint(1, 6),
        prior_head_dim=draw.randint(2, 16),
        prior_layers=draw.randint(1, 4),
        prior=prior,
        scheduler=scheduler,
        merges=draw.randint(0, 400),
        max_length=draw.choice([77, 77, draw.randint(6, 60)]),
        pad_token=draw.choice([EOS, EOS, "!", "a</w>"]),
        tokenizer_json=draw.random() < 0.5,
        legacy_files=draw.random() < 0.3,
        dtype=draw.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16]),
        image_encoder=draw.random() < 0.7,
        max_shard_size=draw.choice([None, None, "16KB"]),
        variant=draw.choice([None, None, None, "fp16"]),
    )


def describe(spec, settings, saved="", loras=()):
    """One pipeline and its run, in a few words."""
    parts = [
        str(spec.dtype).removeprefix("torch."),
        f"width {spec.width} text {spec.text_layers}x{spec.text_heads} {spec.hidden_act}",
        f"prior {spec.prior_layers}x{spec.prior_heads}x{spec.prior_head_dim}",
        f"pad {spec.pad_token}",
        "tokenizer.json" if spec.tokenizer_json else "vocab.json",
        "sharded" if spec.max_shard_size else "",
        f"{spec.variant} variant" if spec.variant else "",
        saved,
        f"LoRA {' + '.join(loras)}" if loras else "",
        "" if spec.image_encoder else "no image encoder",
        f"prompts {len(settings['prompts'])}x{settings['samples_per_prompt']}",
        "" if settings["negative_prompt"] is None else "negative",
        "" if settings["steps"] is None else f"steps {settings['steps']} guidance {settings['guidance_scale']}",
        f"seed {settings['seed']}",
    ]
    return ", ".join(part for part in parts if part)


def relative_error(found, expected):
    """The largest difference, in units of the largest reference value; infinite if an array is missing or misshapen."""
    if expected is None:
        return 0.0 if found is None else float("inf")
    expected = expected.numpy()
    if found is None or found.shape != expected.shape or found.dtype != np.float32:
        return float("inf")
    error = np.abs(found - expected).max() / np.abs(expected).max()
    return float(error) if np.isfinite(error) else float("inf")


def run_binary(binary, folder, settings, out, extra):
    """prior-embed's arrays, by name; of .npy, the one."""
    command = [
        binary,
        "--model",
        folder,
        "--seed",
        settings["seed"],
        "--samples-per-prompt",
        settings["samples_per_prompt"],
        "--out",
        out,
        "--overwrite",
        *[f"--prompt={prompt}" for prompt in settings["prompts"]],
    ]
    # A one-step prior takes neither.
    if settings["steps"] is not None:
        command += ["--steps", settings["steps"], "--guidance-scale", settings["guidance_scale"]]
    if settings["negative_prompt"] is not None:
        command.append(f"--negative-prompt={settings['negative_prompt']}")
    done = subprocess.run([str(part) for part in command + extra], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"prior-embed ended with {done.returncode}: {done.stderr.strip()}")
    arrays = np.load(out)
    return arrays if isinstance(arrays, np.ndarray) else dict(arrays)


def compare_all(compare, options, indices):
    """Runs all, sums up, and returns whether any failed: `compare` gives an error, and whether it is a failure."""
    results = [compare(index, options) for index in indices]
    failed = sum(is_failure for _, is_failure in results)
    errors = [error for error, _ in results]
    over = sum(error > options.tolerance for error in errors)
    print(f"{len(results)} runs, worst relative error {max(errors):.1e}, {over} over {options.tolerance:.0e}, {failed} failed")
    return failed > 0
