"""The two towers, in transformers' format, and the heads that only training has.

The activation and the attention are the ones that a CPU trains fastest.
"""

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from .drawing import CANVAS

MAX_LENGTH = 48
PATCH = 12
EMBEDDING_DIM = 192
MERGES = 6400
SCALE = 50.0
"""What cosines are multiplied with. The smaller, the farther apart have embeddings to be to be told apart, and the more
may a prior err; the larger, the more of a picture is an image's embedding free to keep, which is what a prior is for."""
WEIGHTS = {"contrastive": 1.0, "image_heads": 1.8, "text_heads": 0.3, "composition": 16.0}
OPEN = ("style", "tone", "rotation", "size", "place", "mirrored")
"""What captions mostly leave open: nothing that could be read off every text."""
HEADS = {"thing0": 6.0, "thing1": 2.0, "style": 5.0, "rotation": 3.0, "background": 0.5, "size": 0.5, "place": 0.5}
"""What counts more or less than the others among the heads. A thing is one of 1,906, and often a small part of the picture;
styles and angles are small differences; a background is most of the picture."""
THINGS = ("thing0", "thing1", "thing2")


def text_tower(tokenizer):
    """CLIP's text encoder; its width is also the embedding's, which diffusers' prior asks for."""
    return CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=EMBEDDING_DIM, intermediate_size=4 * EMBEDDING_DIM,
        projection_dim=EMBEDDING_DIM, num_hidden_layers=4, num_attention_heads=6, max_position_embeddings=MAX_LENGTH,
        hidden_act="gelu", attn_implementation="eager",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip


def image_tower():
    """CLIP's image encoder: 64 patches of 12 x 12 pixels."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, projection_dim=EMBEDDING_DIM, num_hidden_layers=4,
        num_attention_heads=4, image_size=CANVAS, patch_size=PATCH, hidden_act="gelu", attn_implementation="eager",
    ))  # fmt: skip


class Heads(nn.Module):
    """Reads off an embedding what the picture shows. Each tower has its own, so that they do not pull the towers' two
    kinds of embeddings together."""

    def __init__(self, classes):
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(EMBEDDING_DIM, count) for name, count in classes.items()})

    def forward(self, embeds, labels):
        """The mean cross entropy, and the parts it is made of."""
        parts = {name: nn.functional.cross_entropy(head(embeds), labels[name]) for name, head in self.heads.items()}
        weights = {name: HEADS.get(name, 1.0) for name in parts}
        return sum(weights[name] * parts[name] for name in parts) / sum(weights.values()), parts


class Composition(nn.Module):
    """Image embeddings as sums of vectors, one for each thing and attribute that a picture shows.

    Whatever else an embedding keeps of a picture, a prior has to know by heart, and a small one cannot. Without this loss
    such sums explain 71 % of the embeddings' variance.
    """

    def __init__(self, classes):
        super().__init__()
        others = {name: count for name, count in classes.items() if name not in THINGS}
        self.things = nn.Embedding(classes["thing0"], EMBEDDING_DIM)
        self.tables = nn.ModuleDict({name: nn.Embedding(count, EMBEDDING_DIM) for name, count in others.items()})
        # What a thing's vector is in a scene, by its place in the reading order.
        self.turned = nn.ModuleDict({name: nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM, bias=False) for name in THINGS})

    def forward(self, labels):
        """The sums, `(pictures, dim)`, for labels as `batches.labels` makes them."""
        # Scenes have no view.
        is_alone = labels["tone"] >= 0
        terms = [(is_alone, self.things(labels["thing0"]))]
        for name, turn in self.turned.items():
            there = labels[name] < self.things.num_embeddings - 1
            terms.append((there & ~is_alone, turn(self.things(labels[name]))))
        for name, table in self.tables.items():
            terms.append((labels[name] >= 0, table(labels[name].clamp_min(0))))
        return sum(there[:, None] * vectors for there, vectors in terms)

    def error(self, embeds, labels):
        """1 - the cosine of embeddings and their sums, the mean."""
        with torch.autocast("cpu", enabled=False):
            return 1 - nn.functional.cosine_similarity(embeds.float(), self(labels), dim=1).mean()


class Towers(nn.Module):
    """What training trains."""

    def __init__(self, tokenizer, classes):
        super().__init__()
        self.text = text_tower(tokenizer)
        self.image = image_tower()
        self.image_heads = Heads(classes)
        self.text_heads = Heads({name: count for name, count in classes.items() if name not in OPEN})
        self.composition = Composition(classes)

    def embed_texts(self, captions):
        """Text embeddings of one set of captions, in the order of the pictures."""
        return torch.cat([self.text(**part).text_embeds for part in captions["parts"]])[captions["place"]]

    def embed_pictures(self, pixels, patches=None):
        """Image embeddings; of so many `patches` of each picture, if not of all."""
        return embed_pictures(self.image, pixels, patches)

    def forward(self, pixels, captions, labels, patches=None):
        """`(loss, parts)`: CLIP's symmetric contrastive loss for each set of captions, and the losses of the heads."""
        image = self.embed_pictures(pixels, patches)
        texts = [self.embed_texts(texts) for texts in captions]
        target = torch.arange(len(image))
        parts = {}
        logits = [cosines(text, image) * SCALE for text in texts]
        entropy = nn.functional.cross_entropy
        parts["contrastive"] = mean((entropy(scores, target) + entropy(scores.T, target)) / 2 for scores in logits)
        parts["image_heads"], of_heads = self.image_heads(image, labels)
        parts["text_heads"] = mean(self.text_heads(text, labels)[0] for text in texts)
        parts["composition"] = self.composition.error(image, labels)
        loss = sum(weight * parts[name] for name, weight in WEIGHTS.items())
        with torch.no_grad():
            parts["accuracy"] = mean((scores.argmax(1) == target).float().mean() for scores in logits)
            parts["cosine"] = mean(scores.diagonal().mean() / SCALE for scores in logits)
            parts |= {name: of_heads[name] for name in ("thing0", "thing1", "style", "rotation")}
            parts["norm"] = image.float().norm(dim=1).mean()
        return loss, {name: value.detach() for name, value in parts.items()}


