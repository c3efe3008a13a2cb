"""Whole pipelines with random weights: made, saved as diffusers does, loaded again in float32, and run."""

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DDPMScheduler, KandinskyV22PriorPipeline, PriorTransformer, UnCLIPScheduler
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from .files import fresh_folder, write_json
from .tokenizers import EOS, clip_merges, legacy_config, legacy_special_tokens, write_vocabulary
from .weights import generator, spread_parameters, trained_parameters


@dataclass
class Spec:
    """What a pipeline is made of; a few kilobytes unless it says otherwise."""

    seed: int
    width: int = 16
    text_heads: int = 4
    text_layers: int = 2
    text_intermediate: int | None = None
    hidden_act: str = "quick_gelu"
    argmax_pooling: bool = True
    prior_heads: int = 4
    prior_head_dim: int = 4
    prior_layers: int = 2
    prior: dict = field(default_factory=dict)
    scheduler: dict = field(default_factory=dict)
    ddpm: bool = False
    merges: int = 86
    max_length: int = 77
    pad_token: str = EOS
    tokenizer_json: bool = False
    dtype: torch.dtype = torch.float32
    image_encoder: bool = True
    max_shard_size: str | None = None
    variant: str | None = None
    pickle: bool = False
    legacy_files: bool = False
    # Weights at the scale of a trained model's, for sizes and precisions that matter; else ones that show mistakes.
    as_trained: bool = False

    def fill(self, module, seed, layers):
        """A module with this pipeline's weights."""
        if self.as_trained:
            return trained_parameters(module, self.seed + seed, layers)
        return spread_parameters(module, self.seed + seed)


class OneStepUnCLIPScheduler(UnCLIPScheduler):
    """The scheduler with one step defined, where diffusers divides by zero: one prediction of x_0 from pure noise."""

    def set_timesteps(self, num_inference_steps, device=None):
        """One step is the last training timestep."""
        if num_inference_steps > 1:
            return super().set_timesteps(num_inference_steps, device)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor([self.config.num_train_timesteps - 1])

    def step(self, model_output, timestep, sample, prev_timestep=None, **rest):
        """One step leads out of the noise altogether."""
        if self.num_inference_steps == 1:
            prev_timestep = -1
        return super().step(model_output, timestep, sample, prev_timestep=prev_timestep, **rest)


class PriorPipeline(KandinskyV22PriorPipeline):
    """Kandinsky's pipeline, which also runs for models that come without an image encoder."""

    def get_zero_embed(self, batch_size=1, device=None):
        """The embedding of a picture of zeros, or None."""
        return None if self.image_encoder is None else super().get_zero_embed(batch_size, device)


def save_tokenizer(spec, folder):
    """A tokenizer of a few hundred tokens, as vocab.json + merges.txt or as transformers saves it."""
    merges = clip_merges(spec.merges)
    write_vocabulary(folder, merges)
    write_json(folder / "tokenizer_config.json", legacy_config(spec.pad_token, spec.max_length), indent=2)
    write_json(folder / "special_tokens_map.json", legacy_special_tokens(spec.pad_token), indent=2)
    if spec.tokenizer_json:
        legacy = {path.name: path.read_bytes() for path in folder.iterdir()}
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        fresh_folder(folder)
        # Or transformers would save whether it could reach the hub.
        tokenizer.init_kwargs.pop("local_files_only", None)
        tokenizer.save_pretrained(folder)
        if spec.legacy_files:
            add_legacy_files(folder, legacy)


def add_legacy_files(folder, legacy):
    """What transformers 4 saved: all forms at once, and merges as strings in tokenizer.json."""
    for name, content in legacy.items():
        (folder / name).write_bytes(content)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    write_json(folder / "tokenizer.json", tokenizer)


def vocabulary_size(spec):
    """Bytes, bytes that end a word, merges, start and end."""
    return 512 + spec.merges + 2


def text_config(spec):
    """The shape of a text encoder that fits the tokenizer."""
    size = vocabulary_size(spec)
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=spec.width,
        intermediate_size=spec.text_intermediate or 3 * spec.width,
        projection_dim=spec.width,
        num_hidden_layers=spec.text_layers,
        num_attention_heads=spec.text_heads,
        hidden_act=spec.hidden_act,
        max_position_embeddings=spec.max_length,
        bos_token_id=size - 2,
        pad_token_id=1,
        eos_token_id=2 if spec.argmax_pooling else size - 1,
    )


def text_encoder(spec):
    """The text encoder."""
    return spec.fill(CLIPTextModelWithProjection(text_config(spec)), 0, spec.text_layers)


def image_encoder(spec):
    """An image encoder, used for the picture of zeros alone."""
    config = CLIPVisionConfig(
        hidden_size=12,
        intermediate_size=24,
        projection_dim=spec.width,
        num_hidden_layers=1,
        num_attention_heads=3,
        image_size=14,
        patch_size=4,
        hidden_act=spec.hidden_act,
    )
    return spec.fill(CLIPVisionModelWithProjection(config), 1, config.num_hidden_layers)


