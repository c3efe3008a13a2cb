"""Compares prior-embed with diffusers on random pipelines of many shapes; exits with 1 if any embedding differs.

Models are saved once or over an older one, LoRAs of every kind are merged, some priors are converted with another
model as `--config`, and some components come from elsewhere. `--cases` names other things to compare: random schedulers,
what is given beside prompts, other kinds of prior. Run it with `scripts/reference-python scripts/compare_diffusers.py`.
The reference is always float32. Arguments after `--` go to prior-embed as they are.
"""

import argparse
import copy
import json
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.checkpointing import save_accelerator_state

from tools.built import BINARY
from tools.command_line import parse_with_extra
from tools.fixtures.pipelines import KARLO, lay_out
from tools.models import adapters, one_step_runs, random_given, scheduler_runs, shap_e_runs
from tools.models.elsewhere import replace_components
from tools.models.pipelines import case, load_pipeline, run_case, save_pipeline
from tools.models.random_runs import TEXTS, compare_all, describe, random_spec, relative_error, run_binary
from tools.models.weights import set_up


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


def save_over(draw, spec, folder):
    """Saves a pipeline, most times over an older one, and returns what the folder holds of that."""
    sharded = {"max_shard_size": "16KB"}
    older = draw.choice([None, {}, {"max_shard_size": None}, sharded])
    if older is not None:
        save_pipeline(replace(spec, seed=spec.seed + 100, **older), folder)
    save_pipeline(spec, folder)
    return "" if older is None else f"over {'sharded' if older.get('max_shard_size', spec.max_shard_size) else 'whole'}"


def readable(folder, copied):
    """The folder, or a copy of it without the indices that diffusers fails on: their shards are gone."""
    for path in folder.glob("prior/*.index*.json"):
        shards = json.loads(path.read_text())["weight_map"].values()
        if not all((path.parent / shard).exists() for shard in shards):
            shutil.copytree(folder, copied)
            (copied / "prior" / path.name).unlink()
            return copied
    return folder


# The first one that matches counts, so their order matters.
PATTERNS = ["to_q", "to_[qkv]", "attn1.to_k", r".*\.0\..*", "^proj_in", r"(?!.*attn).*", "net.(0.proj|2)", r"\w+_out\.0"]
MODULES = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_in", "time_embedding.linear_1"]
INITIALIZATIONS = [True, True, "gaussian", "eva", "orthogonal", "mica", "pissa", "olora", "pissa_niter_1000"]
# Those that leave the weights as they are.
ADDITIVE = [True, "gaussian", "eva", "orthogonal", "mica"]


def random_patterns(draw, values):
    """Some patterns in some order."""
    patterns = draw.sample(PATTERNS, draw.randint(0, 4))
    return {pattern: draw.choice(values) for pattern in patterns}


def random_lora(draw, prior, folder, scale, initializations):
    """Saves a LoRA for a prior; returns the prior with it at this strength, and what it is."""
    seed = draw.getrandbits(31)
    kind = draw.choice(["peft", "peft", "peft", "diffusers", "accelerate"])
    if kind == "accelerate":
        tensors, changed = adapters.attention_processors(prior, seed)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))])
        folder.mkdir()
        save_accelerator_state(folder, [tensors], [optimizer], [], [], 0, 0, safe_serialization=draw.random() < 0.7)
        with torch.no_grad():
            for before, after in zip(prior.parameters(), changed.parameters()):
                after.lerp_(before, 1 - scale)
        return changed, kind
    init = draw.choice(initializations)
    # Some need an even rank, and some may be given a higher one than a matrix has.
    ranks = {"orthogonal": [2], "mica": [2], "pissa": [1, 2, 9], "olora": [1, 2, 9]}.get(init, [1, 2])
    options = dict(
        r=draw.choice(ranks),
        lora_alpha=draw.randint(1, 9),
        use_rslora=draw.random() < 0.3,
        init_lora_weights=init,
        target_modules=draw.sample(MODULES, draw.randint(1, len(MODULES))),
        alpha_pattern=random_patterns(draw, [1, 2, 3, 5, 9]),
        rank_pattern=random_patterns(draw, ranks),
    )
    patterns = {key: options[key] for key in ("alpha_pattern", "rank_pattern")}
    if kind == "diffusers":
        adapters.diffusers_lora(prior, folder, seed, config=patterns, **options)
        changed = adapters.with_diffusers_lora(prior, folder, scale)
    else:
        adapters.peft_lora(prior, folder, seed, safe=draw.random() < 0.7, config=patterns, **options)
        changed = adapters.with_peft_lora(prior, folder, scale=scale)
    return changed, f"{kind} {init}"


