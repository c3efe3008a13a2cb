"""Karlo's decoder."""

from .decoder import Decoder


class Karlo(Decoder):
    """UnCLIPImageVariationPipeline, which takes embeddings, with the text of UnCLIPPipeline, which takes a prompt."""

    def load(self):
        """Part by part: diffusers moved the module of UnCLIPTextProjModel, and cannot load a whole Karlo since."""
        from diffusers import UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
        from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        def part(name, part_class, **settings):
            settings |= {"subfolder": name, "local_files_only": self.choice.is_folder}
            return part_class.from_pretrained(self.choice.source, **settings)

        networks = {
            "text_encoder": CLIPTextModelWithProjection, "text_proj": UnCLIPTextProjModel,
            "decoder": UNet2DConditionModel, "super_res_first": UNet2DModel, "super_res_last": UNet2DModel,
        }  # fmt: skip
        others = {
            "tokenizer": CLIPTokenizer, "decoder_scheduler": UnCLIPScheduler, "super_res_scheduler": UnCLIPScheduler,
        }  # fmt: skip
        return karlo_class()(
            **{name: part(name, part_class, torch_dtype=self.dtype) for name, part_class in networks.items()},
            **{name: part(name, part_class) for name, part_class in others.items()},
            image_encoder=None, feature_extractor=None,
        )  # fmt: skip

    def settings(self, embed, _negative, prompt):
        self.pipeline.text = prompt
        names = {"steps": "decoder_num_inference_steps", "guidance_scale": "decoder_guidance_scale"}
        return {"image_embeddings": embed} | self.given(**names)


def karlo_class():
    """UnCLIPImageVariationPipeline that needs no image encoder, and lets the prompt be something else than empty."""
    from diffusers import UnCLIPImageVariationPipeline, UnCLIPPipeline

    class UnCLIP(UnCLIPImageVariationPipeline):
        """Encodes `text` for every picture."""

        text = ""

        def _encode_prompt(self, prompt, *arguments):
            return UnCLIPPipeline._encode_prompt(self, [self.text] * len(prompt), *arguments)

        def _encode_image(self, image, device, num_images_per_prompt, image_embeddings=None):
            return image_embeddings

    return UnCLIP
