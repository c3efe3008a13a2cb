"""diffusers' decoders that take more than embeddings and text, or take embeddings by an adapter, against diffusers."""

import numpy as np
import torch
from diffusers import KandinskyV22ControlnetImg2ImgPipeline, KandinskyV22Img2ImgPipeline
from PIL import Image
from safetensors.torch import save_file

from ..models import decoders
from ..models.weights import set_up
from .decode_pipelines import DIM, PROMPTS, STEPS, PipelineTest
from .decode_script import embeddings, npy

HEIGHT, WIDTH = 40, 16
SIZE = ("--height", HEIGHT, "--width", WIDTH)


def setUpModule():
    """Silent libraries, and one thread: quickest for networks as small as these."""
    set_up()


def blotches(size, seed):
    """A picture of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


class KandinskyTest(PipelineTest):
    """Kandinsky 2.2 with pictures."""

    names = ("kandinsky22", "kandinsky22_inpaint", "kandinsky22_controlnet")

    def setUp(self):
        super().setUp()
        self.image, self.hint = blotches((31, 23), 1), blotches((WIDTH, HEIGHT), 2)
        self.mask = Image.new("L", (WIDTH, HEIGHT))
        self.mask.paste(255, (0, 0, WIDTH, HEIGHT // 2))
        for name in ("image", "mask", "hint"):
            getattr(self, name).save(self.folder / f"{name}.png")
        self.all_negative = torch.from_numpy(self.negative.copy())

    def settings(self, row, **more):
        """What every pipeline is called with."""
        negative = self.all_negative[row : row + 1]
        return dict(image_embeds=self.embed(row), negative_image_embeds=negative, num_inference_steps=STEPS, **more)

    def test_a_picture_to_start_from(self):
        pictures = self.decode("kandinsky22", "rows.npz", *SIZE, "--image", "image.png", "--strength", "0.5")
        self.assertEqual(pictures[0].shape, (HEIGHT, WIDTH, 3))
        pipeline = KandinskyV22Img2ImgPipeline(**self.pipelines["kandinsky22"].components)
        pipeline.set_progress_bar_config(disable=True)

        def run(row, **more):
            # It takes height for width.
            size = dict(height=WIDTH, width=HEIGHT)
            return pipeline(**self.settings(row, image=self.image, strength=0.5, **size, **more))

        self.assert_same(pictures, run)

    def test_a_mask_says_where_it_is_repainted(self):
        guided = ("--image", "image.png", "--mask", "mask.png", *SIZE)
        pictures = self.decode("kandinsky22_inpaint", "rows.npz", *guided)
        self.assertEqual(pictures[0].shape, (HEIGHT, WIDTH, 3))
        pipeline = self.pipelines["kandinsky22_inpaint"]

        def run(row, **more):
            size = dict(height=HEIGHT, width=WIDTH)
            return pipeline(**self.settings(row, image=self.image, mask_image=self.mask, **size, **more))

        self.assert_same(pictures, run)
        # Where nothing is, the embedding does not count; where everything is, the picture does not.
        Image.new("L", (3, 3)).save(self.folder / "none.png")
        Image.new("L", (3, 3), 255).save(self.folder / "all.png")
        kept = self.decode("kandinsky22_inpaint", "rows.npz", "--image", "image.png", "--mask", "none.png", *SIZE)
        np.testing.assert_array_equal(kept[0], kept[1])
        painted = [
            self.decode("kandinsky22_inpaint", "rows.npz", "--image", image, "--mask", "all.png", *SIZE)
            for image in ("image.png", "hint.png")
        ]
        np.testing.assert_array_equal(painted[0], painted[1])
        self.assertGreater(np.abs(painted[0][0].astype(int) - painted[0][1]).max(), 1)

    def test_a_hint_is_followed(self):
        # Without guidance, so that there is no negative embedding.
        settings = dict(height=128, width=64, guidance_scale=1.0)
        hint = torch.from_numpy(np.asarray(self.hint.resize((64, 128), Image.Resampling.BICUBIC)).copy())
        hint = hint.permute(2, 0, 1)[None] / 255
        guided = ("--hint", "hint.png", "--height", "128", "--width", "64", "--guidance-scale", "1")
        pictures = self.decode("kandinsky22_controlnet", "rows.npy", *guided)
        pipeline = self.pipelines["kandinsky22_controlnet"]
        self.assert_same(pictures, lambda row, **more: pipeline(**self.settings(row, hint=hint, **settings, **more)))

    def test_a_hint_and_a_picture(self):
        hint = self.hint.resize((64, 64), Image.Resampling.BICUBIC)
        hint = torch.from_numpy(np.asarray(hint).copy()).permute(2, 0, 1)[None] / 255
        guided = ("--hint", "hint.png", "--image", "image.png", "--strength", "1", "--height", "64", "--width", "64")
        pictures = self.decode("kandinsky22_controlnet", "rows.npz", *guided)
        pipeline = KandinskyV22ControlnetImg2ImgPipeline(**self.pipelines["kandinsky22_controlnet"].components)
        pipeline.set_progress_bar_config(disable=True)

        def run(row, **more):
            size = dict(height=64, width=64, strength=1.0)
            return pipeline(**self.settings(row, image=self.image, hint=hint, **size, **more))

        self.assert_same(pictures, run)

    def test_what_goes_wrong(self):
        self.write("text.png", b"hello")
        content = (self.folder / "image.png").read_bytes()
        self.write("cut.png", content[: len(content) // 2])
        image = ("--image", "image.png")
        for text, name, *arguments in (
            ("is for a decoder for inpainting", "kandinsky22", *image, "--mask", "mask.png"),
            ("is for a decoder for hints", "kandinsky22_inpaint", "--hint", "hint.png"),
            ("an embedding alone is for a decoder;", "kandinsky22_controlnet"),
            ("--image is for a decoder;", "kandinsky22_inpaint", *image),
            ("--strength 0.01 of 2 steps", "kandinsky22", *image, "--strength", "0.01", "--steps", "2"),
            ('--image: cannot read the picture "none.png": No such file', "kandinsky22", "--image", "none.png"),
            ('"text.png"', "kandinsky22", "--image", "text.png"),
            ('"cut.png"', "kandinsky22_controlnet", "--hint", "cut.png"),
        ):
            with self.subTest(text):
                self.fail_with(text, "rows.npz", "--decoder", self.root / name, "--out", "a.png", *arguments)


class StableDiffusionXlTest(PipelineTest):
    """SDXL with an IP-Adapter."""

    names = ("stable_diffusion_xl",)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        pipeline = cls.pipelines["stable_diffusion_xl"]
        adapter = decoders.ip_adapter(pipeline.unet, DIM)
        flat = {f"{part}.{name}": tensor for part, of_part in adapter.items() for name, tensor in of_part.items()}
        save_file(flat, cls.root / "adapter.safetensors")
        torch.save(adapter, cls.root / "adapter.bin")
        pipeline.load_ip_adapter(adapter, subfolder="", weight_name="", image_encoder_folder=None)

    def decode_with(self, adapter, *arguments):
        """The pictures of both rows with an adapter."""
        return self.decode("stable_diffusion_xl", "rows.npz", "--ip-adapter", self.root / adapter, *SIZE, *arguments)

    def test_embeddings_come_by_the_adapter(self):
        pictures = self.decode_with("adapter.safetensors", "--prompt", PROMPTS[0], "--ip-adapter-scale", "0.7")
        self.assertEqual(pictures[0].shape, (HEIGHT, WIDTH, 3))
        pipeline = self.pipelines["stable_diffusion_xl"]
        pipeline.set_ip_adapter_scale(0.7)

        def run(row, **more):
            embed = self.embed(row)
            embeds = [torch.stack([torch.zeros_like(embed), embed])]
            size = dict(height=HEIGHT, width=WIDTH, num_inference_steps=STEPS)
            return pipeline(PROMPTS[0], ip_adapter_image_embeds=embeds, **size, **more)

        self.assert_same(pictures, run)
        # The embedding counts as much as the scale says.
        self.write("rows.npz", npy(embeddings(2, DIM) + 1))
        others = self.decode_with("adapter.safetensors", "--prompt", PROMPTS[0], "--ip-adapter-scale", "0.7")
        self.assertGreater(np.abs(others[0].astype(int) - pictures[0]).max(), 1)
        alone = self.decode_with("adapter.safetensors", "--prompt", PROMPTS[0], "--ip-adapter-scale", "0")
        self.write("rows.npz", npy(self.rows))
        same = self.decode_with("adapter.safetensors", "--prompt", PROMPTS[0], "--ip-adapter-scale", "0")
        np.testing.assert_array_equal(alone, same)

    def test_without_guidance_and_text(self):
        pictures = self.decode_with("adapter.bin", "--guidance-scale", "1")
        pipeline = self.pipelines["stable_diffusion_xl"]
        pipeline.set_ip_adapter_scale(1.0)

        def run(row, **more):
            size = dict(height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, guidance_scale=1.0)
            return pipeline("", ip_adapter_image_embeds=[self.embed(row)[None]], **size, **more)

        self.assert_same(pictures, run)

    def test_what_goes_wrong(self):
        self.write("other.npy", npy(embeddings(2, DIM + 1)))
        self.write("bad.safetensors", b"hello")
        adapter = self.root / "adapter.safetensors"
        for status, text, source, *arguments in (
            (2, f"{DIM} numbers", "other.npy", "--ip-adapter", adapter),
            (2, 'there is no file "none.bin"', "rows.npz", "--ip-adapter", "none.bin"),
            (1, "cannot load", "rows.npz", "--ip-adapter", "bad.safetensors"),
        ):
            with self.subTest(text):
                decoder = ("--decoder", self.root / "stable_diffusion_xl")
                self.fail_with(text, source, *decoder, "--out", "a.png", *arguments, status=status)