def prior(spec):
    """A prior that fits the text encoder."""
    model = PriorTransformer(
        num_attention_heads=spec.prior_heads,
        attention_head_dim=spec.prior_head_dim,
        num_layers=spec.prior_layers,
        embedding_dim=spec.width,
        num_embeddings=spec.max_length,
        **spec.prior,
    )
    spec.fill(model, 2, spec.prior_layers)
    # Guidance multiplies what the prompt changes; unscaled, most predictions would end at the clipping range.
    model.proj_to_clip_embeddings.weight.data.mul_(0.5)
    return model


def save_pipeline(spec, folder):
    """Saves a whole pipeline as diffusers does, and then the tokenizer in the form asked for."""
    settings = dict(prediction_type="sample", clip_sample_range=10.0) | spec.scheduler
    with tempfile.TemporaryDirectory() as work:
        save_tokenizer(spec, Path(work) / "tokenizer")
        pipeline = KandinskyV22PriorPipeline(
            prior=prior(spec),
            image_encoder=image_encoder(spec),
            text_encoder=text_encoder(spec),
            tokenizer=CLIPTokenizer.from_pretrained(Path(work) / "tokenizer"),
            scheduler=UnCLIPScheduler(**settings),
            image_processor=CLIPImageProcessorPil(size={"shortest_edge": 14}, crop_size=14),
        ).to(spec.dtype)
        sharding = {"max_shard_size": spec.max_shard_size} if spec.max_shard_size else {}
        pipeline.save_pretrained(folder, variant=spec.variant, **sharding)
        if spec.pickle:
            pickle_weights(folder, pipeline)
        shutil.rmtree(folder / "tokenizer")
        shutil.copytree(Path(work) / "tokenizer", folder / "tokenizer")
    if spec.ddpm:
        # As diffusers made Stable unCLIP's scheduler of Karlo's.
        karlo = UnCLIPScheduler(variance_type="fixed_small_log", beta_schedule="squaredcos_cap_v2", **settings)
        shutil.rmtree(folder / "scheduler")
        DDPMScheduler.from_config(karlo.config).save_pretrained(folder / "scheduler")
    if not spec.image_encoder:
        leave_out(folder, ["image_encoder", "image_processor"])


def pickle_weights(folder, pipeline):
    """Replaces the safetensors files by pickles: one for the prior, two with an index for the text encoder."""
    for path in folder.glob("*/*.safetensors"):
        path.unlink()
    pipeline.prior.save_pretrained(folder / "prior", safe_serialization=False)
    torch.save(pipeline.image_encoder.state_dict(), folder / "image_encoder" / "pytorch_model.bin")
    weights = pipeline.text_encoder.state_dict()
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    placed = {key: names["encoder.layers" in key] for key in weights}
    for name in names:
        part = {key: value for key, value in weights.items() if placed[key] == name}
        torch.save(part, folder / "text_encoder" / name)
    size = sum(value.numel() * value.element_size() for value in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(placed.items()))}
    write_json(folder / "text_encoder" / "pytorch_model.bin.index.json", index, indent=2)


def leave_out(folder, components):
    """Takes components out of a saved pipeline."""
    index = json.loads((folder / "model_index.json").read_text())
    for name in components:
        shutil.rmtree(folder / name)
        del index[name]
    write_json(folder / "model_index.json", index, indent=2)


def load_pipeline(folder, names=None, variant=None):
    """The components of a folder in Kandinsky's pipeline, in float32; `names` maps components to other folder names."""

    def load(kind, name, **options):
        return kind.from_pretrained(folder / (names or {}).get(name, name), **options)

    weights = {"dtype": torch.float32, "variant": variant}
    has_images = (folder / "image_encoder").exists()
    pipeline = PriorPipeline(
        prior=load(PriorTransformer, "prior", **weights),
        text_encoder=load(CLIPTextModelWithProjection, "text_encoder", **weights),
        tokenizer=load(CLIPTokenizer, "tokenizer"),
        scheduler=load(OneStepUnCLIPScheduler, "scheduler"),
        image_encoder=load(CLIPVisionModelWithProjection, "image_encoder", **weights) if has_images else None,
        image_processor=None,
    )
    modules = [pipeline.prior, pipeline.text_encoder, pipeline.image_encoder]
    assert all(p.dtype == torch.float32 for m in modules if m is not None for p in m.parameters())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_case(pipeline, case):
    """Image embeddings, and negative ones or None; row r draws from a generator seeded seed + r."""
    prompts, negative = case["prompts"], case["negative_prompt"]
    rows = len(prompts) * case["samples_per_prompt"] * (1 if negative is None else 2)
    output = pipeline(
        list(prompts),
        negative_prompt=None if negative is None else [negative] * len(prompts),
        num_images_per_prompt=case["samples_per_prompt"],
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance_scale"],
        generator=[generator(case["seed"] + row) for row in range(rows)],
    )
    return output.image_embeds, output.negative_image_embeds


def case(prompts, negative_prompt=None, steps=5, guidance_scale=4.0, seed=0, samples_per_prompt=1):
    """The settings of one run."""
    return {
        "prompts": prompts,
        "negative_prompt": negative_prompt,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "samples_per_prompt": samples_per_prompt,
    }
