"""The autoregressive prior of the unCLIP paper (arXiv 2204.06125, section 2.2), which has no published code or weights.

As in the paper: the image embedding goes through PCA to its leading dimensions, in the order of their eigenvalues; each is
quantized into buckets; a transformer with a causal mask predicts the buckets one after the other. Its sequence is

    [text states | text embedding | dot product | bucket 1 | bucket 2 | … | bucket K - 1]

and each token from the text embedding on predicts the next one: the text embedding's the (quantized) dot product of text and
image embedding, the dot product's bucket 1, and so on. The dot product is drawn from the top half of its distribution, which
asks for an image that the caption describes well. Guidance is by dropped captions.

What the paper leaves open is chosen so:

- The distribution of the dot product, which is that of CLIP's unit vectors, is the model's own given the caption. The share
  of it that is left out is `dot_product_quantile`: ½, the best that the paper found.
- Buckets are shared by all dimensions, which are scaled to unit variance. They lie as the quantiles of a normal distribution
  √3 times as wide as the data's: so many levels cannot come nearer to normal data (Panter and Dite, 1951).
- Where the caption is dropped, so is the dot product: a token of its own, UNKNOWN, stands in its place. Guidance works on the
  logits of buckets, and not on the dot product.
- One normal a token decides it, by the inverse of the cumulative distribution in float64: a row's normals come from
  `torch.randn((1, K + 1), generator=torch.Generator().manual_seed(seed))`, the first for the dot product.

src/nn/prior/autoregressive.rs and src/pipeline/autoregressive.rs compute the same.
"""

import json
import math
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import nn

CLASS = "AutoregressivePrior"
WEIGHTS = "diffusion_pytorch_model.safetensors"
EXACT = ("pca.", "bucket_values", "dot_product_values")
"""What is saved in float32: the code, of which rounding would be seen in every embedding."""


@dataclass
class Config:
    """`config.json`. Names that diffusers' PriorTransformer has too mean the same."""

    num_attention_heads: int = 6
    attention_head_dim: int = 32
    num_layers: int = 6
    embedding_dim: int = 192
    """Width of the image embedding."""
    embedding_proj_dim: int = 192
    """Width of the text embedding."""
    encoder_hid_dim: int = 192
    """Width of the text states."""
    num_embeddings: int = 48
    """The most text states."""
    num_tokens: int = 96
    """K: leading dimensions of the image embedding."""
    num_buckets: int = 128
    num_dot_product_buckets: int = 64
    dot_product_quantile: float = 0.5

    @property
    def width(self):
        """Of the transformer."""
        return self.num_attention_heads * self.attention_head_dim


class GELU(nn.Module):
    """A linear layer and GELU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x):
        """`(…, inputs)` to `(…, outputs)`."""
        return nn.functional.gelu(self.proj(x))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, hidden, mask, cache=None):
        """`(rows, tokens, width)` to the same; `mask` is true where a token sees another. `cache` has the keys and values of
        the tokens before these, and gets those of these."""
        split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        query, key, value = (split(part(hidden)) for part in (self.to_q, self.to_k, self.to_v))
        if cache is not None:
            if cache:
                key, value = torch.cat([cache["key"], key], 2), torch.cat([cache["value"], value], 2)
            cache.update(key=key, value=value)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
        return self.to_out[0](attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """An MLP four times as wide inside."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(GELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, hidden):
        """`(…, width)` to the same."""
        return self.net(hidden)


