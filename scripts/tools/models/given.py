"""Runs of the reference on what is given beside prompts: conditions, learned tokens, noise, a call's one generator."""

import torch
from diffusers.loaders import TextualInversionLoaderMixin

from .pipelines import PriorPipeline, case
from .weights import generator

NAMES = ("text_embeds", "text_encoder_hidden_states", "text_mask")


class GivenPipeline(PriorPipeline, TextualInversionLoaderMixin):
    """Kandinsky's pipeline, which also takes learned tokens, and conditions in place of prompts."""

    conditions = None

    def _encode_prompt(self, prompt, device, count, is_guided, negative_prompt=None):
        """Conditions of the prompts if there are any; texts are encoded as ever."""
        if self.conditions is None:
            prompt, negative_prompt = (
                texts and self.maybe_convert_prompt(list(texts), self.tokenizer) for texts in (prompt, negative_prompt)
            )
            return super()._encode_prompt(prompt, device, count, is_guided, negative_prompt)
        rows = [self.conditions[name] for name in NAMES]
        negative = [self.conditions.get(f"negative_{name}") for name in NAMES]
        if negative[0] is None:
            text = [""] if negative_prompt is None else negative_prompt[:1]
            negative = super()._encode_prompt(self.maybe_convert_prompt(text, self.tokenizer), device, 1, False)
        negative = [array.expand(len(rows[0]), *array.shape[1:]) for array in negative]
        if negative_prompt is not None:
            rows = [torch.cat([array, other]) for array, other in zip(rows, negative, strict=True)]
            negative = [torch.cat([array, array]) for array in negative]
        rows = [array.repeat_interleave(count, dim=0) for array in rows]
        if is_guided:
            negative = [array.repeat_interleave(count, dim=0) for array in negative]
            rows = [torch.cat([other, array]) for array, other in zip(rows, negative, strict=True)]
        return rows


def given_pipeline(pipeline):
    """The same components in such a pipeline."""
    given = GivenPipeline(**pipeline.components)
    given.set_progress_bar_config(disable=True)
    return given


def given_case(decoder_negative_prompt=None, has_latents=False, is_call=False, **settings):
    """The settings of one run."""
    return case(settings.pop("prompts", []), **settings) | {
        "decoder_negative_prompt": decoder_negative_prompt,
        "has_latents": has_latents,
        "is_call": is_call,
    }


def generators(settings, rows):
    """One for all rows, or one for each."""
    seed = settings["seed"]
    return generator(seed) if settings["is_call"] else [generator(seed + row) for row in range(rows)]


@torch.no_grad()
def run_given(pipeline, settings, conditions=None, latents=None):
    """Image embeddings, negative ones or None, and text embeddings.

    `latents` are of as many rows as there are embeddings, or of twice as many with negative prompts.
    """
    pipeline.conditions = conditions
    samples, negative, decoder = (
        settings[key] for key in ("samples_per_prompt", "negative_prompt", "decoder_negative_prompt")
    )
    prompts = settings["prompts"] or [""] * len(conditions["text_embeds"])
    has_negative = negative is not None or (conditions is not None and "negative_text_embeds" in conditions)
    rows = len(prompts) * samples
    calls = rows * (2 if has_negative else 1)
    draws = generators(settings, 2 * rows)
    given = 0 if latents is None else len(latents)
    if given == rows and not settings["is_call"] and has_negative:
        # The negatives draw theirs.
        drawn = [torch.randn(1, latents.shape[1], generator=draw) for draw in draws[rows:]]
        latents = torch.cat([latents, *drawn])

    def call(prompts, draws, latents):
        return pipeline(
            list(prompts),
            negative_prompt=[negative or ""] * len(prompts) if has_negative else None,
            num_images_per_prompt=samples,
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance_scale"],
            generator=draws,
            latents=latents,
        )

    own = draws if settings["is_call"] else draws[:calls]
    first = latents if latents is None else latents[:rows] if not has_negative else latents
    output = call(prompts, own, first)
    image, negatives = output.image_embeds, output.negative_image_embeds
    if conditions is None:
        text = GivenPipeline._encode_prompt(pipeline, prompts, pipeline.device, samples, False)[0]
    else:
        text = conditions["text_embeds"].repeat_interleave(samples, dim=0)
    if decoder:
        # The negative prompt of the decoder is a text also where conditions stand in the place of prompts.
        others = conditions and {
            name: value.expand(len(prompts), *value.shape[1:]) if name.startswith("negative_") else value
            for name, value in conditions.items()
        }
        pipeline.conditions = None
        if others:
            encoded = GivenPipeline._encode_prompt(pipeline, [decoder], pipeline.device, 1, False)
            own = {name: value.repeat(len(prompts), *[1] * (value.dim() - 1)) for name, value in zip(NAMES, encoded)}
            pipeline.conditions = others | own
        if not settings["is_call"]:
            draws = [generator(settings["seed"] + rows + row) for row in range(calls)]
        second = None
        if given == 2 * rows:
            second = latents[rows:] if not has_negative else torch.cat([latents[rows:], latents[rows:]])
        negatives = call([decoder] * len(prompts), draws, second).image_embeds
    return image, negatives, text
