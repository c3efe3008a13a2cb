"""Shap-E's text to latents: pipelines of any size as its own is saved, and diffusers' runs of them.

Its renderer, which makes a thing in 3D of the latents, is left out.
"""

from dataclasses import dataclass, field

import torch
from diffusers import HeunDiscreteScheduler, PriorTransformer, ShapEPipeline
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from .files import fresh_folder, write_json
from .pipelines import Spec, generator, save_tokenizer, text_encoder
from .weights import spread_parameters

# openai/shap-e
SCHEDULER = dict(
    beta_schedule="exp",
    num_train_timesteps=1024,
    clip_sample=True,
    clip_sample_range=1.0,
    prediction_type="sample",
    use_karras_sigmas=True,
)


@dataclass
class ShapESpec(Spec):
    """What a pipeline is made of, beside the text encoder and the tokenizer of a `Spec`."""

    tokens: int = 6
    latent_dim: int = 5
    heun: dict = field(default_factory=dict)


def prior(spec):
    """A prior of latents, which takes the text embedding alone and predicts a variance as well."""
    options = dict(norm_in_type="layer", time_embed_act_fn="gelu", time_embed_dim=4 * spec.latent_dim) | spec.prior
    model = PriorTransformer(
        num_attention_heads=spec.prior_heads,
        attention_head_dim=spec.prior_head_dim,
        num_layers=spec.prior_layers,
        embedding_dim=spec.latent_dim,
        num_embeddings=spec.tokens,
        additional_embeddings=0,
        encoder_hid_proj_type=None,
        added_emb_type=None,
        embedding_proj_dim=spec.width,
        clip_embed_dim=2 * spec.latent_dim,
        **options,
    )
    spread_parameters(model, spec.seed + 2)
    # Denoising starts at a standard deviation of 403, whose rounding guidance multiplies.
    model.proj_to_clip_embeddings.weight.data.mul_(0.25)
    return model


def save_shap_e(spec, folder):
    """Saves a pipeline as diffusers does, without its renderer."""
    fresh_folder(folder)
    prior(spec).to(spec.dtype).save_pretrained(folder / "prior")
    text_encoder(spec).to(spec.dtype).save_pretrained(folder / "text_encoder")
    HeunDiscreteScheduler(**(SCHEDULER | spec.heun)).save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir()
    save_tokenizer(spec, folder / "tokenizer")
    index = {
        "_class_name": "ShapEPipeline",
        "_diffusers_version": "0.17.0.dev0",
        "prior": ["diffusers", "PriorTransformer"],
        "scheduler": ["diffusers", "HeunDiscreteScheduler"],
        "shap_e_renderer": ["shap_e", "ShapERenderer"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    write_json(folder / "model_index.json", index, indent=2)


def load_shap_e(folder):
    """The components of a folder, in float32."""
    pipeline = ShapEPipeline(
        prior=PriorTransformer.from_pretrained(folder / "prior", dtype=torch.float32),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=HeunDiscreteScheduler.from_pretrained(folder / "scheduler"),
        shap_e_renderer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(pipeline, case):
    """The noise that the rows start from; row r draws it from a generator seeded seed + r."""
    rows = len(case["prompts"]) * case["samples_per_prompt"]
    size = pipeline.prior.config.num_embeddings * pipeline.prior.config.embedding_dim
    return torch.cat([torch.randn(1, size, generator=generator(case["seed"] + row)) for row in range(rows)])


def run_shap_e(pipeline, case, latents=None):
    """Latents `(rows, tokens, dim)`, from the noise of the case or from another."""
    rows = len(case["prompts"]) * case["samples_per_prompt"]
    output = pipeline(
        list(case["prompts"]),
        num_images_per_prompt=case["samples_per_prompt"],
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance_scale"],
        generator=[generator(case["seed"] + row) for row in range(rows)],
        latents=latents,
        output_type="latent",
    )
    return output.images


def sensitivity(pipeline, case):
    """How far diffusers' latents move, in units of the largest, if every number of the noise moves by one bit or not."""
    expected, start = run_shap_e(pipeline, case), noise(pipeline, case)
    errors = []
    for seed in range(3):
        signs = torch.randint(-1, 2, start.shape, generator=generator(seed))
        moved = run_shap_e(pipeline, case, latents=start * (1 + signs * 2.0**-23))
        errors.append(((moved - expected).abs().max() / expected.abs().max()).item())
    return max(errors)
