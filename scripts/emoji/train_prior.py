"""Trains the prior, and the text tower on, on the embeddings of the locked image tower. It resumes where it was stopped.

An image embedding that no longer changes is made once, and captions cost a fraction of what pictures do: the text tower sees
many more of them than beside the image tower, and learns to say what the prior needs to know (a locked image tower as in LiT,
arXiv 2111.07991). It goes on being trained as CLIP's is.

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
from .clip import EMBEDDING_DIM, MAX_LENGTH, SCALE, cosines
from .sources import cache
from .train_clip import retrieval
from .trained_clip import load_clip, some_embeds, statistics
from .training import Optimizer, Run, arguments, load_batches

SINGLES, GROUPS, GROUP_SIZE, CAPTIONS = 128, 22, 8, 3
EPOCH = 500
"""Batches after which the pictures come again, with new captions."""
PROBLEMS = 2
"""Denoising problems a caption."""
CONTRAST = 0.5
"""The weight of telling pictures apart by the predicted embeddings, beside their distance from the true ones."""
TEXT = 0.3
"""The weight of telling pictures apart by the text embeddings alone, which is CLIP's loss."""
DROPPED = 0.1
"""The share of captions that are emptied, for guidance."""
DATA_SCALE = 0.0005
"""How large embeddings are beside the noise. So small, all of their differences are under the noise up to the last of any
number of steps: the embedding becomes the mean of what the caption may mean, which a cosine asks for. At 0.05, 25 steps found
fewer of the right pictures than one (69 against 78 %), 100 still fewer (62 %): what a step got wrong, the ones after it took
for what there is to see. At 0.004 the last step still does, and guidance draws away from what an empty caption sees in it."""
GUIDANCE = 4.0
"""The guidance scale at which embeddings come out in their size: the one that is used unless another is asked for."""
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
    """The prior with several problems a caption, and the text tower."""

    def __init__(self, prior, text):
        super().__init__()
        self.prior, self.text = prior, text
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
    """Which captions the prior sees emptied: that is what the last three are of."""
    texts: torch.Tensor
    """Text embeddings of all captions as they are."""
    embeds: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor


def encode_captions(text, batch, empty, rng):
    """The batch's captions in parts, encoded, and which of them the prior is to see emptied."""
    nothing = text(**empty)
    for captions in batch["captions"]:
        order = captions["place"].argsort()
        for part, pictures in zip(captions["parts"], order.split([len(part["input_ids"]) for part in captions["parts"]])):
            output, mask = text(**part), part["attention_mask"]
            dropped = torch.from_numpy(rng.random(len(mask)) < DROPPED)[:, None]
            longer = mask.shape[1] - empty["attention_mask"].shape[1]
            empty_states = nn.functional.pad(nothing.last_hidden_state, (0, 0, 0, longer))
            empty_mask = nn.functional.pad(empty["attention_mask"], (0, longer))
            embeds = torch.where(dropped, nothing.text_embeds, output.text_embeds)
            states = torch.where(dropped[..., None], empty_states, output.last_hidden_state)
            mask = torch.where(dropped, empty_mask, mask).float()
            yield Part(pictures, dropped[:, 0], output.text_embeds, embeds, states, mask)


class EpochImages:
    """Image embeddings of an epoch's batches, each made when its pictures come first."""

    def __init__(self, towers, epoch):
        self.towers, self.epoch = towers, epoch
        self.embeds = {}

    @torch.no_grad()
    def of(self, step, batch):
        """Those of the batch of this step."""
        at = step % self.epoch
        if len(batch["pictures"]):
            with torch.autocast("cpu", torch.bfloat16):
                self.embeds[at] = self.towers.image(pixel_values=normalize(batch["pictures"])).image_embeds.float()
        return self.embeds[at]


def random_timesteps(shape, generator):
    """Half of them under 250: above, there is little in a noisy embedding that its caption does not tell."""
    return (1000 * torch.rand(shape, generator=generator).square()).long()


def denoise(denoiser, scheduler, images, part, generator, problems=PROBLEMS):
    """`(timesteps, predicted, clean)` of every denoising problem of a part: `(captions, problems)`, and embeddings in
    the prior's scale."""
    prior = denoiser.prior
    clean = ((images[part.pictures] - prior.clip_mean) / prior.clip_std)[:, None].expand(-1, problems, -1)
    scaled = DATA_SCALE * clean
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = random_timesteps(clean.shape[:2], generator)
    noisy = scheduler.add_noise(scaled.flatten(0, 1), noise.flatten(0, 1), timesteps.flatten()).view_as(clean)
    predicted = denoiser(noisy, timesteps, part.embeds, part.states, part.mask)
    return timesteps, predicted.float(), clean