class Block(nn.Module):
    """A pre-norm transformer block, with the names of diffusers' BasicTransformerBlock."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), Attention(width, heads)
        self.norm3, self.ff = nn.LayerNorm(width), FeedForward(width)

    def forward(self, hidden, mask, cache=None):
        """`(rows, tokens, width)` to the same."""
        hidden = hidden + self.attn1(self.norm1(hidden), mask, cache)
        return hidden + self.ff(self.norm3(hidden))


class AutoregressivePrior(nn.Module):
    """p(image embedding | caption), bucket by bucket."""

    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.width
        self.encoder_hidden_states_proj = nn.Linear(config.encoder_hid_dim, width)
        self.embedding_proj = nn.Linear(config.embedding_proj_dim, width)
        self.dot_product_embedding = nn.Parameter(torch.randn(config.num_dot_product_buckets + 1, width) * 0.1)
        """The last is UNKNOWN's."""
        self.token_embedding = nn.Parameter(waves(config.num_buckets, width))
        self.positional_embedding = nn.Parameter(torch.randn(1, config.num_embeddings + config.num_tokens + 1, width) * 0.1)
        blocks = (Block(width, config.num_attention_heads) for _ in range(config.num_layers))
        self.transformer_blocks = nn.ModuleList(blocks)
        self.norm_out = nn.LayerNorm(width)
        self.proj_to_dot_product = nn.Linear(width, config.num_dot_product_buckets)
        self.proj_to_tokens = nn.Linear(width, config.num_buckets)
        with torch.no_grad():
            self.proj_to_tokens.weight.copy_(waves(config.num_buckets, width) * width**-0.5)
        self.pca = nn.Linear(config.num_tokens, config.embedding_dim).requires_grad_(False)
        """From dimensions of unit variance to an embedding: axes times standard deviations, and the mean."""
        self.register_buffer("bucket_values", levels(config.num_buckets))
        """In standard deviations, rising."""
        self.register_buffer("dot_product_values", torch.zeros(config.num_dot_product_buckets))
        """Of these quantized values, rising. Only training needs them."""

    @property
    def unknown(self):
        """The token in the place of a dot product that is not known."""
        return self.config.num_dot_product_buckets

    @torch.no_grad()
    def fit(self, images, dot_products):
        """Sets the code: from `(n, embedding_dim)` image embeddings, and the dot products of pairs `(n)`."""
        images, count = images.double(), self.config.num_tokens
        mean = images.mean(0)
        variances, axes = torch.linalg.eigh(torch.cov((images - mean).T))
        variances, axes = variances.flip(0)[:count], axes.flip(1)[:, :count]
        # Which way an axis points is free: always the same way.
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
        self.pca.weight.copy_(axes * variances.clamp(min=1e-12).sqrt())
        self.pca.bias.copy_(mean)
        middles = (torch.arange(self.unknown) + 0.5) / self.unknown
        self.dot_product_values.copy_(torch.quantile(dot_products.double(), middles.double()))
        return self

    def quantize(self, images):
        """The buckets of image embeddings, `(n, K)`."""
        axes = self.pca.weight / self.pca.weight.square().sum(0)
        return nearest(self.bucket_values, (images.float() - self.pca.bias) @ axes)

    def quantize_dot_products(self, dot_products):
        """The tokens of dot products."""
        return nearest(self.dot_product_values, dot_products.float())

    def embed(self, tokens):
        """The image embeddings of buckets `(n, K)`, `(n, embedding_dim)`."""
        return self.pca(self.bucket_values[tokens])

    def text_tokens(self, states, mask, text_embeds):
        """The prefix `(n, L + 1, width)` and which of it is no padding."""
        positions, length = self.positional_embedding, states.shape[1]
        tokens = self.encoder_hidden_states_proj(states) + positions[:, :length]
        last = self.embedding_proj(text_embeds)[:, None] + positions[:, self.config.num_embeddings, None]
        return torch.cat([tokens, last], 1), torch.cat([mask.bool(), mask.new_ones(len(mask), 1).bool()], 1)

    def forward(self, states, mask, text_embeds, dot_products, tokens):
        """The logits of dot products `(n, buckets)` and of buckets `(n, K, buckets)`, given those before each.

        `states` `(n, L, encoder_hid_dim)`, `mask` `(n, L)`, `text_embeds` `(n, embedding_proj_dim)`, `dot_products` `(n)`,
        and `tokens` `(n, K)`, of which the last is not read.
        """
        prefix, valid = self.text_tokens(states, mask, text_embeds)
        own = torch.cat([self.dot_product_embedding[dot_products][:, None], self.token_embedding[tokens[:, :-1]]], 1)
        own = own + self.positional_embedding[:, self.config.num_embeddings + 1 :]
        hidden = torch.cat([prefix, own], 1)
        valid = torch.cat([valid, valid.new_ones(own.shape[:2])], 1)
        seen = causal(hidden) & valid[:, None]
        for block in self.transformer_blocks:
            hidden = block(hidden, seen)
        hidden = self.norm_out(hidden[:, prefix.shape[1] - 1 :])
        return self.proj_to_dot_product(hidden[:, 0]), self.proj_to_tokens(hidden[:, 1:])

    @torch.no_grad()
    def sample(self, states, mask, text_embeds, normals, guidance_scale=1.0, temperature=1.0, unconditional=None):
        """Draws image embeddings: `(embeddings (n, embedding_dim), buckets (n, K), dot products (n), margin)`.

        `normals` `(n, K + 1)` decide the tokens. Above a `guidance_scale` of 1, `unconditional` is the `(states, mask,
        text_embeds)` that rows are guided away from. At temperature 0 every bucket is the likeliest, and the dot product the
        median of its top half. `margin` is how near a cumulative probability comes to the number that decided.
        """
        uniforms = torch.special.ndtr(normals.double())
        branch = Branch(self, states, mask, text_embeds)
        share = uniforms[:, 0] if temperature > 0 else torch.full_like(uniforms[:, 0], 0.5)
        quantile = self.config.dot_product_quantile
        dot_products, margin = draw(branch.logits, quantile + (1 - quantile) * share, 1.0)
        guide = Branch(self, *unconditional) if guidance_scale > 1 else None
        tokens, known, unknown = [], self.dot_product_embedding[dot_products], self.dot_product_embedding[self.unknown]
        for at in range(self.config.num_tokens):
            own = self.token_embedding[tokens[-1]] if tokens else known
            logits = branch.step(own, at)
            if guide is not None:
                without = guide.step(own if tokens else unknown.expand_as(known), at)
                logits = without + (logits - without) * guidance_scale
            token, near = draw(logits, uniforms[:, at + 1], temperature)
            tokens.append(token)
            margin = min(margin, near)
        tokens = torch.stack(tokens, 1)
        return self.embed(tokens), tokens, dot_products, margin


