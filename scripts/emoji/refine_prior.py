"""Trains the prior on, with the text tower as it is: `scripts/train-emoji` runs this after `train_prior`. It resumes where it was
stopped. A text tower that is only read costs a third of one that is trained.
"""

import numpy as np
import torch

from .batches import encode
from .packages import cache
from .pool import Pool, load_captions
from .precision import reduced
from .train_prior import Denoiser, encode_captions, make_prior, make_scheduler, of_prior
from .trained_clip import load_clip
from .training import Average, Optimizer, Run, arguments, trained

PROBLEMS, PARTS = 8, 2
"""Denoising problems a caption, and batches that one of the pool makes: two thirds of a batch's tokens would be text with half
as many problems and all captions at once."""


def main():
    """Trains."""
    options = arguments(__doc__, 3200)
    world, tokenizer, towers = load_clip()
    pool, scheduler = Pool(world, towers, tokenizer), make_scheduler()
    denoiser = trained("prior", Denoiser(make_prior(), towers.text)).train()
    denoiser.text.requires_grad_(False).eval()
    denoiser.prior.clip_mean.requires_grad_(False), denoiser.prior.clip_std.requires_grad_(False)
    run = Run(
        cache() / "run" / "refined", denoiser, Optimizer(denoiser, 0.01), options.steps, options.rate, Average(denoiser, 0.9995)
    )
    empty = encode(tokenizer, [""])
    for batch in load_captions(world, pool, tokenizer, options.seed + 4, run, PARTS):
        rng = np.random.default_rng((options.seed, run.step))
        generator = torch.Generator().manual_seed(options.seed * 2**32 + run.step)
        with reduced():
            with torch.no_grad():
                captions = list(encode_captions(denoiser.text, batch["captions"], empty, rng))
                words = list(encode_captions(denoiser.text, batch["words"], empty, rng))
            error, ranges = of_prior(denoiser, scheduler, captions, pool.embeds[batch["rows"]], generator, PROBLEMS)
            of_others, _ = of_prior(denoiser, scheduler, words, pool.embeds[batch["word_rows"]], generator, PROBLEMS)
        run.backward(error + 0.2 * of_others, {"error": error.detach(), "words_error": of_others.detach()} | ranges)


if __name__ == "__main__":
    main()
