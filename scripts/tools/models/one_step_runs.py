"""Random pipelines with one-step priors, compared with the arithmetic of `one_step`."""

import random
import tempfile
from pathlib import Path

from . import adapters
from .one_step import load_one_step, run_one_step, save_one_step
from .pipelines import case
from .random_runs import TEXTS, describe, random_spec, relative_error, run_binary

MODULES = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_in", "embedding_proj"]


def random_pipeline(draw):
    """The parts of one pipeline."""
    spec = random_spec(draw, draw.getrandbits(32))
    spec.prior = {key: value for key, value in spec.prior.items() if not key.startswith("time_embed")}
    spec.max_shard_size = spec.variant = None
    return spec


def random_case(draw):
    """The settings of one run."""
    return case(
        prompts=[draw.choice(TEXTS) for _ in range(draw.randint(1, 6))],
        negative_prompt=draw.choice([None, None, "", draw.choice(TEXTS)]),
        steps=None,
        guidance_scale=None,
        seed=draw.choice([0, 1, 42, 2**32 - 1, draw.getrandbits(63)]),
        samples_per_prompt=draw.randint(1, 4),
    )


def add_lora(draw, pipeline, work):
    """Merges a LoRA into a pipeline's prior, half of the times; returns prior-embed's options for it, and what it is."""
    if draw.random() < 0.5:
        return [], []
    folder, scale = work / "lora", draw.choice([1, 0.5, -0.25])
    targets = draw.sample(MODULES, draw.randint(1, len(MODULES)))
    options = dict(r=draw.randint(1, 3), lora_alpha=draw.randint(1, 9), target_modules=targets)
    adapters.peft_lora(pipeline.prior.parts, folder, draw.getrandbits(31), **options)
    pipeline.prior.parts = adapters.with_peft_lora(pipeline.prior.parts, folder, scale=scale)
    return ["--lora", f"{folder}:{scale}"], [f"peft:{scale}"]


def compare(index, options):
    """Makes pipeline number `index`, runs both sides, and returns the errors of image and negative embeddings."""
    draw = random.Random(f"one-step {options.seed} {index}")
    spec, settings = random_pipeline(draw), random_case(draw)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        folder = work / "model"
        save_one_step(spec, folder, scheduler=draw.random() < 0.5)
        if draw.random() < 0.3:
            (folder / "model_index.json").unlink()
        pipeline = load_one_step(folder)
        lora_options, loras = add_lora(draw, pipeline, work)
        image, negative = run_one_step(pipeline, settings)
        print(f"{index:3} one step, {describe(spec, settings, loras=loras)}: ", end="", flush=True)
        extra = [*lora_options, *options.extra]
        try:
            found = run_binary(options.binary, folder, settings, work / "out.npz", extra)
        except (RuntimeError, OSError) as error:
            print(f"FAILED: {error}")
            return float("inf"), float("inf")
    arrays = {"image_embeds": image, "negative_image_embeds": negative}
    errors = [relative_error(found.get(name), expected) for name, expected in arrays.items()]
    verdict = "" if max(errors) <= options.tolerance else "  DIFFERS"
    print(f"image {errors[0]:.1e} negative {'none' if negative is None else format(errors[1], '.1e')}{verdict}")
    return tuple(errors)
