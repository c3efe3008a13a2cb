"""One-step priors (ECLIPSE, arXiv 2312.04655) from the parts of diffusers' `PriorTransformer`, which has no class for them.

The sequence is `[text states | text embedding | x | query]`: no timestep. One pass gives the image embedding, without
guidance, and without `clip_mean` and `clip_std`, which the checkpoints hold nevertheless.
"""

import json

import torch
from diffusers import PriorTransformer
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from .files import save_tensors, write_json
from .pipelines import PriorPipeline, generator, leave_out, save_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
# As many tokens after the text as a one-step prior has.
TOKENS = {"additional_embeddings": 3}


class OneStepPrior(nn.Module):
    """A prior without a timestep."""

    def __init__(self, config):
        super().__init__()
        self.parts = PriorTransformer.from_config(config)
        del self.parts.time_embedding

    def forward(self, noise, text_embeds, text_states, text_mask):
        """Image embeddings `(rows, dim)` from noise of that shape, text embeddings, states and mask."""
        parts = self.parts
        if parts.embedding_proj_norm is not None:
            text_embeds = parts.embedding_proj_norm(text_embeds)
        tokens = [
            parts.encoder_hidden_states_proj(text_states),
            parts.embedding_proj(text_embeds).unsqueeze(1),
            parts.proj_in(noise).unsqueeze(1),
            parts.prd_embedding.expand(len(noise), -1, -1),
        ]
        hidden = torch.cat(tokens, dim=1) + parts.positional_embedding
        padding = nn.functional.pad((1 - text_mask.float()) * -10000.0, (0, parts.config.additional_embeddings))
        mask = padding[:, None, :] + parts.causal_attention_mask
        mask = mask.repeat_interleave(parts.config.num_attention_heads, dim=0)
        if parts.norm_in is not None:
            hidden = parts.norm_in(hidden)
        for block in parts.transformer_blocks:
            hidden = block(hidden, attention_mask=mask)
        return parts.proj_to_clip_embeddings(parts.norm_out(hidden)[:, -1])


def save_one_step(spec, folder, scheduler=True):
    """Saves a pipeline with a one-step prior, as ECLIPSE's are saved: without the keys and tensors of a timestep."""
    spec.prior.update(TOKENS)
    save_pipeline(spec, folder)
    config = json.loads((folder / "prior" / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "prior" / "config.json", {k: v for k, v in config.items() if "time_embed" not in k}, indent=2)
    weights = load_file(folder / "prior" / WEIGHTS)
    save_tensors(
        folder / "prior" / WEIGHTS, {k: v for k, v in weights.items() if not k.startswith("time_embedding.")}
    )
    if not scheduler:
        leave_out(folder, ["scheduler"])


def load_one_step(folder, names=None):
    """The components of a folder, in float32; `names` maps components to other folder names."""
    config = json.loads((folder / "prior" / "config.json").read_text(encoding="utf-8"))
    prior = OneStepPrior(config)
    prior.parts.load_state_dict({k: v.float() for k, v in load_file(folder / "prior" / WEIGHTS).items()})
    has_images = (folder / "image_encoder").exists()
    encoders = {"text_encoder": CLIPTextModelWithProjection, "image_encoder": CLIPVisionModelWithProjection}
    loaded = {
        name: kind.from_pretrained(folder / (names or {}).get(name, name), dtype=torch.float32)
        for name, kind in encoders.items()
        if name == "text_encoder" or has_images
    }
    return PriorPipeline(
        prior=prior.eval(),
        text_encoder=loaded["text_encoder"],
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=None,
        image_encoder=loaded.get("image_encoder"),
        image_processor=None,
    )


@torch.no_grad()
def run_one_step(pipeline, case):
    """Image embeddings, and negative ones or None; row r draws from a generator seeded seed + r.

    With a negative prompt, as many rows follow which are embeddings of it; without one, the negative embedding is that of
    a black image.
    """
    prompts, negative = list(case["prompts"]), case["negative_prompt"]
    texts = prompts if negative is None else prompts + [negative] * len(prompts)
    samples = case["samples_per_prompt"]
    embeds, states, mask = pipeline._encode_prompt(texts, "cpu", samples, False)
    draws = [torch.randn(1, embeds.shape[1], generator=generator(case["seed"] + row)) for row in range(len(embeds))]
    output = pipeline.prior(torch.cat(draws), embeds, states, mask)
    if negative is not None:
        return output.chunk(2)
    return output, pipeline.get_zero_embed(len(output), device="cpu")
