"""Random schedulers on random pipelines: a model of one scheduler is sampled with that or another, on both sides."""

import json
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from .files import write_json
from .pipelines import case, run_case, save_pipeline
from .precise import float64, jiggle
from .random_runs import TEXTS, random_spec, run_binary
from .samplers import CLASSES, nearest_roots, random_configuration
from .stable import StablePriorPipeline

DECODER = ["image_normalizer", "tokenizer", "text_encoder", "unet", "scheduler", "vae"]
FAILURES = (ValueError, NotImplementedError, IndexError, TypeError, ImportError, RuntimeError, UnboundLocalError)


def random_run(draw):
    """The settings of one run."""
    return case(
        prompts=[draw.choice(TEXTS) for _ in range(draw.randint(1, 3))],
        steps=draw.choice([1, 2, 3, 4, 5, 8, 10, 12, 16, 20, 25, 30]),
        guidance_scale=draw.choice([1.0, 1.5, 4.0, 7.5]),
        seed=draw.getrandbits(31),
        samples_per_prompt=draw.randint(1, 2),
    )


def shipped(draw, folder):
    """Gives the model a random scheduler, most times; returns its class."""
    if draw.random() < 0.3:
        configuration = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        # UnCLIP's own default is another one than that of the others.
        configuration["beta_schedule"] = "squaredcos_cap_v2"
        configuration["prediction_type"] = draw.choice(["sample", "sample", "epsilon"])
        write_json(folder / "scheduler" / "scheduler_config.json", configuration, indent=2)
        return UnCLIPScheduler
    name = draw.choice(list(CLASSES))
    configuration = {"_class_name": CLASSES[name].__name__, "_diffusers_version": "0.42.1"}
    write_json(folder / "scheduler" / "scheduler_config.json", configuration | random_configuration(draw, name))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", CLASSES[name].__name__]
    write_json(folder / "model_index.json", index, indent=2)
    return CLASSES[name]


def chosen(draw, own):
    """The name of a scheduler, prior-embed's options for it, and what `from_config` and `step` are given."""
    names = [name for name, kind in CLASSES.items() if kind is own]
    name = draw.choice(names) if names and draw.random() < 0.6 else draw.choice(list(CLASSES))
    options, changes, eta = [], {}, 0.0
    if name not in names:
        options = ["--scheduler", name]
    if name == "ddim" and draw.random() < 0.6:
        eta = draw.choice([0.3, 0.8, 1.0])
        options += ["--eta", eta]
    if name == "dpm-solver++" and draw.random() < 0.4:
        changes["solver_order"] = draw.choice([1, 2, 3])
        options += ["--solver-order", changes["solver_order"]]
    return name, options, changes, eta


def load(folder, own, name, changes):
    """The pipeline with the scheduler made of the model's own, or of its file where the class refuses that."""
    try:
        configuration = own.from_pretrained(folder / "scheduler").config
    except FAILURES:
        configuration = own.load_config(folder / "scheduler")
    scheduler = CLASSES[name].from_config(configuration, **changes)
    pipeline = StablePriorPipeline(
        prior_tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        prior_text_encoder=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        prior=PriorTransformer.from_pretrained(folder / "prior"),
        prior_scheduler=scheduler,
        image_noising_scheduler=CLASSES["ddpm"](),
        **dict.fromkeys(DECODER),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference(folder, own, name, changes, eta, settings):
    """The embeddings, or None with the reason where diffusers has none; and how much a rounding error changes them."""
    try:
        with nearest_roots():
            pipeline = load(folder, own, name, changes)
            pipeline.eta = eta
            embeds = run_case(pipeline, settings)[0]
    except FAILURES as error:
        return None, f"{type(error).__name__}: {error}", 0.0
    if not embeds.isfinite().all():
        return None, "not finite", 0.0
    with float64(pipeline):
        exact = run_case(pipeline, settings)[0]
        jiggle(pipeline, settings["seed"])
        moved = run_case(pipeline, settings)[0]
    scale = embeds.abs().max()
    spread = max((exact - embeds).abs().max() / scale, (moved - exact).abs().max() / scale)
    return embeds, "", float(spread)


def compare(index, options):
    """Runs number `index` on both sides; returns the error and whether it counts as a failure."""
    draw = random.Random(f"schedulers {options.seed} {index}")
    spec, settings = random_spec(draw, draw.getrandbits(32)), random_run(draw)
    spec = replace(spec, image_encoder=True, max_shard_size=None, variant=None, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        save_pipeline(spec, folder)
        shutil.rmtree(folder / "image_encoder")
        own = shipped(draw, folder)
        name, extra, changes, eta = chosen(draw, own)
        text = json.dumps(json.loads((folder / "scheduler" / "scheduler_config.json").read_text()))
        print(f"{index:3} {name} {' '.join(map(str, extra))} {settings['steps']} steps of {text}: ", end="", flush=True)
        embeds, reason, spread = reference(folder, own, name, changes, eta, settings)
        try:
            found = run_binary(options.binary, folder, settings, Path(work) / "out.npz", extra)["image_embeds"]
        except RuntimeError as error:
            is_failure = embeds is not None
            print(f"{'FAILED' if is_failure else 'refused'}: {error}{'' if is_failure else f' (diffusers: {reason})'}")
            return 0.0, is_failure
    if embeds is None:
        print(f"FAILED: diffusers has no embeddings: {reason}")
        return 0.0, True
    error = float(np.abs(found - embeds.numpy()).max() / embeds.abs().max())
    # What rounding alone may change by more than the tolerance cannot be held to it.
    is_failure = not error <= max(options.tolerance, 10 * spread)
    verdict = "DIFFERS" if is_failure else "" if error <= options.tolerance else "badly conditioned"
    print(f"{error:.1e}, rounding {spread:.1e} {verdict}".rstrip())
    return error, is_failure
