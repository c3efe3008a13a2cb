"""Trains the decoder on the pool's pictures and their embeddings. It resumes where it was stopped.

Most of a picture is in its embedding, so the nearest picture in pixels and edges is a sharp one but for details. A
discriminator, in the last part of the run, is what makes those sharp as well (arXiv 1611.07004).
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize as direction
from torch.utils.data import DataLoader, IterableDataset

from .batches import Batches, normalize
from .decoder import Decoder
from .packages import cache
from .pool import GROUP_SIZE, GROUPS, SEED, SINGLES, SIZE, Pool, in_parts
from .precision import reduced
from .trained_clip import load_clip
from .training import Average, Optimizer, Run, arguments

PARTS = 4
"""That a batch of the pool is learned in."""
NOISE = 0.2
"""The prior's embeddings are not exact; neither are these, in standard deviations: so much at most."""
ADVERSARIAL = 0.7
"""After this share of the steps the discriminator joins in."""
SHARP, MATCHING = 0.02, 0.5
"""The weights of what the discriminator thinks, and of the distance of its features, beside that of pixels."""


class Pictures(IterableDataset):
    """The pool's pictures, drawn again: `(rows, pictures)`."""

    def __init__(self, world, tokenizer, seed, first, last):
        self.recipes = Batches(world, tokenizer, SEED, 0, 1, SINGLES, GROUPS, GROUP_SIZE, 0)
        self.seed, self.first, self.last = seed, first, last

    def __iter__(self):
        return in_parts(self.seed, self.first, self.last, PARTS, self.begin)

    def begin(self, drawn, _):
        """A batch of the pool."""
        samples = self.recipes.samples(np.random.default_rng((SEED, drawn)), np.random.default_rng(0))

        def draw(places, _):
            pictures = torch.from_numpy(np.stack([samples[place].draw() for place in places]))
            return drawn * SIZE + torch.from_numpy(places), pictures.permute(0, 3, 1, 2).contiguous()

        return draw


class Discriminator(nn.Module):
    """Tells drawn pictures from true ones, place by place, seeing the embedding too."""

    def __init__(self, dim):
        super().__init__()
        widths = (24, 48, 96, 128)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in zip((3, *widths), widths)
        )
        self.judge, self.knows = nn.Conv2d(widths[-1], 1, 3, padding=1), nn.Linear(dim, widths[-1])

    def forward(self, pictures, embeds):
        """`(scores, features)`."""
        features = []
        for layer in self.layers:
            pictures = nn.functional.leaky_relu(layer(pictures), 0.2)
            features.append(pictures)
        fits = (pictures * self.knows(embeds)[..., None, None]).mean(1, keepdim=True)
        return self.judge(pictures) + fits, features


def edges(pictures):
    """Differences between neighbours, across and down."""
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def near(drawn, pictures):
    """`(mean distance of pixels, of edges)`."""
    sharp = sum((a - b).abs().mean() for a, b in zip(edges(drawn), edges(pictures)))
    return (drawn - pictures).abs().mean(), sharp


class Critic:
    """The discriminator and its optimizer, kept with the run."""

    def __init__(self, dim, path):
        self.model, self.path = Discriminator(dim), path
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, betas=(0.5, 0.95), weight_decay=0.0)
        if path.is_file():
            saved = torch.load(path)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])

    def learn(self, drawn, pictures, embeds):
        """One step, with the hinge loss."""
        with reduced():
            (true, _), (false, _) = self.model(pictures, embeds), self.model(drawn.detach(), embeds)
        loss = nn.functional.relu(1 - true.float()).mean() + nn.functional.relu(1 + false.float()).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def judge(self, drawn, pictures, embeds):
        """`(how false drawn pictures seem, distance of their features)`."""
        self.model.requires_grad_(False)
        with reduced():
            score, found = self.model(drawn, embeds)
            with torch.no_grad():
                _, wanted = self.model(pictures, embeds)
        self.model.requires_grad_(True)
        return -score.float().mean(), sum((a.float() - b.float()).abs().mean() for a, b in zip(found, wanted))

    def save(self):
        """Beside the run's checkpoint."""
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, self.path)


def main():
    """Trains."""
    options = arguments(__doc__, 5000, rate=1.2e-3)
    world, tokenizer, towers = load_clip()
    pool, decoder = Pool(world, towers, tokenizer), Decoder()
    embeds = direction(pool.embeds, dim=1)
    decoder.mean.data, decoder.std.data = embeds.mean(0), embeds.std(0)
    folder = cache() / "run" / "decoder"
    run = Run(folder, decoder, Optimizer(decoder, 0.0), options.steps, options.rate, Average(decoder, 0.998))
    critic = Critic(embeds.shape[1], folder / "critic.pt")
    pictures_of = Pictures(world, tokenizer, options.seed + 6, run.step, run.steps)
    for rows, pictures in DataLoader(pictures_of, batch_size=None, num_workers=1, prefetch_factor=4):
        generator = torch.Generator().manual_seed(options.seed * 2**32 + run.step)
        pictures, told = normalize(pictures), embeds[rows]
        noise = NOISE * torch.rand(len(rows), 1, generator=generator) * decoder.std
        told = told + noise * torch.randn(told.shape, generator=generator)
        with reduced():
            drawn = decoder(told)
        drawn = drawn.float()
        pixels, sharp = near(drawn, pictures)
        loss, parts = pixels + sharp, {"pixels": pixels.detach(), "edges": sharp.detach()}
        if run.step >= ADVERSARIAL * run.steps:
            known = (told - decoder.mean) / decoder.std
            parts["critic"] = critic.learn(drawn, pictures, known)
            false, features = critic.judge(drawn, pictures, known)
            loss = loss + SHARP * false + MATCHING * features
            parts |= {"false": false.detach(), "features": features.detach()}
        saved = run.last_save
        run.backward(loss, parts)
        if run.last_save != saved:
            critic.save()


if __name__ == "__main__":
    main()
