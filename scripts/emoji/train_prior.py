"""Trains the prior, and the text tower on, on the embeddings of the locked image tower. It resumes where it was stopped.

An image embedding that no longer changes is made once, and captions cost a fraction of what pictures do: the text tower sees
many more of them than beside the image tower, and learns to say what the prior needs to know (a locked image tower as in LiT,
arXiv 2111.07991). It goes on being trained as CLIP's is, and learns from the lexicon which emoji other words may mean.

The prior's loss is the squared error of x_0 alone, as in the paper: its minimum is the conditional mean, which a chain of
steps needs to draw from the distribution. Contrast is the text tower's.

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

from .bank import Bank
from .batches import encode
from .clip import EMBEDDING_DIM, MAX_LENGTH, SCALE, cosines
from .packages import cache
from .pool import SINGLES, SIZE, Pool, load_captions
from .precision import reduced
from .train_clip import retrieval
from .trained_clip import load_clip
from .training import Average, Optimizer, Run, arguments

PROBLEMS, PARTS = 4, 2
"""Denoising problems a caption, and batches that one of the pool makes."""
TEXT = 0.3
"""The weight of telling pictures apart by the text embeddings, which is CLIP's loss."""
WORDS = 0.3
"""The weight of what the lexicon says, in the same measure."""
NAMES = 0.5
"""The weight of telling emoji apart by the text embeddings of captions of one."""
DROPPED = 0.1
"""The share of captions that are emptied, for guidance."""
LEAST_WEIGHT, LARGEST_WEIGHT = 0.05, 5.0
"""Of the error at one timestep: between them it is the signal-to-noise ratio (arXiv 2303.09556)."""
BLOCKED = -10000.0


def make_prior():
    """A prior wider than CLIP's embedding, so that a token has room for more than the noisy embedding: beside five layers of
    192, a tenth smaller in all, the error was 4 % smaller after 700 steps."""
    return PriorTransformer(
        num_attention_heads=8, attention_head_dim=32, num_layers=3, embedding_dim=EMBEDDING_DIM,
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
    """Captions of about one length: what the prior learns from."""

    place: torch.Tensor
    """Of each caption in its set."""
    dropped: torch.Tensor
    """Which captions the prior sees emptied: that is what the last three are of."""
    texts: torch.Tensor
    """Text embeddings of all captions as they are."""
    embeds: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor


def encode_captions(text, captions, empty, rng):
    """A set of captions in parts, encoded, and which of them the prior is to see emptied."""
    nothing = text(**empty)
    order = captions["place"].argsort()
    for part, place in zip(captions["parts"], order.split([len(part["input_ids"]) for part in captions["parts"]])):
        output, mask = text(**part), part["attention_mask"]
        dropped = torch.from_numpy(rng.random(len(mask)) < DROPPED)[:, None]
        longer = mask.shape[1] - empty["attention_mask"].shape[1]
        empty_states = nn.functional.pad(nothing.last_hidden_state, (0, 0, 0, longer))
        empty_mask = nn.functional.pad(empty["attention_mask"], (0, longer))
        embeds = torch.where(dropped, nothing.text_embeds, output.text_embeds)
        states = torch.where(dropped[..., None], empty_states, output.last_hidden_state)
        mask = torch.where(dropped, empty_mask, mask).float()
        yield Part(place, dropped[:, 0], output.text_embeds, embeds, states, mask)


def denoise(denoiser, scheduler, images, part, generator, problems):
    """`(timesteps, squared error)` of every denoising problem of a part, from the image embeddings of its captions."""
    prior = denoiser.prior
    clean = ((images - prior.clip_mean) / prior.clip_std)[:, None].expand(-1, problems, -1)
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, clean.shape[:2], generator=generator)
    noisy = scheduler.add_noise(clean.flatten(0, 1), noise.flatten(0, 1), timesteps.flatten()).view_as(clean)
    predicted = denoiser(noisy, timesteps, part.embeds, part.states, part.mask)
    return timesteps, (predicted.float() - clean).square().mean(2)


def weights(scheduler, timesteps):
    """Of the squared errors of x_0."""
    signal = scheduler.alphas_cumprod[timesteps]
    return (signal / (1 - signal)).clamp(LEAST_WEIGHT, LARGEST_WEIGHT)