def contrast(embeds, pictures, images, shown, bank):
    """How well the batch's pictures, and earlier ones, are told apart by embeddings made from captions: the cross entropy of
    each, from `(captions, dim)` and the picture of each."""
    scores = torch.cat([cosines(embeds, images), bank.cosines(embeds, shown[pictures])], 1) * SCALE
    return nn.functional.cross_entropy(scores, pictures, reduction="none")


def losses(denoiser, scheduler, images, parts, shown, bank, generator):
    """`(loss, what it is made of)` of a batch."""
    found, prior = [], denoiser.prior
    for part in parts:
        timesteps, predicted, clean = denoise(denoiser, scheduler, images, part, generator)
        embeds = (predicted * prior.clip_std + prior.clip_mean)[~part.dropped].flatten(0, 1)
        of_prior = contrast(embeds, part.pictures[~part.dropped].repeat_interleave(PROBLEMS), images, shown, bank)
        of_text = contrast(part.texts, part.pictures, images, shown, bank)
        found.append(((predicted - clean).square().mean(2).flatten(), timesteps.flatten(), of_prior, of_text))
    error, timesteps, of_prior, of_text = (torch.cat(values) for values in zip(*found))
    ranges = {f"error_{low}": error[(timesteps >= low) & (timesteps < low + 250)].mean() for low in range(0, 1000, 250)}
    loss = error.mean() + CONTRAST * of_prior.mean() + TEXT * of_text.mean()
    return loss, {"loss": loss, "contrast": of_prior.mean(), "text": of_text.mean(), **ranges}


@torch.no_grad()
def to_data_scale(prior):
    """A trained prior predicts embeddings of scale 1, which is easy to learn; diffusers' sampler takes those it predicts to
    be of the scale of those that the noise was added to. Guidance draws the prediction away from that of an empty caption,
    which is nearly 0, the mean: by `GUIDANCE` from as many times nearer to it, it arrives where training has aimed."""
    # Half of it before the last matrix and half in it: float16 has few digits for numbers as small as the product.
    scale = DATA_SCALE / GUIDANCE
    for weight in (*prior.norm_out.parameters(), prior.proj_to_clip_embeddings.weight):
        weight *= scale**0.5
    prior.proj_to_clip_embeddings.bias *= scale
    prior.clip_std /= DATA_SCALE


def main():
    """Trains."""
    options = arguments(__doc__, 1500, rate=2e-3)
    world, tokenizer, towers = load_clip()
    prior, scheduler = make_prior(), make_scheduler()
    prior.clip_mean.requires_grad_(False), prior.clip_std.requires_grad_(False)
    denoiser, bank = Denoiser(prior, towers.text.requires_grad_(True)).train(), Bank(EMBEDDING_DIM)
    run = Run(cache() / "run" / "prior", denoiser, Optimizer(denoiser, 0.02), options.steps, options.rate)
    if run.step == 0:
        prior.clip_mean.data, prior.clip_std.data = statistics(some_embeds(world, towers, tokenizer))
    empty, images = encode(tokenizer, [""]), EpochImages(towers, EPOCH)
    sizes = (SINGLES, GROUPS, GROUP_SIZE, CAPTIONS)
    for batch in load_batches(world, tokenizer, options.seed + 2, run, *sizes, epoch=EPOCH):
        rng = np.random.default_rng((options.seed, run.step))
        generator = torch.Generator().manual_seed(options.seed * 2**32 + run.step)
        embeds, shown = images.of(run.step, batch), what_is_shown(batch)
        with torch.autocast("cpu", torch.bfloat16):
            parts = encode_captions(towers.text, batch, empty, rng)
            loss, made_of = losses(denoiser, scheduler, embeds, parts, shown, bank, generator)
        bank.add(embeds, shown)
        run.backward(loss, {name: value.detach() for name, value in made_of.items()})
        if run.step % 500 == 0 or run.step == options.steps:
            run.write(**retrieval(world, towers, tokenizer))


if __name__ == "__main__":
    main()
