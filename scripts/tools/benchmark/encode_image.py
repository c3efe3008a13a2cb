"""Times `prior-embed encode-image` and transformers on the same JPEG pictures, made for the purpose.

One row with a random CLIP ViT-L/14 and one with the built-in model's image encoder, in f32: pictures a second of whole
processes without what an empty run takes, so that neither program's start counts. Ends with 1 if embeddings differ.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from ..built import BINARY, ROOT
from ..command_line import number
from . import machine
from .children import exit_status, measure, module_command
from .report import machine_line

# The distance that decoders of JPEG may make, by cosine.
LARGEST_DISTANCE = 1e-3

EMOJI = ROOT / "assets" / "emoji"
SMALL = ROOT / "tests" / "fixtures" / "pipelines" / "kandinsky22"


def parse(program, arguments):
    """The command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = machine.usable_cores()
    parser.add_argument("--pictures", type=number(2), default=64, help="with ViT-L/14; the built-in model gets 8 times as many (default 64)")
    parser.add_argument("--threads", type=number(1, cores), default=cores, help="of both programs (default: all cores)")
    parser.add_argument("--binary", type=Path, default=BINARY, help="default: what cargo build --release made")
    return parser.parse_args(arguments)


def write_pictures(folder, count):
    """Photographs' size and about their detail: 500 x 400, quality 90."""
    from PIL import Image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:400, 0:500]
    for index in range(count):
        waves = [np.sin(x * rng.uniform(0.01, 0.2) + y * rng.uniform(0.01, 0.2) + rng.uniform(0, 6)) for _ in range(3)]
        pixels = 127 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 15, (400, 500, 3))
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        picture.save(folder / f"{index:05}.jpg", quality=90)


def write_large_model(folder):
    """A model with a random ViT-L/14 that projects to the width of the small model's prior."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    shutil.copytree(SMALL, folder)
    width = json.loads((SMALL / "image_encoder" / "config.json").read_text(encoding="utf-8"))["projection_dim"]
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14,
        image_size=224, projection_dim=width,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    CLIPImageProcessorPil().save_pretrained(folder / "image_processor")


class PriorEmbed:
    """The binary."""

    name = "prior-embed"

    def __init__(self, options):
        self.options = options

    def encode(self, model, pictures, out):
        """Seconds of a process over all pictures in a folder."""
        command = [self.options.binary, "encode-image", pictures, "--model", model, "--device", "cpu", "--out", out]
        return measure(self.name, [*command, "--threads", self.options.threads, "--quiet", "--overwrite"]).wall_seconds


class Transformers:
    """The reference: `load_image`, `CLIPImageProcessor` and the model on batches of 16."""

    name = "transformers"

    def __init__(self, options):
        self.options = options

    def encode(self, model, pictures, out):
        """As [PriorEmbed.encode]."""
        job = Path(out).with_suffix(".json")
        content = {"model": str(model), "pictures": str(pictures), "out": str(out), "threads": self.options.threads}
        job.write_text(json.dumps(content), encoding="utf-8")
        return measure(self.name, module_command("encode_image", job)).wall_seconds


def reference(job):
    """What [Transformers] runs as a process of its own."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection
    from transformers.image_utils import load_image

    torch.set_num_threads(job["threads"])
    model = Path(job["model"])
    processor = CLIPImageProcessorPil.from_pretrained(model / "image_processor")
    encoder = CLIPVisionModelWithProjection.from_pretrained(model / "image_encoder", dtype=torch.float32).eval()
    paths = sorted(Path(job["pictures"]).iterdir())
    embeds = []
    for start in range(0, len(paths), 16):
        images = [load_image(str(path)) for path in paths[start : start + 16]]
        with torch.inference_mode():
            pixel_values = processor(images, return_tensors="pt").pixel_values.float()
            embeds.append(encoder(pixel_values).image_embeds)
    np.save(job["out"], torch.cat(embeds).numpy())


def row(title, model, count, options, work):
    """Prints the rates of both programs with a model; whether they agree."""
    folders = {"all": work / f"{count}", "one": work / "one"}
    for folder, pictures in ((folders["all"], count), (folders["one"], 1)):
        if not folder.is_dir():
            folder.mkdir()
            write_pictures(folder, pictures)
    rates, embeds = {}, {}
    for program in (Transformers(options), PriorEmbed(options)):
        out = work / f"{program.name}.npy"
        # A run first to bring the program and the model into the page cache.
        starts = [program.encode(model, folders["one"], out) for _ in range(2)]
        seconds = program.encode(model, folders["all"], out) - starts[1]
        rates[program.name], embeds[program.name] = (count - 1) / max(seconds, 1e-3), np.load(out).astype(np.float64)
    ours, theirs = embeds["prior-embed"], embeds["transformers"]
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    distance = float((1 - cosine).max())
    print(
        f"| {title} | {count} | {rates['transformers']:.1f} | {rates['prior-embed']:.1f} "
        f"| {rates['prior-embed'] / rates['transformers']:.2f} | {distance:.1e} |",
        flush=True,
    )
    return distance < LARGEST_DISTANCE


def run(options):
    """Measures both rows; whether all embeddings agree."""
    print(machine_line(machine.describe(), options.threads) + "\n")
    print("| image encoder | pictures | transformers, pictures/s | prior-embed, pictures/s | ratio | largest cosine distance |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        write_large_model(work / "large")
        rows = [("ViT-L/14, random", work / "large", options.pictures), ("built-in", EMOJI, 8 * options.pictures)]
        return all([row(title, model, count, options, work) for title, model, count in rows])


def main(program, arguments):
    """Exit status 0 if both programs ran and agree."""
    return exit_status(lambda: run(parse(program, arguments)))


if __name__ == "__main__":
    reference(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