class Branch:
    """Rows of one condition, and the keys and values of their tokens so far."""

    def __init__(self, prior, states, mask, text_embeds):
        self.prior = prior
        hidden, self.valid = prior.text_tokens(states, mask, text_embeds)
        seen = causal(hidden) & self.valid[:, None]
        self.caches = [{} for _ in prior.transformer_blocks]
        self.logits = prior.proj_to_dot_product(self.run(hidden, seen))
        """Of the dot product."""

    def run(self, hidden, seen):
        """What is read from the last of the tokens."""
        for block, cache in zip(self.prior.transformer_blocks, self.caches):
            hidden = block(hidden, seen, cache)
        return self.prior.norm_out(hidden[:, -1])

    def step(self, embeds, at):
        """The logits of bucket `at`, from the embeddings of the tokens before it."""
        prior = self.prior
        self.valid = nn.functional.pad(self.valid, (0, 1), value=True)
        hidden = embeds[:, None] + prior.positional_embedding[:, prior.config.num_embeddings + 1 + at, None]
        return prior.proj_to_tokens(self.run(hidden, self.valid[:, None]))


def causal(hidden):
    """Which tokens each of `hidden` `(…, tokens, width)` sees: itself and those before it."""
    return torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool, device=hidden.device).tril()


def draw(logits, uniforms, temperature):
    """The tokens that uniform numbers decide, and how near a cumulative probability came to one."""
    logits = logits.double()
    if temperature == 0:
        first, second = logits.topk(2).values.T
        return logits.argmax(-1), (first - second).min().item()
    weights = ((logits - logits.max(-1, keepdim=True).values) / temperature).exp()
    sums = weights.cumsum(-1)
    wanted = uniforms[:, None] * sums[:, -1:]
    near = ((sums - wanted) / sums[:, -1:]).abs()[:, :-1].min().item()
    return (sums <= wanted).sum(-1).clamp(max=logits.shape[-1] - 1), near


def nearest(levels_, values):
    """The index of the level that is nearest to each value."""
    return torch.bucketize(values.contiguous(), (levels_[1:] + levels_[:-1]) / 2)


def levels(count):
    """The levels with the least squared error for normal data, nearly."""
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (3**0.5 * torch.special.ndtri(middles)).float()


def waves(count, width):
    """Embeddings of levels, alike for those that lie near each other: waves of random lengths, `(count, width)`."""
    lengths = torch.rand(width) * 3
    return 0.3 * torch.cos(levels(count)[:, None] * lengths.exp() + 2 * math.pi * torch.rand(width))


def save(prior, folder, dtype=torch.float16):
    """Writes the prior's folder: `config.json` and weights, in diffusers' manner."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": CLASS, **asdict(prior.config)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: weight.detach().contiguous() for name, weight in prior.state_dict().items()}
    cast = lambda name, weight: weight.float() if name.startswith(EXACT) else weight.to(dtype)
    save_file({name: cast(name, weight) for name, weight in weights.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    # Written as a private file.
    (folder / WEIGHTS).chmod(0o644)


def load(folder):
    """The prior of a folder, in float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    prior = AutoregressivePrior(Config(**{name: value for name, value in config.items() if not name.startswith("_")}))
    prior.load_state_dict({name: weight.float() for name, weight in load_file(folder / WEIGHTS).items()})
    return prior.eval()
