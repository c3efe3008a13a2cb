"""Kandinsky's decoders."""

import inspect

from .decoder import Decoder
from ..problem import Problem


class Kandinsky21(Decoder):
    """KandinskyPipeline, which takes the text too."""

    def load(self):
        from diffusers import KandinskyPipeline

        return self.from_pretrained(KandinskyPipeline)

    def settings(self, embed, negative, prompt):
        return {"image_embeds": embed, "negative_image_embeds": negative, "prompt": prompt} | self.sampling()


class Kandinsky22(Decoder):
    """One of the pipelines of Kandinsky 2.2, by the pictures that are given: they have the same networks."""

    def load(self):
        import diffusers

        pipeline = self.from_pretrained(getattr(diffusers, self.choice.task.pipeline))
        defaults = inspect.signature(pipeline.__call__).parameters
        self.steps, self.strength, self.height, self.width = (
            defaults[setting].default if value is None and setting in defaults else value
            for setting, value in (
                ("num_inference_steps", self.options.steps), ("strength", self.options.strength),
                ("height", self.options.height), ("width", self.options.width),
            )
        )  # fmt: skip
        if self.strength is not None and int(self.steps * self.strength) < 1:
            raise Problem(f"--strength {self.strength} of {self.steps} steps is less than one; raise it, or --steps")
        # What pictures are resized to has to be what the latents are rounded up to.
        unit = 4 ** (len(pipeline.movq.config.block_out_channels) - 1)
        self.height, self.width = (-(-length // unit) * unit for length in (self.height, self.width))
        return pipeline

    def settings(self, embed, negative, _prompt):
        settings = {"image_embeds": embed, "negative_image_embeds": negative} | self.sampling()
        settings |= {"height": self.height, "width": self.width}
        if "hint" in self.pictures:
            settings["hint"] = self.hint().to(embed)
        if "mask" in self.pictures:
            settings |= {"image": self.pictures["image"], "mask_image": self.pictures["mask"]}
        elif "image" in self.pictures:
            settings |= {"image": self.image(), "strength": self.strength}
        return settings

    def image(self):
        """The picture to start from. These pipelines would resize it with height and width exchanged."""
        processor = self.pipeline.image_processor
        processor.register_to_config(do_resize=False)
        return processor.resize(self.pictures["image"], self.height, self.width)

    def hint(self):
        """The hint, `(1, 3, height, width)`, 0 to 1."""
        import numpy as np
        import torch
        from PIL import Image

        hint = self.pictures["hint"].resize((self.width, self.height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(hint).copy()).permute(2, 0, 1)[None] / 255
