"""Stable unCLIP."""

from .decoder import Decoder


class StableUnclip(Decoder):
    """StableUnCLIPImg2ImgPipeline, which takes embeddings."""

    def load(self):
        return self.from_pretrained(stable_unclip_class(), image_encoder=None, feature_extractor=None)

    def settings(self, embed, _negative, prompt):
        return {"image_embeds": embed, "prompt": prompt} | self.sampling() | self.given(noise_level="noise_level")


def stable_unclip_class():
    """StableUnCLIPImg2ImgPipeline without an image encoder, which it would only ask for its type."""
    from diffusers import StableUnCLIPImg2ImgPipeline

    class StableUnCLIP(StableUnCLIPImg2ImgPipeline):
        """Lets the text encoder, of the same type, stand in for the image encoder."""

        def _encode_image(self, *arguments, **settings):
            self.image_encoder = self.text_encoder
            try:
                return super()._encode_image(*arguments, **settings)
            finally:
                self.image_encoder = None

    return StableUnCLIP
