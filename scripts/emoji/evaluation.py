"""The tasks that the model is judged by: the right emoji among all, the right scene among a hundred hard ones."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from . import scene_templates, scenes
from .batches import World, encode, normalize
from .sources import STYLES
from .wordings import choose, held_out_wordings, plain, train_caption

CANDIDATES = 100
NAMING = ("template", "order", "keywords")
"""The kinds of wordings that name their emoji and no other."""


def direction(embeds):
    """Embeddings of length 1."""
    return torch.nn.functional.normalize(embeds.float(), dim=-1)


def cosine(embeds, truth):
    """Row by row."""
    return (direction(embeds) * direction(truth)).sum(-1)


class Encoders:
    """CLIP's two encoders, as they were saved, in float32."""

    def __init__(self, folder):
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        self.image = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32).eval()

    @torch.no_grad()
    def texts(self, texts, batch=512):
        """Text embeddings."""
        parts = [texts[at : at + batch] for at in range(0, len(texts), batch)]
        return torch.cat([self.text(**encode(self.tokenizer, part)).text_embeds for part in parts])

    @torch.no_grad()
    def pictures(self, pictures, batch=256):
        """Image embeddings of uint8 pictures."""
        parts = [np.stack(pictures[at : at + batch]) for at in range(0, len(pictures), batch)]
        pixels = (normalize(torch.from_numpy(part).permute(0, 3, 1, 2)) for part in parts)
        return torch.cat([self.image(pixel_values=part).image_embeds for part in pixels])


@dataclass
class EmojiTask:
    """Texts that name an emoji, and all emoji in all styles."""

    texts: list
    kind: np.ndarray
    answer: torch.Tensor
    """The place of the right emoji among the candidates."""
    truth: torch.Tensor
    """The image embedding of the right emoji in a random style."""
    candidates: torch.Tensor
    """`(styles, emoji, dim)`."""
    same: torch.Tensor
    """For each emoji a number that those with the same pictures share."""

    def kinds(self):
        """Which texts are of a kind; `naming` is all that count."""
        found = {kind: self.kind == kind for kind in (*NAMING, "vague", "unseen")}
        return {name: torch.from_numpy(mask) for name, mask in {"naming": np.isin(self.kind, NAMING), **found}.items()}

    def subset(self, chosen):
        """Some of the texts."""
        texts = [self.texts[at] for at in chosen]
        return replace(self, texts=texts, kind=self.kind[chosen], answer=self.answer[chosen], truth=self.truth[chosen])


def emoji_task(world: World, encoders, seed):
    """All held-out wordings."""
    rng = np.random.default_rng((seed, 1))
    wordings = [wording for one in world.emoji for wording in held_out_wordings(one, world.emoji, rng)]
    draw = lambda one, style: world.sprites.draw((255.0,) * 3, [(one.code, None, 56, 32, 32)], style)
    pictures = {style: [draw(one, style) for one in world.emoji] for style in STYLES}
    candidates = torch.stack([encoders.pictures(pictures[style]) for style in STYLES])
    looks = [b"".join(pictures[style][at].tobytes() for style in STYLES) for at in range(len(world.emoji))]
    numbers = {look: number for number, look in enumerate(dict.fromkeys(looks))}
    answer = torch.tensor([world.index[wording.code] for wording in wordings])
    style = torch.from_numpy(rng.integers(len(STYLES), size=len(wordings)))
    return EmojiTask(
        [wording.text for wording in wordings], np.array([wording.kind for wording in wordings]), answer,
        candidates[style, answer], candidates, torch.tensor([numbers[look] for look in looks]),
    )  # fmt: skip


def check_split(world: World, task, seed, captions=12, drawn=4000):
    """Draws captions and scenes as training does, and fails if one of them is held out."""
    rng = np.random.default_rng((seed, 3))
    held_out = {(int(at), plain(text)) for at, text in zip(task.answer, task.texts)}
    for at, one in enumerate(world.emoji):
        for _ in range(captions):
            text = train_caption(one, rng)
            assert (at, plain(text)) not in held_out, f"{text!r} is held out for {one.name}"
    for _ in range(drawn):
        scene = scenes.random_scene(world.things, rng)
        assert not scene.is_held_out(), scene


def rank_emoji(task, embeds):
    """Whether the right emoji is first, and whether it is among the first five; emoji that look the same are one."""
    scores = torch.stack([direction(embeds) @ direction(of_style).T for of_style in task.candidates]).amax(0)
    # One candidate for each look.
    first_of_look = torch.tensor([int((task.same == number).nonzero()[0]) for number in range(int(task.same.max()) + 1)])
    best = scores[:, first_of_look].topk(5).indices
    right = best == task.same[task.answer][:, None]
    return right[:, 0].float(), right.any(1).float()


@dataclass
class SceneTask:
    """Captions of scenes, each with its picture and 99 that are easily taken for it."""

    texts: list
    trained_template: torch.Tensor
    truth: torch.Tensor
    candidates: torch.Tensor
    """`(scenes, 100, dim)`; the first is the right one."""

    def kinds(self):
        """Which captions are of a kind."""
        everything = torch.ones_like(self.trained_template)
        return {"all": everything, "known template": self.trained_template, "new template": ~self.trained_template}


def scene_task(world: World, encoders, count, seed):
    """Held-out scenes in captions that say everything, half of them in templates that training never used. All of a
    scene's candidates are in its style."""
    rng = np.random.default_rng((seed, 2))
    texts, pictures = [], []
    for at in range(count):
        scene, style = scenes.random_scene(world.things, rng, held_out=True), choose(rng, STYLES)
        held_out = {"templates": scene_templates.HELD_OUT_TEMPLATES, "leads": 0.0} if at % 2 else {}
        told = {**held_out, "exact": True, "style": style, "tells_style": 1.0}
        texts.append(world.scene_caption(scene, rng, **told))
        for one in (scene, *scenes.variants(scene, world.things, rng, CANDIDATES - 1)):
            pictures.append(scenes.draw(one, world.sprites, style, rng))
    candidates = encoders.pictures(pictures).view(count, CANDIDATES, -1)
    return SceneTask(texts, torch.arange(count) % 2 == 0, candidates[:, 0], candidates)


def rank_scenes(task, embeds):
    """Whether the right scene is first."""
    scores = torch.einsum("sd,scd->sc", direction(embeds), direction(task.candidates))
    return (scores.argmax(1) == 0).float()


def diversity(embeds, samples):
    """The mean cosine between samples of one prompt: 1 if the seed makes no difference."""
    groups = direction(embeds).view(-1, samples, embeds.shape[-1])
    between = groups @ groups.transpose(1, 2)
    return ((between.sum((1, 2)) - samples) / (samples * (samples - 1))).mean().item()
