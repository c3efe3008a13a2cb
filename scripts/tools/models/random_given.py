"""Random runs on what is given beside prompts, of prior-embed and of the reference."""

import json
import random
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from .given import NAMES, given_case, given_pipeline, run_given
from .pipelines import load_pipeline, save_pipeline
from .random_runs import TEXTS, random_spec, relative_error
from .weights import generator

TYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]
MASK_TYPES = [torch.bool, torch.int64, torch.uint8, torch.float32]


@torch.no_grad()
def random_conditions(draw, pipeline, rows, seed):
    """Conditions of texts, changed a little, with random masks; and perhaps negative ones."""
    noise = generator(seed)

    def make(rows):
        texts = [draw.choice(TEXTS) for _ in range(rows)]
        embeds, states, mask = (part.clone() for part in pipeline._encode_prompt(texts, pipeline.device, 1, False))
        states += 0.2 * torch.randn(states.shape, generator=noise)
        kind = draw.choice(["text", "text", "random", "random", "suffix", "none", "all"])
        if kind == "random":
            mask = torch.rand(mask.shape, generator=noise) < draw.random()
        elif kind == "suffix":
            mask = ~mask
        elif kind in ("none", "all"):
            mask = torch.full_like(mask, kind == "all")
        return dict(zip(NAMES, (embeds, states, mask), strict=True))

    conditions = make(rows)
    if draw.random() < 0.5:
        negative = make(draw.choice([1, rows]))
        conditions |= {f"negative_{name}": array for name, array in negative.items()}
    return conditions


def save_conditions(draw, conditions, folder):
    """Saves them in one of the formats, and returns the path. They are then what their types can hold."""
    saved, is_safetensors = {}, draw.random() < 0.5
    for name, array in conditions.items():
        # numpy has no bfloat16, which is the last.
        kinds = MASK_TYPES if name.endswith("mask") else TYPES if is_safetensors else TYPES[:-1]
        saved[name] = array.to(draw.choice(kinds)).contiguous()
        if not name.endswith("mask"):
            conditions[name] = saved[name].float()
    if is_safetensors:
        path = folder / "conditions.safetensors"
        save_file(saved, path)
    else:
        path = folder / "conditions.npz"
        save = draw.choice([np.savez, np.savez_compressed])
        save(path, **{name: array.numpy() for name, array in saved.items()})
    return path


def add_inversions(draw, pipeline, folder, seed):
    """Loads random learned tokens; returns options of prior-embed, and the tokens."""
    width, noise = pipeline.text_encoder.config.hidden_size, generator(seed)
    options, tokens = [], []
    for number in range(draw.randint(1, 3)):
        vectors = 0.4 * torch.randn((draw.choice([1, 1, 2, 3]), width), generator=noise)
        vectors = vectors[0] if len(vectors) == 1 and draw.random() < 0.5 else vectors
        vectors = vectors.to(draw.choice([torch.float32, torch.float16]))
        name, given = draw.choice(["<style-{}>", "<Old:House{}>", "my cat{}", "ohwx{}"]).format(number), None
        layout = draw.choice(["safetensors", "bin", "a1111", "old", "bare"])
        path = folder / f"learned-{number}.{'safetensors' if layout == 'safetensors' else 'pt'}"
        a1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": name, "step": 1}
        if layout == "safetensors":
            save_file({name: vectors}, path)
        else:
            state = {"bin": {name: vectors}, "bare": vectors}.get(layout, a1111)
            torch.save(state, path, _use_new_zipfile_serialization=layout != "old")
        if layout == "bare" or draw.random() < 0.2:
            name = given = f"sks{number}"
        loaded = torch.load(path) if layout == "bare" else str(path)
        pipeline.load_textual_inversion(loaded, token=given)
        options += ["--textual-inversion", f"{path}:{given}" if given else path]
        tokens.append(name)
    return options, tokens


