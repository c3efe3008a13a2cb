"""Compares prior-embed with diffusers on random pipelines of many shapes; exits with 1 if any embedding differs.

Run it with `scripts/reference-python scripts/compare_diffusers.py`. The reference is always float32. Arguments after
`--` go to prior-embed as they are.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from built import BINARY
from fixtures.common import set_up
from fixtures.pipelines import KARLO, lay_out
from fixtures.texts import hard_texts
from fixtures.tiny import Spec, case, load_pipeline, run_case, save_pipeline
from fixtures.tokenizers import EOS

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
    )


def random_case(draw):
    """The settings of one run."""
    return case(
        prompts=[draw.choice(TEXTS) for _ in range(draw.randint(1, 5))],
        negative_prompt=draw.choice([None, None, "", draw.choice(TEXTS)]),
        steps=draw.choice([1, 2, 3, 5, 10, 25, 50, draw.randint(2, 50)]),
        guidance_scale=draw.choice([0.5, 1.0, 4.0, 7.5, 10.0, round(draw.uniform(0.5, 10), 3)]),
        seed=draw.choice([0, 1, 42, 2**32 - 1, draw.getrandbits(63)]),
        samples_per_prompt=draw.randint(1, 3),
    )


def run_binary(binary, folder, settings, out, extra):
    """prior-embed's arrays, by name."""
    command = [
        binary,
        "--model",
        folder,
        "--steps",
        settings["steps"],
        "--guidance-scale",
        settings["guidance_scale"],
        "--seed",
        settings["seed"],
        "--samples-per-prompt",
        settings["samples_per_prompt"],
        "--out",
        out,
        "--overwrite",
        *[f"--prompt={prompt}" for prompt in settings["prompts"]],
    ]
    if settings["negative_prompt"] is not None:
        command.append(f"--negative-prompt={settings['negative_prompt']}")
    done = subprocess.run([str(part) for part in command + extra], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"prior-embed ended with {done.returncode}: {done.stderr.strip()}")
    with np.load(out) as arrays:
        return dict(arrays)


def relative_error(found, expected):
    """The largest difference, in units of the largest reference value; infinite if an array is missing or misshapen."""
    if expected is None:
        return 0.0 if found is None else float("inf")
    expected = expected.numpy()
    if found is None or found.shape != expected.shape or found.dtype != np.float32:
        return float("inf")
    error = np.abs(found - expected).max() / np.abs(expected).max()
    return float(error) if np.isfinite(error) else float("inf")


def describe(spec, settings):
    """One pipeline and its run, in a few words."""
    parts = [
        str(spec.dtype).removeprefix("torch."),
        f"width {spec.width} text {spec.text_layers}x{spec.text_heads} {spec.hidden_act}",
        f"prior {spec.prior_layers}x{spec.prior_heads}x{spec.prior_head_dim}",
        f"pad {spec.pad_token}",
        "tokenizer.json" if spec.tokenizer_json else "vocab.json",
        "sharded" if spec.max_shard_size else "",
        "" if spec.image_encoder else "no image encoder",
        f"prompts {len(settings['prompts'])}x{settings['samples_per_prompt']}",
        "" if settings["negative_prompt"] is None else "negative",
        f"steps {settings['steps']} guidance {settings['guidance_scale']} seed {settings['seed']}",
    ]
    return ", ".join(part for part in parts if part)


def compare(index, options):
    """Makes pipeline number `index`, runs both sides, and returns the errors of image and negative embeddings."""
    draw = random.Random(f"{options.seed} {index}")
    spec, settings = random_spec(draw, draw.getrandbits(32)), random_case(draw)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        save_pipeline(spec, folder)
        names = {}
        if not spec.image_encoder and draw.random() < 0.5:
            names = KARLO
            lay_out("unclip_layout", folder, names)
        image, negative = run_case(load_pipeline(folder, names), settings)
        print(f"{index:3} {describe(spec, settings)}: ", end="", flush=True)
        try:
            found = run_binary(options.binary, folder, settings, Path(work) / "out.npz", options.extra)
        except (RuntimeError, OSError) as error:
            print(f"FAILED: {error}\n    settings: {json.dumps(settings)}")
            return float("inf"), float("inf")
    errors = (
        relative_error(found.get("image_embeds"), image),
        relative_error(found.get("negative_image_embeds"), negative),
    )
    verdict = "" if max(errors) <= options.tolerance else "  DIFFERS"
    print(f"image {errors[0]:.1e} negative {'none' if negative is None else format(errors[1], '.1e')}{verdict}")
    return errors


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=24, help="how many pipelines (default 24)")
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--seed", type=int, default=0, help="other pipelines and runs with another seed")
    parser.add_argument("--only", type=int, help="run the pipeline of this number alone")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="the largest relative error allowed (default 1e-4)"
    )
    own, extra = sys.argv[1:], []
    if "--" in own:
        own, extra = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    options.extra = extra
    return options


def main():
    """Compares them all and sums up."""
    options = arguments()
    set_up()
    indices = range(options.count) if options.only is None else [options.only]
    errors = [compare(index, options) for index in indices]
    worst = [max(column) for column in zip(*errors, strict=True)]
    failed = sum(max(pair) > options.tolerance for pair in errors)
    print(
        f"{len(errors)} pipelines, worst relative error: image {worst[0]:.1e} negative {worst[1]:.1e}, {failed} over "
        f"{options.tolerance:.0e}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
