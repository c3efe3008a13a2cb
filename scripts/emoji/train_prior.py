"""Trains the prior on the embeddings of the frozen CLIP. It resumes where it was stopped.

Only tokens that matter are run. The model is causal and only the query is read, so a caption's text can serve several
denoising problems at once: each has a timestep, noisy embedding and query of its own, which see the text and each other
but not those of the other problems. diffusers' forward on each alone gives the same.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from .bank import Bank, what_is_shown
from .batches import encode, normalize
from .clip import EMBEDDING_DIM, MAX_LENGTH, SCALE
from .sources import cache
from .trained_clip import load_clip, some_embeds, statistics
from .training import Run, arguments, load_batches, optimizer

SINGLES, GROUPS, GROUP_SIZE, CAPTIONS = 160, 16, 8, 3
PROBLEMS = 3
"""Denoising problems a caption."""
CONTRAST = 0.1
"""The weight of telling pictures apart by the predicted embeddings, beside their distance from the true ones."""
DROPPED = 0.1
"""The share of captions that are emptied, for guidance."""
DATA_SCALE = 0.1
"""How large embeddings are beside the noise. So small, their finest differences are under the noise up to the last of 25
steps: there the embedding becomes the mean of what the caption may mean, and a seed decides on the coarse ones alone. At
1 it would also decide on the fine ones by which like things are told apart, and often against the caption."""
BLOCKED = -10000.0


def make_prior():
    """A prior as wide as CLIP's embedding."""
    return PriorTransformer(
        num_attention_heads=6, attention_head_dim=32, num_layers=5, embedding_dim=EMBEDDING_DIM,
        num_embeddings=MAX_LENGTH, additional_embeddings=4, dropout=0.0,
    )  # fmt: skip


def make_scheduler():
    """Kandinsky's: x_0 is predicted, on the squared cosine schedule."""
    return UnCLIPScheduler(
        variance_type="fixed_small_log", num_train_timesteps=1000, clip_sample=True, clip_sample_range=5.0,
        prediction_type="sample",
    )  # fmt: skip


class Denoiser(nn.Module):
    """The prior with several problems a caption."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior
        prior.set_attn_processor(AttnProcessor())

    def forward(self, noisy, timesteps, embeds, states, mask):
        """The predicted x_0, `(captions, problems, dim)`, from `(captions, problems, dim)`, `(captions, problems)`,
        `(captions, dim)`, `(captions, tokens, dim)` and `(captions, tokens)`."""
        prior = self.prior
        captions, problems, _ = noisy.shape
        length = states.shape[1]
        times = prior.time_embedding(prior.time_proj(timesteps.flatten())).view(captions, problems, -1)
        query = prior.prd_embedding.expand(captions, problems, -1)
        own = torch.stack([times, prior.proj_in(noisy), query], dim=2).flatten(1, 2)
        text = [prior.encoder_hidden_states_proj(states), prior.embedding_proj(embeds)[:, None]]
        positions = prior.positional_embedding
        tail = positions[:, MAX_LENGTH + 1 :].repeat(1, problems, 1)
        places = torch.cat([positions[:, :length], positions[:, MAX_LENGTH : MAX_LENGTH + 1], tail], dim=1)
        hidden = torch.cat([*text, own], dim=1) + places
        bias = self.bias(mask, problems).repeat_interleave(prior.config.num_attention_heads, dim=0)
        for block in prior.transformer_blocks:
            hidden = block(hidden, attention_mask=bias)
        hidden = prior.norm_out(hidden[:, length + 1 :].view(captions, problems, 3, -1)[:, :, 2])
        return prior.proj_to_clip_embeddings(hidden)

    @staticmethod
    def bias(mask, problems):
        """Added to the attention scores: who may not see whom."""
        prefix = mask.shape[1] + 1
        own = torch.block_diag(*[torch.ones(3, 3)] * problems)
        allowed = torch.ones(prefix + 3 * problems, prefix + 3 * problems).tril()
        allowed[prefix:, prefix:] *= own
        valid = torch.cat([mask, mask.new_ones(len(mask), 1 + 3 * problems)], dim=1)
        return (1 - allowed[None] * valid[:, None]) * BLOCKED


@dataclass
class Part:
    """Captions of about one length, and their pictures: what the prior learns from."""

    pictures: torch.Tensor
    """Which of the batch's."""
    dropped: torch.Tensor
    """Which captions are emptied."""
    embeds: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor


