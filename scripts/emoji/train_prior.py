"""Trains the prior on the embeddings of the frozen CLIP. It resumes where it was stopped.

Only tokens that matter are run. The model is causal and only the query is read, so a caption's text can serve several
denoising problems at once: each has a timestep, noisy embedding and query of its own, which see the text and each other
but not those of the other problems. diffusers' forward on each alone gives the same.
"""

import numpy as np
import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from .batches import encode, normalize
from .clip import EMBEDDING_DIM, MAX_LENGTH
from .sources import cache
from .trained_clip import load_clip, some_embeds, statistics
from .training import Run, arguments, load_batches, optimizer

SINGLES, GROUPS, GROUP_SIZE = 128, 64, 2
PROBLEMS = 6
"""Denoising problems a caption."""
DROPPED = 0.1
"""The share of captions that are emptied, for guidance."""
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


@torch.no_grad()
def embed(towers, batch, empty, rng):
    """What the prior learns from, each picture once with every caption: image embeddings, text embeddings, text states,
    mask; some captions emptied."""
    with torch.autocast("cpu", torch.bfloat16):
        images = towers.image(pixel_values=normalize(batch["pictures"])).image_embeds.float()
    found = [embed_texts(towers, captions, empty, rng) for captions in batch["captions"]]
    longest = max(mask.shape[1] for _, _, mask in found)
    widen = lambda tensor: nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, longest - tensor.shape[1]))
    embeds, states, masks = zip(*found)
    return images.repeat(len(found), 1), torch.cat(embeds), torch.cat([*map(widen, states)]), torch.cat([*map(widen, masks)])


def embed_texts(towers, captions, empty, rng):
    """Text embeddings, states and mask of one set of captions."""
    longest = max(part["input_ids"].shape[1] for part in captions["parts"])
    embeds, states, masks = [], [], []
    for part in captions["parts"]:
        ids, mask = part["input_ids"].clone(), part["attention_mask"].clone()
        dropped = torch.from_numpy(rng.random(len(ids)) < DROPPED)
        for tensor, of_empty in ((ids, empty["input_ids"]), (mask, empty["attention_mask"])):
            tensor[dropped] = nn.functional.pad(of_empty, (0, tensor.shape[1] - of_empty.shape[1]))
        with torch.autocast("cpu", torch.bfloat16):
            output = towers.text(input_ids=ids, attention_mask=mask)
        embeds.append(output.text_embeds.float())
        states.append(nn.functional.pad(output.last_hidden_state.float(), (0, 0, 0, longest - ids.shape[1])))
        masks.append(nn.functional.pad(mask, (0, longest - ids.shape[1])).float())
    return tuple(torch.cat(parts)[captions["place"]] for parts in (embeds, states, masks))


def main():
    """Trains."""
    options = arguments(__doc__, 1800)
    world, tokenizer, towers = load_clip()
    prior, scheduler = make_prior(), make_scheduler()
    run = Run(cache() / "run" / "prior", prior, optimizer(prior, 0.02), options.steps, options.rate)
    if run.step == 0:
        prior.clip_mean.data, prior.clip_std.data = statistics(some_embeds(world, towers, tokenizer))
    prior.clip_mean.requires_grad_(False), prior.clip_std.requires_grad_(False)
    denoiser = Denoiser(prior)
    empty = encode(tokenizer, [""])
    for batch in load_batches(world, tokenizer, options.seed + 2, run, SINGLES, GROUPS, GROUP_SIZE):
        rng = np.random.default_rng((options.seed, run.step))
        generator = torch.Generator().manual_seed(options.seed * 2**32 + run.step)
        images, embeds, states, mask = embed(towers, batch, empty, rng)
        clean = ((images - prior.clip_mean) / prior.clip_std)[:, None].expand(-1, PROBLEMS, -1)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(1000, clean.shape[:2], generator=generator)
        noisy = scheduler.add_noise(clean.flatten(0, 1), noise.flatten(0, 1), timesteps.flatten()).view_as(clean)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = denoiser(noisy, timesteps, embeds, states, mask)
        error = (predicted.float() - clean).square().mean(2)
        parts = {f"loss_{name}": error[(timesteps >= low) & (timesteps < low + 250)].mean()
                 for name, low in (("0", 0), ("250", 250), ("500", 500), ("750", 750))}  # fmt: skip
        run.backward(error.mean(), {"loss": error.mean().detach(), **{k: v.detach() for k, v in parts.items()}})


if __name__ == "__main__":
    main()
