"""LoRAs of every kind that PEFT and diffusers write, and the priors that these libraries make of them."""

import copy
import json

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from .files import save_tensors, write_json
from .weights import generator

CONFIG = "adapter_config.json"


def fill(model, seed):
    """Numbers that show in the output for what a LoRA learns."""
    draws = generator(seed)
    for key, parameter in sorted(model.named_parameters()):
        if "lora_" in key:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=draws)


def peft_lora(prior, folder, seed, *, safe=True, config=None, **options):
    """Saves a LoRA for a prior as PEFT does. `config` takes the place of what its file says; its keys stay in order."""
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(prior), LoraConfig(**options))
    fill(model, seed)
    model.save_pretrained(folder, safe_serialization=safe)
    (folder / "README.md").unlink(missing_ok=True)
    saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if isinstance(saved["target_modules"], list):
        # PEFT keeps module names in a set, whose order changes from run to run.
        saved["target_modules"].sort()
    write_json(folder / CONFIG, saved | (config or {}), indent=2)


def with_peft_lora(prior, *folders, scale=1):
    """The prior with the LoRAs in folders merged by PEFT, each at this strength."""
    torch.manual_seed(0)
    model = PeftModel.from_pretrained(copy.deepcopy(prior), str(folders[0]), adapter_name="0")
    names = [str(number) for number in range(len(folders))]
    for name, folder in list(zip(names, folders))[1:]:
        model.load_adapter(str(folder), adapter_name=name)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in names:
                if name in module.scaling:
                    module.set_scale(name, scale)
    return model.merge_and_unload(adapter_names=names)


def diffusers_lora(prior, folder, seed, *, config=None, **options):
    """The same as diffusers' own `save_lora_adapter` does: the configuration is in the header."""
    model = copy.deepcopy(prior)
    torch.manual_seed(seed)
    model.add_adapter(LoraConfig(**options))
    fill(model, seed)
    name = "pytorch_lora_weights.safetensors"
    model.save_lora_adapter(folder, weight_name=name)
    # The entries of the header in an order that does not change from run to run.
    with safe_open(folder / name, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        metadata = file.metadata()
    held = json.loads(metadata["lora_adapter_metadata"])
    if isinstance(held["target_modules"], list):
        held["target_modules"].sort()
    metadata["lora_adapter_metadata"] = json.dumps(held | (config or {}), indent=2)
    save_tensors(folder / name, tensors, **metadata)


def with_diffusers_lora(prior, folder, scale=1):
    """The prior with the LoRA in a folder merged by diffusers at this strength."""
    model = copy.deepcopy(prior)
    torch.manual_seed(0)
    name = "pytorch_lora_weights.safetensors"
    model.load_lora_adapter(folder, prefix=None, weight_name=name, use_safetensors=True)
    model.fuse_lora(lora_scale=scale)
    model.unload_lora()
    return model


def attention_processors(prior, seed, *, block=0, scale=1, alphas={}):
    """The tensors that diffusers' training scripts for Kandinsky save of a LoRA, and the prior with them at this strength.

    Some modules may have an alpha. The rank is 4.
    """
    draws = generator(seed)
    model = copy.deepcopy(prior)
    tensors, state = {}, model.state_dict()
    for name in ("to_q", "to_k", "to_v", "to_out"):
        target = f"transformer_blocks.{block}.attn1.{name}" + (".0" if name == "to_out" else "") + ".weight"
        outputs, inputs = state[target].shape
        down, up = (0.2 * torch.randn(size, generator=draws) for size in ((4, inputs), (outputs, 4)))
        key = f"transformer_blocks.{block}.attn1.processor.{name}_lora"
        tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
        if name in alphas:
            tensors[f"{key}.alpha"] = torch.tensor(alphas[name])
        state[target] += scale * (alphas.get(name, 4) / 4) * up @ down
    return tensors, model