@torch.no_grad()
def embed_captions(towers, batch, empty, rng):
    """The batch's captions in parts, some of them emptied."""
    for captions in batch["captions"]:
        order = captions["place"].argsort()
        for part, pictures in zip(captions["parts"], order.split([len(part["input_ids"]) for part in captions["parts"]])):
            ids, mask = part["input_ids"].clone(), part["attention_mask"].clone()
            dropped = torch.from_numpy(rng.random(len(ids)) < DROPPED)
            for tensor, of_empty in ((ids, empty["input_ids"]), (mask, empty["attention_mask"])):
                tensor[dropped] = nn.functional.pad(of_empty, (0, tensor.shape[1] - of_empty.shape[1]))
            with torch.autocast("cpu", torch.bfloat16):
                output = towers.text(input_ids=ids, attention_mask=mask)
            yield Part(pictures, dropped, output.text_embeds.float(), output.last_hidden_state.float(), mask.float())


def random_timesteps(shape, generator):
    """Half of them under 250: above, there is little in a noisy embedding that its caption does not tell."""
    return (1000 * torch.rand(shape, generator=generator).square()).long()


def denoise(denoiser, scheduler, images, part, generator):
    """`(timesteps, predicted, clean)` of every denoising problem of a part: `(captions, problems)`, and embeddings in
    the prior's scale."""
    prior = denoiser.prior
    clean = ((images[part.pictures] - prior.clip_mean) / prior.clip_std)[:, None].expand(-1, PROBLEMS, -1)
    scaled = DATA_SCALE * clean
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = random_timesteps(clean.shape[:2], generator)
    noisy = scheduler.add_noise(scaled.flatten(0, 1), noise.flatten(0, 1), timesteps.flatten()).view_as(clean)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = denoiser(noisy, timesteps, part.embeds, part.states, part.mask)
    return timesteps, predicted.float(), clean


def contrast(prior, predicted, part, images, shown, bank):
    """How well the batch's pictures, and earlier ones, are told apart by the predicted embeddings: the cross entropy of
    every caption that is there, `(captions, problems)`."""
    direction = nn.functional.normalize(predicted * prior.clip_std + prior.clip_mean, dim=-1)[~part.dropped]
    pictures = part.pictures[~part.dropped]
    scores = SCALE * direction @ nn.functional.normalize(images, dim=-1).T
    scores = torch.cat([scores, bank.scores(direction, shown[pictures])], 2).flatten(0, 1)
    return nn.functional.cross_entropy(scores, pictures.repeat_interleave(PROBLEMS), reduction="none").view(-1, PROBLEMS)


def losses(denoiser, scheduler, images, parts, shown, bank, generator):
    """`(loss, what it is made of)` of a batch."""
    found = []
    for part in parts:
        timesteps, predicted, clean = denoise(denoiser, scheduler, images, part, generator)
        contrasts = contrast(denoiser.prior, predicted, part, images, shown, bank)
        found.append(((predicted - clean).square().mean(2).flatten(), timesteps.flatten(), contrasts.flatten()))
    error, timesteps, contrasts = (torch.cat(values) for values in zip(*found))
    ranges = {f"error_{low}": error[(timesteps >= low) & (timesteps < low + 250)].mean() for low in range(0, 1000, 250)}
    loss = error.mean() + CONTRAST * contrasts.mean()
    return loss, {"loss": loss, "contrast": contrasts.mean(), **ranges}


@torch.no_grad()
def to_data_scale(prior):
    """A trained prior predicts embeddings of scale 1, which is easy to learn; diffusers' sampler takes those it predicts to
    be of the scale of those that the noise was added to."""
    for weight in (prior.proj_to_clip_embeddings.weight, prior.proj_to_clip_embeddings.bias):
        weight *= DATA_SCALE
    prior.clip_std /= DATA_SCALE


def main():
    """Trains."""
    options = arguments(__doc__, 4000, rate=2e-3)
    world, tokenizer, towers = load_clip()
    prior, scheduler = make_prior(), make_scheduler()
    run = Run(cache() / "run" / "prior", prior, optimizer(prior, 0.02), options.steps, options.rate)
    if run.step == 0:
        prior.clip_mean.data, prior.clip_std.data = statistics(some_embeds(world, towers, tokenizer))
    prior.clip_mean.requires_grad_(False), prior.clip_std.requires_grad_(False)
    denoiser, bank = Denoiser(prior), Bank(EMBEDDING_DIM)
    empty = encode(tokenizer, [""])
    sizes = (SINGLES, GROUPS, GROUP_SIZE, CAPTIONS)
    for batch in load_batches(world, tokenizer, options.seed + 2, run, *sizes):
        rng = np.random.default_rng((options.seed, run.step))
        generator = torch.Generator().manual_seed(options.seed * 2**32 + run.step)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            images = towers.image(pixel_values=normalize(batch["pictures"])).image_embeds.float()
        parts, shown = embed_captions(towers, batch, empty, rng), what_is_shown(batch)
        loss, made_of = losses(denoiser, scheduler, images, parts, shown, bank, generator)
        bank.add(nn.functional.normalize(images, dim=-1), shown)
        run.backward(loss, {name: value.detach() for name, value in made_of.items()})


if __name__ == "__main__":
    main()
