"""Writes a model folder with random weights: `python -m benchmark.models SHAPE FOLDER`.

Tensors are drawn and written one after the other, so that a model of gigabytes needs the memory of its largest tensor.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from .shapes import SHAPES, read_recipe, recipe

TOKENIZER = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "clip_tokenizer"
POSITIONS, VOCABULARY = 77, 49408
# What is added to the residual stream; scaled down with depth, as in GPT-2, so that the input still shows at the end.
RESIDUAL = ("to_out.0.weight", "ff.net.2.weight", "out_proj.weight", "mlp.fc2.weight")


def text_encoder(shape):
    """The text encoder, without storage for its weights."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.embedding_dim,
        intermediate_size=shape.text_intermediate,
        projection_dim=shape.embedding_dim,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        hidden_act=shape.hidden_act,
        max_position_embeddings=POSITIONS,
        bos_token_id=VOCABULARY - 2,
        pad_token_id=1,
        eos_token_id=shape.eos_token_id,
        dtype="float32",
        architectures=["CLIPTextModelWithProjection"],
    )
    with torch.device("meta"):
        return CLIPTextModelWithProjection(config)


def prior(shape):
    """The prior, without storage for its weights."""
    with torch.device("meta"):
        return PriorTransformer(
            num_attention_heads=shape.prior_heads,
            attention_head_dim=shape.prior_head_dim,
            num_layers=shape.prior_layers,
            embedding_dim=shape.embedding_dim,
            num_embeddings=POSITIONS,
        )


def draw(name, size, layers, generator):
    """Values for one tensor that keep activations and embeddings at the scale of a trained model's."""
    values = torch.randn(size, generator=generator)
    if name == "clip_std":
        return values.mul_(0.05).add_(0.5)
    if name == "clip_mean":
        return values.mul_(0.05)
    if "norm" in name and name.endswith("weight"):
        return values.mul_(0.1).add_(1)
    if name.endswith("bias") or "token_embedding" in name or "position_embedding" in name:
        return values.mul_(0.02)
    if "embedding" in name and not name.endswith("weight"):
        return values.mul_(0.3)
    scale = size[-1] ** -0.5
    if name.endswith(RESIDUAL):
        scale *= (2 * layers) ** -0.5
    if name.startswith("proj_to_clip_embeddings"):
        # Guidance multiplies what the prompt changes; this leaves the guided prediction with a deviation of about 1.
        scale *= 0.5
    return values.mul_(scale)


def write_weights(path, parameters, layers, seed):
    """A safetensors file of float32 tensors, whose bytes follow from the names, the shapes and the seed."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, size in parameters.items():
        end = offset + 4 * size.numel()
        header[name] = {"dtype": "F32", "shape": list(size), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, size in parameters.items():
            file.write(memoryview(draw(name, size, layers, generator).numpy()))


def saved_parameters(model):
    """Names as checkpoints have them, in a fixed order, with their shapes."""
    prefix = "" if isinstance(model, PriorTransformer) else "text_model."
    names = {}
    for name, parameter in model.named_parameters():
        # This version of transformers may or may not nest the text model; checkpoints always do.
        nested = name.startswith((prefix, "text_projection"))
        names[name if nested else prefix + name] = parameter.shape
    return dict(sorted(names.items()))


def write_tokenizer(folder, pad_token):
    """CLIP's own vocabulary, padded as the model's tokenizer pads."""
    shutil.copytree(TOKENIZER, folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        write_json(folder / name, config | {"pad_token": pad_token})


def write_json(path, value):
    """Indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_index(folder):
    """`model_index.json` of a Kandinsky prior that comes without an image encoder."""
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "KandinskyV22PriorPipeline",
            "_diffusers_version": diffusers.__version__,
            "prior": ["diffusers", "PriorTransformer"],
            "scheduler": ["diffusers", "UnCLIPScheduler"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
        },
    )


def write_model(name, folder):
    """All files of a shape's model."""
    shape = SHAPES[name]
    model = prior(shape)
    model.save_config(folder / "prior")
    weights = folder / "prior" / "diffusion_pytorch_model.safetensors"
    write_weights(weights, saved_parameters(model), shape.prior_layers, 10 * shape.seed)

    model = text_encoder(shape)
    model.config.save_pretrained(folder / "text_encoder")
    weights = folder / "text_encoder" / "model.safetensors"
    write_weights(weights, saved_parameters(model), shape.text_layers, 10 * shape.seed + 1)

    scheduler = UnCLIPScheduler(
        prediction_type="sample",
        variance_type="fixed_small_log",
        clip_sample=True,
        clip_sample_range=shape.clip_sample_range,
    )
    scheduler.save_config(folder / "scheduler")
    write_tokenizer(folder / "tokenizer", shape.pad_token)
    write_index(folder)
    write_json(folder / "recipe.json", recipe(name))


def publish(made, folder, name):
    """Puts a finished folder into its place, unless another process was faster."""
    if folder.exists() and read_recipe(folder) != recipe(name):
        shutil.rmtree(folder)
    try:
        os.rename(made, folder)
    except OSError:
        if read_recipe(folder) != recipe(name):
            raise


def main():
    """Writes the model beside its place and moves it there, so that no half a model is ever found."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    print(f"bench: making a model of shape {name} with random weights (once)", file=sys.stderr)
    torch.set_num_threads(1)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as work:
        made = Path(work) / "model"
        made.mkdir()
        write_model(name, made)
        publish(made, folder, name)


if __name__ == "__main__":
    main()