def cosines(some, others):
    """Of all pairs, in float32: in bfloat16 like pictures would seem equally near."""
    with torch.autocast("cpu", enabled=False):
        direction = lambda embeds: nn.functional.normalize(embeds.float(), dim=-1)
        return direction(some) @ direction(others).T


def embed_pictures(image, pixels, patches=None):
    """Embeddings by an image tower, step by step; of so many `patches` of each picture, if not of all."""
    tower = image.vision_model
    if patches:
        hidden = embed_patches(tower.embeddings, pixels, patches)
    else:
        hidden = tower.embeddings(pixels)
    hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(hidden)).last_hidden_state
    return image.visual_projection(tower.post_layernorm(hidden[:, 0]))


def embed_patches(embeddings, pixels, count):
    """What `embeddings` gives for the class token and `count` patches of each picture, at random, but the ones of one colour
    last: `(pictures, 1 + count, width)`."""
    side = CANVAS // PATCH
    pieces = pixels.unflatten(3, (side, PATCH)).unflatten(2, (side, PATCH))
    pieces = pieces.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    chance = torch.rand(pieces.shape[:2]) + (pieces.view(*pieces.shape[:2], 3, -1).diff(dim=3).abs().amax((2, 3)) > 0)
    chosen = chance.topk(count).indices
    pieces = pieces.gather(1, chosen[..., None].expand(-1, -1, pieces.shape[2]))
    hidden = nn.functional.linear(pieces, embeddings.patch_embedding.weight.flatten(1))
    positions = embeddings.position_embedding.weight
    first = (embeddings.class_embedding + positions[0]).expand(len(pixels), 1, -1)
    return torch.cat([first, hidden + positions[1 + chosen]], dim=1)


def mean(values):
    """Of a few tensors."""
    values = list(values)
    return sum(values) / len(values)
