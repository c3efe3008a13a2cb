#!/usr/bin/env python3
"""Draw pictures from the embeddings that prior-embed writes, or name the emoji that are closest to them.

    prior-embed --prompt "a red apple" --out - | python scripts/decode.py - --out apple.png
    scripts/decode.py embs.npz --nearest 5
    scripts/decode.py embs.npy --out grid.png --columns 4 --scale 2
    scripts/decode.py embs.npy --out pictures/
    scripts/decode.py --server http://localhost:8080 --prompt "a red apple" --out apple.png
    scripts/decode.py emb.npz --decoder kandinsky-2.2 --out apple.png
    scripts/decode.py emb.npz --decoder kandinsky-2.2 --image cat.png --mask hat.png --out cat2.png

INPUT is an .npy file of shape (rows, dim), an .npz with image_embeds and perhaps
negative_image_embeds, or - for standard input. In its place --server asks a running
prior-embed serve for the embeddings of the prompts.

The built-in decoder draws small pictures from the embeddings of the built-in model, and so
--nearest is for those too. prior-embed has it (prior-embed draw does the same without Python),
and is built first if it is not there. This script needs numpy, Pillow and safetensors; if this
Python lacks them, the first run installs them into the project's cache (PRIOR_EMBED_CACHE, or
prior-embed in XDG_CACHE_HOME or ~/.cache) and nowhere else.

--decoder runs a decoder of diffusers on the embeddings of the prior that belongs to it:

    karlo           kakaobrain/karlo-v1-alpha-image-variations          takes a --prompt
    kandinsky-2.1   kandinsky-community/kandinsky-2-1                   needs a --prompt
    kandinsky-2.2   kandinsky-community/kandinsky-2-2-decoder           takes pictures too
    stable-unclip   sd2-community/stable-diffusion-2-1-unclip-small     takes a --prompt, --noise-level
    sdxl            stabilityai/stable-diffusion-xl-base-1.0            takes a --prompt
    DIR             a folder with one of these, as diffusers saves it

kandinsky-2.2 starts from --image and goes as far from it as --strength says, repaints that of
it which is white in --mask (kandinsky-2-2-decoder-inpaint), and follows a depth map, --hint
(kandinsky-2-2-controlnet-depth), from noise or from --image. sdxl takes the embeddings of
Kandinsky 2.2's prior, by the IP-Adapter for CLIP's ViT-bigG: h94/IP-Adapter, or --ip-adapter.

The Kandinskys also need the negative embeddings: make an .npz, or use --negative-out of
prior-embed and --negative-embeds here. If this Python lacks torch and diffusers, the first
such run installs them into the cache too (several GB, scripts/reference-python). Without
a folder the decoder is downloaded from the hub.

Exit codes: 0 done, 1 failed while running, 2 wrong usage or bad input. A picture appears
whole or not at all.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
sys.path.insert(0, str(SCRIPTS))  # python -I leaves it out

from tools.decoding import decoders, environment  # noqa: E402
from tools.problem import Problem  # noqa: E402

ASSETS = SCRIPTS.parent / "assets"
BUILTIN_SCALE = 4
"""What the built-in decoder draws is small."""
OF_DIFFUSERS = (
    "prompt", "negative_embeds", "steps", "guidance_scale", "seed", "height", "width", "device", "dtype",
    *decoders.EXTRAS,
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        """Ends with the status of wrong usage."""
        raise Problem(f"{message}; --help lists the options")


def number(at_least, at_most=2**31 - 1):
    """A type for argparse: a whole number in a range."""

    def parse(text):
        value = int(text)
        if not at_least <= value <= at_most:
            raise argparse.ArgumentTypeError(f"{text} is not between {at_least} and {at_most}")
        return value

    parse.__name__ = "whole number"
    return parse


def real(text):
    """A type for argparse: a number that is one."""
    value = float(text)
    if value in (float("inf"), float("-inf")) or value != value:
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return value


def share(text):
    """A type for argparse: a number above 0, up to 1."""
    value = real(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def device(text):
    """A type for argparse: what prior-embed takes."""
    kind, colon, index = text.partition(":")
    if text in ("auto", "cpu", "cuda", "mps") or (kind == "cuda" and colon and index.isdecimal() and index.isascii()):
        return text
    raise argparse.ArgumentTypeError(f"{text} is none of auto, cpu, cuda, cuda:I, mps")


def parse(arguments):
    """The command line."""
    what, rest = __doc__.split("\n", 1)
    parser = Parser(
        prog="decode.py", description=what, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("input", metavar="INPUT", nargs="?", help="an .npy or .npz file, or - for standard input")
    add("--server", metavar="URL", help="in its place: embeddings of each --prompt, by prior-embed serve, with --seed")
    add("-o", "--out", metavar="FILE.png",
        help="one picture; of several rows a grid; - for standard output; or a folder: DIR/, or one that is there")  # fmt: skip
    add("--out-dir", metavar="DIR", type=Path, help="a picture for each row: 00000.png, 00001.png, ...")
    add("--overwrite", action="store_true", help="replace pictures that are there already; without it that is an error")
    add("--columns", metavar="N", type=number(1), help="columns of the grid (default: about square)")
    add("--scale", metavar="N", type=number(1, 64),
        help=f"enlarge N times (default {BUILTIN_SCALE} for the built-in decoder, 1 for others)")  # fmt: skip
    add("--filter", choices=("lanczos", "nearest"), default="lanczos",
        help="how to enlarge: smooth, or in blocks (default lanczos)")  # fmt: skip
    add("--nearest", metavar="K", type=number(1),
        help="print the K closest emoji for each row: row, emoji, name and cosine, with tabs between")  # fmt: skip
    add("--json", action="store_true", help="print them as JSON, a row a line")
    add("--decoder", metavar="NAME|DIR", default=decoders.BUILTIN,
        help=f"{decoders.BUILTIN} (built in, default), {decoders.NAMES}, or a folder in diffusers' layout")  # fmt: skip
    add("-v", "--verbose", action="store_true", help="tell more of diffusers' errors and warnings")
    group = parser.add_argument_group("for the decoders of diffusers")
    add = group.add_argument
    add("-p", "--prompt", metavar="TEXT", action="append", help="the text; once for all rows, or once for each row")
    add("--negative-embeds", metavar="FILE", help="what prior-embed --negative-out wrote (an .npz has them already)")
    add("--steps", metavar="N", type=number(1, 1000), help="denoising steps (default: diffusers')")
    add("--guidance-scale", metavar="G", type=real, help="off at 1 and below (default: diffusers')")
    add("--seed", metavar="S", type=number(0, 2**63 - 1), help="row r draws its noise with seed S + r (default 0)")
    add("--image", metavar="FILE", help="kandinsky-2.2: the picture to start from; it is resized to height and width")
    add("--strength", metavar="S", type=share, help="how far to go from it, up to 1 (default: diffusers')")
    add("--mask", metavar="FILE", help="kandinsky-2.2: white where --image is repainted, black where it stays")
    add("--hint", metavar="FILE", help="kandinsky-2.2: a depth map to follow")
    add("--noise-level", metavar="N", type=number(0, 999),
        help="stable-unclip: noise on the embedding, for variety (default 0)")  # fmt: skip
    add("--ip-adapter", metavar="FILE", help="sdxl: an IP-Adapter, .safetensors or .bin, in place of h94/IP-Adapter's")
    add("--ip-adapter-scale", metavar="S", type=real, help="sdxl: the embedding's weight beside the text (default 1)")
    add("--height", metavar="N", type=number(8, 8192), help="Kandinsky rounds it up to 64s (default: diffusers')")
    add("--width", metavar="N", type=number(8, 8192), help="likewise")
    add("--device", metavar="NAME", type=device, help="auto, cpu, cuda, cuda:I, mps (default auto)")
    add("--dtype", choices=("auto", "f32", "f16", "bf16"), help="auto is f32 on the CPU, f16 elsewhere (default auto)")
    options = parser.parse_args(arguments)
    if (options.input is None) == (options.server is None):
        parser.error("give either INPUT or --server URL")
    if options.out not in (None, "-") and is_folder(options.out):
        if options.out_dir is not None:
            parser.error(f'--out "{options.out}" is a folder, and so is --out-dir; leave one of them out')
        options.out, options.out_dir = None, Path(options.out)
    return options


def is_folder(name):
    """Whether an output is a folder of pictures, by what is there or by its last character."""
    return name.endswith("/") or (os.path.isdir(name) and not name.lower().endswith(".png"))


def check(options):
    """Refuses options that do not go together; the decoder that diffusers is to run, or None."""
    if options.out is None and options.out_dir is None and options.nearest is None:
        raise Problem("nothing to do; give --out FILE.png, --out-dir DIR or --nearest K")
    if options.out is not None and options.out != "-" and not options.out.lower().endswith(".png"):
        name = f'--out "{options.out}"'
        raise Problem(f"{name}: pictures are written as PNG; give a name that ends in .png, or in / for a folder")
    if options.out == "-" and options.nearest:
        raise Problem("--out - and --nearest both write to standard output; give --out a file name")
    if options.out == "-" and sys.stdout.isatty():
        raise Problem("standard output is a terminal, and pictures are binary; give a file name or a pipe")
    if options.json and not options.nearest:
        raise Problem("--json goes with --nearest K")
    if options.server and not options.prompt:
        raise Problem("--server makes embeddings of prompts; give --prompt TEXT, once for each row")
    if options.input == "-" and options.negative_embeds == "-":
        raise Problem("only one of the inputs can be standard input")
    given = {name for name in OF_DIFFUSERS if getattr(options, name) is not None}
    if options.server and options.decoder == decoders.BUILTIN:
        # For the server.
        given -= {"prompt", "seed"}
    choice = decoders.choose(options.decoder, given)
    if choice is None:
        for name in OF_DIFFUSERS:
            if name in given:
                raise Problem(f"{decoders.option(name)} is for other decoders than the built-in one (--decoder)")
        return None
    family = choice.family
    if not family.has_size and (options.height or options.width):
        raise Problem(f"{choice.title} draws pictures of one size; leave --height and --width out")
    if (options.height or 8) % 8 or (options.width or 8) % 8:
        raise Problem("--height and --width have to be multiples of 8")
    if family.prompt == "required" and not options.prompt:
        raise Problem(f'{choice.title} also takes the text; add --prompt TEXT (--prompt "" for none)')
    if family.prompt == "no" and options.prompt and not options.server:
        raise Problem(f"{choice.title} takes no text beside the embedding; leave --prompt out")
    if family.guidance_scale is None and options.negative_embeds:
        raise Problem(f"{choice.title} takes no negative embeddings; leave --negative-embeds out")
    if options.ip_adapter and not Path(options.ip_adapter).is_file():
        raise Problem(f'--ip-adapter: there is no file "{options.ip_adapter}"')
    return choice


def find_negative(choice, options, found):
    """The negative embeddings, if the decoder uses any."""
    from tools.decoding import embeddings

    default = choice.family.guidance_scale
    guidance_scale = default if options.guidance_scale is None else options.guidance_scale
    if default is None or guidance_scale <= 1:
        return None
    if options.negative_embeds:
        return embeddings.read_negative(options.negative_embeds, found.rows)
    if found.negative is None:
        raise Problem(
            f"{choice.title} also needs negative embeddings, and {found.name} has none; make it with prior-embed "
            "--out FILE.npz, or make them with --negative-out FILE and give --negative-embeds FILE here"
        )
    return found.negative


def draw(choice, options, pictures, found, negative):
    """Yields a picture, an array, for each row. `pictures`: what `input_pictures.read` gives."""
    if choice is not None:
        from tools.decoding.pipelines import DiffusersDecoder

        return DiffusersDecoder(choice, options, pictures).draw(found, negative)
    from tools.decoding import builtin

    decoders.check_dim(builtin.DIM, found.rows, found.name, "the built-in decoder")
    return builtin.draw(found.rows)


def write_pictures(arrays, options, count):
    """Enlarges the pictures and writes each, or all in one."""
    from tools.decoding import pictures

    scale = options.scale or (BUILTIN_SCALE if options.decoder == decoders.BUILTIN else 1)
    grid = pictures.Grid(count, options.columns) if options.out is not None else None
    if options.out_dir is not None:
        pictures.make_folder(options.out_dir)
    for row, array in enumerate(arrays):
        picture = pictures.enlarge(array, scale, options.filter)
        if options.out_dir is not None:
            pictures.write_file(picture, pictures.path_in(options.out_dir, row), options.overwrite)
        if grid is not None:
            grid.add(picture)
    if options.out == "-":
        pictures.write_stdout(pictures.encode(grid.canvas))
    elif grid is not None:
        pictures.write_file(grid.canvas, Path(options.out), options.overwrite)


def run(choice, options):
    """Everything, in a Python that has the libraries."""
    from tools.decoding import embeddings, input_pictures, pictures, server

    if options.out not in (None, "-"):
        pictures.check_file(Path(options.out), options.overwrite)
    found = server.ask(options.server, options.prompt, options.seed or 0) if options.server else embeddings.read(options.input)
    if choice is not None and choice.family.prompt == "no":
        # They were the server's.
        options.prompt = None
    count = len(found.rows)
    if options.prompt and len(options.prompt) not in (1, count):
        prompts = len(options.prompt)
        raise Problem(f"{found.name} has {count} rows, and there are {prompts} prompts; give one, or one for each")
    if options.out_dir is not None:
        pictures.check_folder(options.out_dir, count, options.overwrite)
    given = input_pictures.read(options)
    text = ""
    if options.nearest:
        from tools.decoding import nearest

        index = nearest.load(ASSETS / "index")
        decoders.check_dim(index.dim, found.rows, found.name, "--nearest", "it is for those of the built-in model")
        text = "".join(f"{line}\n" for line in nearest.lines(index, found.rows, options.nearest, options.json))
    if options.out is not None or options.out_dir is not None:
        negative = None
        if choice is not None:
            decoders.check_dim(choice.dim, found.rows, found.name, choice.title)
            negative = find_negative(choice, options, found)
        write_pictures(draw(choice, options, given, found, negative), options, count)
    # Last, so that nothing is printed where a picture then fails. In UTF-8 whatever the terminal is said to be.
    if text:
        pictures.write_stdout(text.encode())


def stop(signal_number, _frame):
    """Leaves by an exception, so that unfinished files get removed."""
    raise SystemExit(128 + signal_number)


def main(arguments):
    """The exit status."""
    for signal_number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(signal_number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(signal_number, stop)
    try:
        options = parse(arguments)
        choice = check(options)
        draws = options.out is not None or options.out_dir is not None
        environment.enter(Path(__file__).resolve(), arguments, with_diffusers=choice is not None and draws)
        run(choice, options)
    except Problem as problem:
        print(f"decode: {problem}", file=sys.stderr)
        return problem.status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