def compare(index, options):
    """Makes run number `index` on both sides, and returns the errors of image, negative and text embeddings."""
    draw = random.Random(f"given {options.seed} {index}")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        save_pipeline(random_spec(draw, draw.getrandbits(32)), work / "model")
        variant = "fp16" if list((work / "model").glob("prior/*.fp16.*")) else None
        pipeline = given_pipeline(load_pipeline(work / "model", variant=variant))
        extra, tokens, conditions, latents = [], [], None, None
        kind = draw.choice(["conditions", "conditions", "inversions", "plain"])
        if kind == "inversions":
            extra, tokens = add_inversions(draw, pipeline, work, draw.getrandbits(31))
        rows, samples = draw.randint(1, 4), draw.randint(1, 2)
        prompts = [draw.choice(TEXTS) for _ in range(rows)]
        if tokens:
            prompts = [f"{draw.choice(TEXTS)} {draw.choice(tokens)} {draw.choice(TEXTS)}" for _ in prompts]
        if kind == "conditions":
            conditions, prompts = random_conditions(draw, pipeline, rows, draw.getrandbits(31)), []
            extra += ["--conditions", save_conditions(draw, conditions, work)]
        has_own_negative = conditions is not None and "negative_text_embeds" in conditions
        negative = None if has_own_negative else draw.choice([None, "", "blurry", *tokens])
        has_negative = has_own_negative or negative is not None
        settings = given_case(
            prompts=prompts,
            negative_prompt=negative,
            decoder_negative_prompt=draw.choice([None, None, "ugly", draw.choice(TEXTS) or None]),
            steps=draw.choice([2, 3, 5, 10, 25]),
            guidance_scale=draw.choice([0.5, 1.0, 4.0, 7.5]),
            seed=draw.choice([0, 42, draw.getrandbits(63)]),
            samples_per_prompt=samples,
            is_call=draw.random() < 0.5,
        )
        if draw.random() < 0.3:
            count = rows * samples
            has_negatives = has_negative or settings["decoder_negative_prompt"] is not None
            if has_negatives and (settings["is_call"] or draw.random() < 0.5):
                count *= 2
            shape = (count, pipeline.prior.config.embedding_dim)
            latents = torch.randn(shape, generator=generator(draw.getrandbits(31)))
            np.save(work / "latents.npy", latents.numpy())
            extra += ["--latents", work / "latents.npy"]
        print(f"{index:3} {describe(kind, settings, rows, latents, has_own_negative)}: ", end="", flush=True)
        expected = run_given(pipeline, settings, conditions, latents)
        try:
            found = run_binary(options.binary, work / "model", settings, work / "out.npz", [*extra, *options.extra])
        except (RuntimeError, OSError) as error:
            print(f"FAILED: {error}\n    settings: {json.dumps(settings)}")
            return (float("inf"),) * 3
    names = ("image_embeds", "negative_image_embeds", "text_embeds")
    errors = tuple(relative_error(found.get(name), array) for name, array in zip(names, expected, strict=True))
    verdict = "" if max(errors) <= options.tolerance else "  DIFFERS"
    print(f"image {errors[0]:.1e} negative {errors[1]:.1e} text {errors[2]:.1e}{verdict}")
    return errors


def describe(kind, settings, rows, latents, has_own_negative):
    """A run in a few words."""
    parts = [
        f"{kind} {rows}x{settings['samples_per_prompt']}",
        "call" if settings["is_call"] else "row",
        "" if latents is None else f"latents {len(latents)}",
        "negative conditions" if has_own_negative else "" if settings["negative_prompt"] is None else "negative",
        "" if settings["decoder_negative_prompt"] is None else "decoder's negative",
        f"steps {settings['steps']} guidance {settings['guidance_scale']} seed {settings['seed']}",
    ]
    return ", ".join(part for part in parts if part)


def run_binary(binary, folder, settings, out, extra):
    """prior-embed's arrays, by name."""
    command = [binary, "--model", folder, "--out", out, "--text-out", out, "--overwrite", *extra]
    for name in ("steps", "guidance_scale", "seed", "samples_per_prompt"):
        command += [f"--{name.replace('_', '-')}", settings[name]]
    for name in ("negative_prompt", "decoder_negative_prompt"):
        if settings[name] is not None:
            command.append(f"--{name.replace('_', '-')}={settings[name]}")
    command += [f"--prompt={prompt}" for prompt in settings["prompts"]]
    command += ["--seed-layout", "call"] if settings["is_call"] else []
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"prior-embed ended with {done.returncode}: {done.stderr.strip()}")
    with np.load(out) as arrays:
        return dict(arrays)
