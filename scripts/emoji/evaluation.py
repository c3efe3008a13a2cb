"""The tasks that the model is judged by: the right emoji among all, the right scene among a hundred hard ones."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from . import scene_templates, scenes
from .batches import World, encode, normalize, single
from .drawing import Placed
from .pictures import STYLES
from .wordings import choose, held_out_wordings, known_keywords, plain, train_caption

CANDIDATES = 100
VIEWS = 24
"""Pictures of an emoji in random views, beside the plain ones."""
NAMING = ("template", "order", "keywords")
"""The kinds of wordings that name their emoji and no other."""


def direction(embeds):
    """Embeddings of length 1."""
    return torch.nn.functional.normalize(embeds.float(), dim=-1)


def cosine(embeds, truth):
    """Row by row."""
    return (direction(embeds) * direction(truth)).sum(-1)


class Encoders:
    """CLIP's two encoders and the index of emoji, as they were saved, in float32."""

    def __init__(self, folder):
        self.index = load_file(folder.parent / "index" / "index.safetensors")["mean"].float()
        """The mean direction of each emoji's pictures, `(emoji, dim)`."""
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
    """Texts that name an emoji, and all emoji."""

    texts: list
    kind: np.ndarray
    answer: torch.Tensor
    """The place of the right emoji among the candidates."""
    candidates: torch.Tensor
    """The mean direction of each emoji's pictures, `(emoji, dim)`."""
    same: torch.Tensor
    """For each emoji a number that those with the same pictures share."""
    truth: list
    """Directions of many pictures of each emoji, `(pictures, dim)` each."""

    def kinds(self):
        """Which texts are of a kind; `naming` is all that count."""
        found = {kind: self.kind == kind for kind in (*NAMING, "vague", "unseen", "new word")}
        found["unseen, all"] = np.isin(self.kind, ("unseen", "new word"))
        return {name: torch.from_numpy(mask) for name, mask in {"naming": np.isin(self.kind, NAMING), **found}.items()}

    def subset(self, chosen):
        """Some of the texts."""
        texts = [self.texts[at] for at in chosen]
        return replace(self, texts=texts, kind=self.kind[chosen], answer=self.answer[chosen])

    def nearest_truth(self, embeds):
        """The cosine of each embedding to the nearest true picture of its text's emoji."""
        rows = direction(embeds)
        return torch.stack([(self.truth[at] @ row).max() for row, at in zip(rows, self.answer.tolist())])


def emoji_task(world: World, encoders, seed):
    """All held-out wordings."""
    rng = np.random.default_rng((seed, 1))
    wordings = [wording for one in world.emoji for wording in held_out_wordings(one, world.emoji, rng)]
    # A keyword that no other emoji has either is a word that training never saw.
    of_names = lambda one: {word for name in one.names for word in (name, *name.lower().split())}
    known = {word for one in world.emoji for word in (*known_keywords(one), *of_names(one))}
    kind = ["new word" if one.kind == "unseen" and one.text not in known else one.kind for one in wordings]
    drawn = [(at, style) for at, one in enumerate(world.emoji) for style in STYLES if world.sprites.has(one.code, style)]
    plain = [world.sprites.draw((255.0,) * 3, [Placed(world.emoji[at].code, 84, 48, 48)], style) for at, style in drawn]
    looks = {}
    for (at, _), picture in zip(drawn, plain):
        looks[at] = looks.get(at, b"") + picture.tobytes()
    numbers = {look: number for number, look in enumerate(dict.fromkeys(looks.values()))}
    owner, directions, truth = torch.tensor([at for at, _ in drawn]), direction(encoders.pictures(plain)), []
    views = [single(world, one, rng, rng, 0) for one in world.emoji for _ in range(VIEWS)]
    others = direction(encoders.pictures([view.draw() for view in views])).view(len(world.emoji), VIEWS, -1)
    for at in range(len(world.emoji)):
        truth.append(torch.cat([directions[owner == at], others[at]]))
    return EmojiTask(
        [wording.text for wording in wordings], np.array(kind), torch.tensor([world.index[one.code] for one in wordings]),
        encoders.index, torch.tensor([numbers[looks[at]] for at in range(len(world.emoji))]), truth,
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
    near = direction(embeds) @ task.candidates.T
    looks = task.same.expand(len(near), -1)
    best = torch.full((len(near), int(task.same.max()) + 1), -2.0).scatter_reduce_(1, looks, near, "amax").topk(5).indices
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
        scene, style = scenes.random_scene(world.things, rng, held_out=True), choose(rng, ("noto", "twemoji"))
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
