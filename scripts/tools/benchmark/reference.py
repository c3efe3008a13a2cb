"""One run of diffusers, as a process of its own: `python -m tools.benchmark.reference JOB.json`.

The job says what to run and where the embeddings and the report go. The clock starts before the libraries' import.
"""

import itertools
import json
import sys
import time

from pathlib import Path

STARTED = time.perf_counter()


def load(job):
    """Kandinsky's prior pipeline without its image encoder, in the type asked for."""
    import torch
    from diffusers import KandinskyV22PriorPipeline, PriorTransformer, UnCLIPScheduler
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    class PriorPipeline(KandinskyV22PriorPipeline):
        """Leaves out the negative embeddings, which need the image encoder."""

        def get_zero_embed(self, batch_size=1, device=None):
            """None."""

    imported = time.perf_counter()
    torch.set_num_threads(job["threads"])
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[job["dtype"]]
    folder = job["model"]
    pipeline = PriorPipeline(
        prior=PriorTransformer.from_pretrained(f"{folder}/prior", torch_dtype=dtype),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(f"{folder}/text_encoder", dtype=dtype),
        tokenizer=CLIPTokenizer.from_pretrained(f"{folder}/tokenizer"),
        scheduler=UnCLIPScheduler.from_pretrained(f"{folder}/scheduler"),
        image_encoder=None,
        image_processor=None,
    )
    modules = (pipeline.prior, pipeline.text_encoder)
    if any(parameter.dtype != dtype for module in modules for parameter in module.parameters()):
        raise SystemExit(f"diffusers did not load the model in {job['dtype']}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, imported


def embed(pipeline, job):
    """Runs the pipeline; embeddings, and when it started, entered the denoising loop and ended each step."""
    import torch

    times = []
    hook = pipeline.prior.register_forward_pre_hook(lambda *_: times.append(time.perf_counter()) or hook.remove())

    def step_ended(_pipeline, _step, _timestep, _tensors):
        times.append(time.perf_counter())
        return {}

    called = time.perf_counter()
    output = pipeline(
        list(job["prompts"]),
        num_inference_steps=job["steps"],
        guidance_scale=job["guidance_scale"],
        generator=[torch.Generator().manual_seed(job["seed"] + row) for row in range(len(job["prompts"]))],
        callback_on_step_end=step_ended,
    )
    return output.image_embeds.float(), [called, *times]


def load_one_step_prior(job):
    """A pipeline with a one-step prior, for which diffusers has blocks but no class; without an image encoder."""
    import torch

    from ..models.one_step import load_one_step

    imported = time.perf_counter()
    torch.set_num_threads(job["threads"])
    return load_one_step(Path(job["model"])), imported


def embed_in_one_step(pipeline, job):
    """What `embed` gives, of a one-step prior."""
    from ..models.one_step import run_one_step
    from ..models.pipelines import case

    times = []
    pipeline.prior.register_forward_pre_hook(lambda *_: times.append(time.perf_counter()))
    called = time.perf_counter()
    embeds, _ = run_one_step(pipeline, case(job["prompts"], steps=None, guidance_scale=None, seed=job["seed"]))
    return embeds, [called, *times, time.perf_counter()]


def versions():
    """What the figures of diffusers belong to."""
    import diffusers
    import torch
    import transformers

    return {module.__name__: module.__version__ for module in (diffusers, transformers, torch)}


def main():
    """Loads, runs, and writes the embeddings; the report comes after the clock has stopped."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    is_one_step = job["steps"] is None
    pipeline, imported = load_one_step_prior(job) if is_one_step else load(job)
    loaded = time.perf_counter()
    embeds, (called, entered, *ends) = embed_in_one_step(pipeline, job) if is_one_step else embed(pipeline, job)

    import numpy

    numpy.save(job["embeds"], embeds.numpy())
    ended = time.perf_counter()
    seconds = {
        "import": imported - STARTED,
        "load": loaded - imported,
        "text": entered - called,
        "prior": ends[-1] - entered,
        "total": ended - STARTED,
    }
    steps = [end - start for start, end in itertools.pairwise([entered, *ends])]
    report = {"rows": len(embeds), "seconds": seconds, "steps": steps, "versions": versions()}
    with open(job["report"], "w", encoding="utf-8") as file:
        json.dump(report, file)


if __name__ == "__main__":
    main()
