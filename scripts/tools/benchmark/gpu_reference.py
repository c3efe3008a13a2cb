"""One run of diffusers on a device: `python -m tools.benchmark.gpu_reference JOB.json`. In float16, on the CPU in float32."""

import json
import sys
import time

import torch
from diffusers import KandinskyV22PriorPipeline, PriorTransformer, UnCLIPScheduler
from transformers import CLIPTextModelWithProjection, CLIPTokenizer


class PriorPipeline(KandinskyV22PriorPipeline):
    """Leaves out the negative embeddings, which need the image encoder."""

    def get_zero_embed(self, batch_size=1, device=None):
        """None."""


def main():
    """Runs the pipeline twice; the second time counts, from the first call of the prior to the last step's end."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    device, folder, prompts = job["device"], job["model"], job["prompts"]
    dtype = torch.float32 if device == "cpu" else torch.float16
    tokenizer = CLIPTokenizer.from_pretrained(f"{folder}/tokenizer")
    pipeline = PriorPipeline(
        prior=PriorTransformer.from_pretrained(f"{folder}/prior", torch_dtype=dtype),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(f"{folder}/text_encoder", dtype=dtype),
        tokenizer=tokenizer, scheduler=UnCLIPScheduler.from_pretrained(f"{folder}/scheduler"),
        image_encoder=None, image_processor=None,
    ).to(device)  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    synchronize = (lambda: None) if device == "cpu" else torch.cuda.synchronize
    times = []

    def entered(*_):
        synchronize()
        times.append(time.perf_counter())

    for _ in range(2):
        hook = pipeline.prior.register_forward_pre_hook(lambda *_: hook.remove() or entered())
        pipeline(prompts, num_inference_steps=job["steps"], guidance_scale=job["guidance_scale"],
                 generator=[torch.Generator(device).manual_seed(row) for row in range(len(prompts))])  # fmt: skip
        synchronize()
        times.append(time.perf_counter())
    counts = [len(ids) for ids in tokenizer(prompts, truncation=True).input_ids]
    report = {"seconds": times[3] - times[2], "tokens": sum(counts) / len(counts)}
    with open(job["report"], "w", encoding="utf-8") as file:
        json.dump(report, file)


if __name__ == "__main__":
    main()