def add_loras(draw, pipeline, work):
    """Merges LoRAs at random strengths into a pipeline's prior; returns prior-embed's options for them, and what they are."""
    options, kinds = [], []
    prior = copy.deepcopy(pipeline.prior)
    for number in range(draw.choice([0, 1, 1, 2])):
        folder, scale = work / f"lora-{number}", draw.choice([1, 1, 0.5, -0.25])
        # What a second one begins with would be a part of what the first leaves.
        initializations = INITIALIZATIONS if number == 0 else ADDITIVE
        changed, kind = random_lora(draw, prior, folder, scale, initializations)
        with torch.no_grad():
            before, after = prior.state_dict(), changed.state_dict()
            for name, parameter in pipeline.prior.named_parameters():
                parameter += after[name] - before[name]
        options += ["--lora", f"{folder}:{scale}"]
        kinds.append(f"{kind}:{scale}")
    return options, kinds


def convert(draw, binary, spec, folder, work):
    """Converts the prior in a folder with another model's configuration, and returns the folder with the outcome."""
    other, out = work / "other", work / "converted"
    act = draw.choice(["silu", "gelu", "relu"])
    # The same sizes: only its own configuration tells how the prior computes.
    swapped = dict(prior_heads=spec.prior_head_dim, prior_head_dim=spec.prior_heads)
    save_pipeline(replace(spec, prior=spec.prior | {"time_embed_act_fn": act}, **swapped), work / "another")
    shutil.copytree(folder, other, ignore=lambda parent, names: ["prior"] if Path(parent) == folder else [])
    shutil.copytree(work / "another" / "prior", other / "prior")
    files = [folder / "prior", *folder.glob("prior/diffusion_pytorch_model.safetensors")]
    if (folder / "prior" / "diffusion_pytorch_model.safetensors.index.json").exists():
        # Whether the file is what counts is what the folder tells.
        files = files[:1]
    command = [binary, "convert", draw.choice(files), out, "--config", other, "-q"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"prior-embed convert ended with {done.returncode}: {done.stderr.strip()}")
    return out


def compare(index, options):
    """Makes pipeline number `index`, runs both sides, and returns the errors of image and negative embeddings."""
    draw = random.Random(f"{options.seed} {index}")
    spec, settings = random_spec(draw, draw.getrandbits(32)), random_case(draw)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        folder = work / "model"
        saved = save_over(draw, spec, folder)
        names = {}
        if not spec.image_encoder and draw.random() < 0.5:
            names = KARLO
            lay_out("unclip_layout", folder, names)
        pipeline = load_pipeline(readable(folder, work / "readable"), names, spec.variant)
        apart = random.Random(f"{options.seed} {index} components")
        component_options, replaced = [], []
        if options.components or apart.random() < 0.25:
            component_options, replaced = replace_components(apart, spec, pipeline, work)
        lora_options, loras = add_loras(draw, pipeline, work)
        image, negative = run_case(pipeline, settings)
        is_converted = not names and not spec.variant and draw.random() < 0.3
        saved += " converted" if is_converted else ""
        saved += f", {', '.join(replaced)}" if replaced else ""
        saved = saved.strip(" ,")
        print(f"{index:3} {describe(spec, settings, saved, loras)}: ", end="", flush=True)
        try:
            if is_converted:
                folder = convert(draw, options.binary, spec, folder, work)
            found = run_binary(options.binary, folder, settings, work / "out.npz", [*component_options, *lora_options, *options.extra])
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


# What a run compares: the function of a case, and the arrays that it gives the errors of.
KINDS = {
    "pipelines": (compare, ["image", "negative"]),
    "given": (random_given.compare, ["image", "negative", "text"]),
    "one-step": (one_step_runs.compare, ["image", "negative"]),
}
# The same of runs that rounding alone may change by more than the tolerance.
SENSITIVE = {"schedulers": scheduler_runs.compare, "shap-e": shap_e_runs.compare}


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=24, help="how many pipelines (default 24)")
    parser.add_argument(
        "--cases",
        choices=[*KINDS, *SENSITIVE],
        default="pipelines",
        help="what to compare (default pipelines)",
    )
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--seed", type=int, default=0, help="other pipelines and runs with another seed")
    parser.add_argument("--only", type=int, help="run the pipeline of this number alone")
    parser.add_argument("--components", action="store_true", help="take components from elsewhere in every pipeline")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="the largest relative error allowed (default 1e-4)"
    )
    return parse_with_extra(parser)


def main():
    """Compares them all and sums up."""
    options = arguments()
    set_up()
    # PEFT warns of patterns that match no module, which are random here.
    warnings.simplefilter("ignore")
    # accelerate's logger asks for it.
    PartialState(cpu=True)
    indices = range(options.count) if options.only is None else [options.only]
    if options.cases in SENSITIVE:
        return 1 if compare_all(SENSITIVE[options.cases], options, indices) else 0
    case, arrays = KINDS[options.cases]
    errors = [case(index, options) for index in indices]
    worst = [max(column) for column in zip(*errors, strict=True)]
    failed = sum(max(of_case) > options.tolerance for of_case in errors)
    told = " ".join(f"{name} {error:.1e}" for name, error in zip(arrays, worst, strict=True))
    print(f"{len(errors)} {options.cases}, worst relative error: {told}, {failed} over {options.tolerance:.0e}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
