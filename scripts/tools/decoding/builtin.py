"""The built-in decoder in numpy: the same as `scripts/emoji/decoder.py`, which trains it with torch."""

import numpy as np
from safetensors.numpy import load_file

from ..problem import FAILED, Problem, first_line

HEADS = 4
EPSILON = 1e-5  # of torch's LayerNorm
BATCH = 64


class Decoder:
    """Draws square pictures from embeddings. All sizes but the number of heads are those of the weights."""

    def __init__(self, tensors):
        """`tensors`: the torch module's state, by name."""
        self.tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        self.layers = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")), default=-1)
        self.dim = len(self.tensors["mean"])
        self.patches, self.width = self.tensors["positions"].shape
        self.seed_width = self.tensors["widen.weight"].shape[1]
        self.detail_width = len(self.tensors["detail.0.bias"])
        self.side = round(self.patches**0.5)
        # A decoder whose patches are not pixels yet has convolutions that make them so.
        self.channels = self.tensors["edges.weight"].shape[1] if "edges.weight" in self.tensors else 3
        self.edge_channels = len(self.tensors["edges.bias"]) if "edges.weight" in self.tensors else 0
        self.patch = round((len(self.tensors["pixels.bias"]) / self.channels) ** 0.5)
        for name, shape in self.shapes().items():
            if self.tensors[name].shape != shape:
                raise ValueError(f"{name} has shape {self.tensors[name].shape}, not {shape}")

    def shapes(self):
        """The tensors that `forward` uses, and what their shapes have to be."""
        dim, width, detail, seeds = self.dim, self.width, self.detail_width, self.side**2 * self.seed_width
        linears = {
            "seed": (seeds, dim), "detail.0": (detail, dim), "detail.2": (detail, detail), "detail.4": (seeds, detail),
            "widen": (width, self.seed_width), "whole": (width, dim),
            "pixels": (self.channels * self.patch**2, width),
        }  # fmt: skip
        norms = ["norm"]
        for at in range(self.layers):
            block = f"blocks.{at}"
            norms += [f"{block}.norm1", f"{block}.norm2"]
            linears |= {
                f"{block}.qkv": (3 * width, width), f"{block}.out": (width, width), f"{block}.up": (4 * width, width),
                f"{block}.down": (width, 4 * width),
            }  # fmt: skip
        shapes = {"mean": (dim,), "std": (dim,), "positions": (self.side**2, width)}
        shapes |= {f"{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
        shapes |= {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}
        if edges := self.edge_channels:
            shapes |= {"edges.weight": (edges, self.channels, 3, 3), "edges.bias": (edges,)}
            shapes |= {"colors.weight": (3, edges, 3, 3), "colors.bias": (3,)}
        return shapes

    def draw(self, embeds):
        """`(rows, dim)` to pictures `(rows, side, side, 3)` uint8, computed in batches."""
        for start in range(0, len(embeds), BATCH):
            with np.errstate(all="ignore"):  # what does not fit shows in the result
                pixels = self.forward(embeds[start : start + BATCH])
            bad = ~np.isfinite(pixels).all(axis=(1, 2, 3))
            if bad.any():
                row = start + bad.argmax()
                raise Problem(f"row {row} is no embedding of the built-in model: its numbers are too large")
            pixels = (pixels.clip(-1, 1) + 1) * 127.5
            yield from pixels.round().astype(np.uint8).transpose(0, 2, 3, 1)

    def forward(self, embeds):
        """`(rows, dim)` to `(rows, 3, side, side)`, from -1 to 1 or a little outside."""
        lengths = np.sqrt((embeds**2).sum(1, keepdims=True)).clip(1e-12, None)
        # Divided by an infinite length, numbers that are too large would be 0.
        directions = embeds / np.where(np.isfinite(lengths), lengths, np.nan)
        embeds = (directions - self.tensors["mean"]) / self.tensors["std"]
        lifted = gelu(self.linear("detail.2", gelu(self.linear("detail.0", embeds))))
        seeds = self.linear("seed", embeds) + self.linear("detail.4", lifted)
        seeds = seeds.reshape(-1, self.patches, self.seed_width)
        hidden = self.linear("widen", seeds) + self.linear("whole", embeds)[:, None] + self.tensors["positions"]
        for at in range(self.layers):
            hidden = self.block(f"blocks.{at}", hidden)
        patches = self.linear("pixels", self.normalize("norm", hidden))
        patches = patches.reshape(-1, self.side, self.side, self.channels, self.patch, self.patch)
        pixels = self.side * self.patch
        features = patches.transpose(0, 3, 1, 4, 2, 5).reshape(-1, self.channels, pixels, pixels)
        if not self.edge_channels:
            return features
        return self.convolve("colors", gelu(self.convolve("edges", features)))

    def convolve(self, name, features):
        """torch's Conv2d of 3 x 3 with a border of 0."""
        weight, (_, _, rows, columns) = self.tensors[f"{name}.weight"], features.shape
        around = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)))
        taps = [around[:, :, down : down + rows, across : across + columns] for down in range(3) for across in range(3)]
        mixed = np.einsum("btcyx,otc->boyx", np.stack(taps, 1), weight.reshape(*weight.shape[:2], 9).swapaxes(1, 2), optimize=True)
        return mixed + self.tensors[f"{name}.bias"][:, None, None]

    def block(self, name, hidden):
        """A transformer block, norms first."""
        rows, patches, width = hidden.shape
        mixture = self.linear(f"{name}.qkv", self.normalize(f"{name}.norm1", hidden))
        query, key, value = mixture.reshape(rows, patches, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
        scores = query @ key.swapaxes(-1, -2) * np.float32((width // HEADS) ** -0.5)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ value
        hidden = hidden + self.linear(f"{name}.out", mixed.swapaxes(1, 2).reshape(rows, patches, width))
        lifted = gelu(self.linear(f"{name}.up", self.normalize(f"{name}.norm2", hidden)))
        return hidden + self.linear(f"{name}.down", lifted)

    def linear(self, name, values):
        """torch's Linear."""
        return values @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def normalize(self, name, values):
        """torch's LayerNorm."""
        values = values - values.mean(-1, keepdims=True)
        scale = 1 / np.sqrt((values**2).mean(-1, keepdims=True) + np.float32(EPSILON))
        return values * scale * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]


def gelu(values):
    """torch's GELU in its tanh approximation."""
    return 0.5 * values * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * (values + 0.044715 * values**3)))


def load(path):
    """The decoder in a safetensors file."""
    try:
        return Decoder(load_file(path))
    except Exception as error:  # safetensors' own error is not exported under one name in all its versions
        why = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        reason = f"the built-in decoder {path} cannot be used ({why}); restore it with git checkout"
        raise Problem(reason, FAILED) from None