def of_prior(denoiser, scheduler, parts, images, generator, problems=PROBLEMS):
    """`(loss, mean errors by quarters of the timesteps)` of parts whose captions have these image embeddings, in their order."""
    found = [denoise(denoiser, scheduler, images[part.place], part, generator, problems) for part in parts]
    timesteps, error = (torch.cat([values[at].flatten() for values in found]) for at in (0, 1))
    quarter = scheduler.config.num_train_timesteps // 4
    ranges = {f"error_{at}": error[timesteps // quarter == at].mean().detach() for at in range(4)}
    return (error * weights(scheduler, timesteps)).mean(), ranges


def of_text(parts, rows, pool, bank):
    """CLIP's loss of captions with these rows of the pool, against the batch's pictures and earlier ones."""
    images, shown = pool.embeds[rows], pool.shown[rows]
    texts = torch.cat([part.texts for part in parts])
    place = torch.cat([part.place for part in parts])
    here = cosines(texts, images)
    same = (shown[place][:, None] == shown[None]).all(2)
    same[torch.arange(len(place)), place] = False
    scores = torch.cat([here.masked_fill(same, -torch.inf), bank.cosines(texts, shown[place])], 1) * SCALE
    return nn.functional.cross_entropy(scores, place)


def of_names(parts, rows, pool, means):
    """The cross entropy of the emoji nearest to captions of one emoji: by the means of all their pictures, as the index has
    them."""
    rows = rows[torch.cat([part.place for part in parts])]
    single = rows % SIZE < SINGLES
    found = cosines(torch.cat([part.texts for part in parts])[single], means) * SCALE
    return nn.functional.cross_entropy(found, pool.labels["thing0"][rows[single]])


def of_words(parts, batch, means):
    """How far the emoji nearest to the lexicon's words are from those that they may mean: a Kullback-Leibler divergence."""
    texts = torch.cat([part.texts for part in parts])
    place = torch.cat([part.place for part in parts])
    found = (cosines(texts, means) * SCALE).log_softmax(1).gather(1, batch["meant"][place])
    wanted = batch["probability"][place]
    return (wanted * (wanted.clamp_min(1e-6).log() - found)).sum(1).mean()


def statistics(images):
    """The prior's scale: with it every number of an image embedding has mean 0 and variance 1, `(1, dim)` each."""
    return images.mean(0, keepdim=True), images.std(0, keepdim=True)


def main():
    """Trains."""
    options = arguments(__doc__, 3000, rate=1.6e-3)
    world, tokenizer, towers = load_clip()
    pool, scheduler = Pool(world, towers, tokenizer), make_scheduler()
    denoiser, bank = Denoiser(make_prior(), towers.text.requires_grad_(True)).train(), Bank(EMBEDDING_DIM)
    denoiser.prior.clip_mean.requires_grad_(False), denoiser.prior.clip_std.requires_grad_(False)
    denoiser.prior.clip_mean.data, denoiser.prior.clip_std.data = statistics(pool.embeds)
    run = Run(
        cache() / "run" / "prior", denoiser, Optimizer(denoiser, 0.02), options.steps, options.rate, Average(denoiser, 0.998)
    )
    empty, means = encode(tokenizer, [""]), pool.emoji_means()
    for batch in load_captions(world, pool, tokenizer, options.seed + 2, run, PARTS):
        rng = np.random.default_rng((options.seed, run.step))
        generator = torch.Generator().manual_seed(options.seed * 2**32 + run.step)
        with reduced():
            captions = list(encode_captions(towers.text, batch["captions"], empty, rng))
            words = list(encode_captions(towers.text, batch["words"], empty, rng))
            error, ranges = of_prior(denoiser, scheduler, captions, pool.embeds[batch["rows"]], generator)
            of_others, _ = of_prior(denoiser, scheduler, words, pool.embeds[batch["word_rows"]], generator, 2)
        text, meaning = of_text(captions, batch["rows"], pool, bank), of_words(words, batch, means)
        names = of_names(captions, batch["rows"], pool, means)
        bank.add(pool.embeds[batch["rows"]], pool.shown[batch["rows"]])
        loss = error + 0.2 * of_others + TEXT * text + WORDS * meaning + NAMES * names
        made_of = {"error": error, "words_error": of_others, "text": text, "words": meaning, "names": names}
        run.backward(loss, {name: value.detach() for name, value in made_of.items()} | ranges)
        if run.step % 250 == 0 or run.step == options.steps:
            run.write(**retrieval(world, towers, tokenizer))


if __name__ == "__main__":
    main()
