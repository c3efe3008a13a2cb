"""The two towers, in transformers' format, and the heads that only training has.

The activation and the attention are the ones that a CPU trains fastest.
"""

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from .drawing import CANVAS

MAX_LENGTH = 48
EMBEDDING_DIM = 192
MERGES = 2400


def text_tower(tokenizer):
    """CLIP's text encoder; its width is also the embedding's, which diffusers' prior asks for."""
    return CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=EMBEDDING_DIM, intermediate_size=4 * EMBEDDING_DIM,
        projection_dim=EMBEDDING_DIM, num_hidden_layers=4, num_attention_heads=6, max_position_embeddings=MAX_LENGTH,
        hidden_act="gelu", attn_implementation="eager",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip


def image_tower():
    """CLIP's image encoder: 64 patches of 8 x 8 pixels."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, projection_dim=EMBEDDING_DIM, num_hidden_layers=4,
        num_attention_heads=4, image_size=CANVAS, patch_size=8, hidden_act="gelu", attn_implementation="eager",
    ))  # fmt: skip


class Heads(nn.Module):
    """Reads off an embedding what the picture shows. Each tower has its own, so that they do not pull the towers' two
    kinds of embeddings together."""

    def __init__(self, classes):
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(EMBEDDING_DIM, count) for name, count in classes.items()})

    def forward(self, embeds, labels):
        """The mean cross entropy."""
        losses = [nn.functional.cross_entropy(head(embeds), labels[name]) for name, head in self.heads.items()]
        return sum(losses) / len(losses)


class Towers(nn.Module):
    """What training trains."""

    def __init__(self, tokenizer, classes):
        super().__init__()
        self.text = text_tower(tokenizer)
        self.image = image_tower()
        self.image_heads = Heads(classes)
        self.text_heads = Heads({name: count for name, count in classes.items() if name not in ("style", "tone")})
        # A thumbnail of 32 x 32 pixels: so the embedding keeps what a decoder needs.
        self.thumbnail = nn.Sequential(
            nn.Linear(EMBEDDING_DIM, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 3 * 32 * 32)
        )
        # CLIP starts at 14. The steeper, the less the two kinds of embeddings have to point the same way to be told
        # apart, and the more of a picture the image's embedding is free to keep.
        self.logit_scale = nn.Parameter(torch.tensor(60.0).log())

    def forward(self, pixels, texts, labels):
        """`(loss, parts)`: CLIP's symmetric contrastive loss, and those of the heads."""
        image = self.image(pixel_values=pixels).image_embeds
        text = torch.cat([self.text(**part).text_embeds for part in texts])
        scale = self.logit_scale.clamp(max=torch.tensor(100.0).log()).exp()
        directions = nn.functional.normalize(image.float(), dim=-1), nn.functional.normalize(text.float(), dim=-1)
        logits = scale * directions[1] @ directions[0].T
        target = torch.arange(len(logits))
        contrastive = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
        small = nn.functional.avg_pool2d(pixels, 2)
        parts = {
            "contrastive": contrastive,
            "image_heads": self.image_heads(image, labels),
            "text_heads": self.text_heads(text, labels),
            "thumbnail": nn.functional.mse_loss(self.thumbnail(image).view_as(small).float(), small),
        }
        with torch.no_grad():
            measures = {
                "accuracy": (logits.argmax(1) == target).float().mean(),
                "cosine": (directions[0] * directions[1]).sum(1).mean(),
                "norm": image.float().norm(dim=1).mean(),
                "scale": scale,
            }
        loss = contrastive + 0.4 * parts["image_heads"] + 0.2 * parts["text_heads"] + 2 * parts["thumbnail"]
        return loss, {name: value.detach() for name, value in {**parts, **measures}.items()}
