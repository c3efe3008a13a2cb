"""A ComfyUI node that reads prior-embed's embeddings, for unCLIPConditioning and whatever takes a CLIP_VISION_OUTPUT.

    ln -s "$PWD/scripts/comfyui" ComfyUI/custom_nodes/prior_embed

It takes a .safetensors or .npy file of ComfyUI's input folder, and one of its rows.
"""

import comfy.clip_vision
import folder_paths
import numpy as np
import torch
from safetensors.torch import load_file


class PriorEmbedLoad:
    """Reads an embedding."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP_VISION_OUTPUT",), "load", "conditioning"

    @classmethod
    def INPUT_TYPES(cls):
        """A file's name and a row."""
        return {"required": {"file": ("STRING", {"default": "embs.safetensors"}),
                             "row": ("INT", {"default": 0, "min": 0, "max": 2**31 - 1})}}  # fmt: skip

    def load(self, file, row):
        """The row as CLIPVisionEncode would give it, `(1, dim)`; the states of an image encoder are none."""
        path = folder_paths.get_annotated_filepath(file)
        is_npy = path.endswith(".npy")
        embeds = torch.from_numpy(np.load(path)) if is_npy else load_file(path)["image_embeds"]
        if row >= len(embeds):
            raise ValueError(f"{file} has rows 0 to {len(embeds) - 1}, and no row {row}")
        output = comfy.clip_vision.Output()
        output["image_embeds"] = embeds[row : row + 1].float()
        output["last_hidden_state"] = output["penultimate_hidden_states"] = None
        return (output,)


NODE_CLASS_MAPPINGS = {"PriorEmbedLoad": PriorEmbedLoad}
NODE_DISPLAY_NAME_MAPPINGS = {"PriorEmbedLoad": "Load prior-embed embedding"}
