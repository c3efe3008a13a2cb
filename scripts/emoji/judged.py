"""Whether decoded pictures show what their captions say, by a classifier that has seen true pictures alone."""

import numpy as np

from tools.benchmark.report import table
from tools.decoding import builtin

from . import scenes, train_judge
from .batches import single
from .english import with_article
from .scene_templates import TEMPLATES

PLAIN, PAIRS = 600, 300


def trained_judge(world):
    """The judge, whose training is finished first if need be."""
    train_judge.train(train_judge.STEPS)
    return train_judge.load_judge(world)


def same_looks(world):
    """For each emoji a number that those with the same picture share."""
    looks = {}
    return [looks.setdefault(np.asarray(world.sprites.pictures[one.code, "noto", None]).tobytes(), at) for at, one in enumerate(world.emoji)]


def pair_scenes(world, rng):
    """Scenes of two things that training never showed, and captions for them."""
    found = []
    while len(found) < PAIRS:
        scene = scenes.random_scene(world.things, rng, held_out=True)
        if scene.form in ("beside", "above"):
            found.append((scene, world.scene_caption(scene, rng, templates=TEMPLATES, leads=0.0)))
    return found


def judge_pictures(prior, world, figures, seed):
    """Prints how many of true and of decoded pictures the judge names as they are meant."""
    judge, rng = trained_judge(world), np.random.default_rng((seed, 21))
    looks = np.array([*same_looks(world), len(world.emoji)])
    drawn = lambda captions, **settings: np.stack(list(builtin.draw(prior.embed(captions, **settings).numpy(), prior.binary)))
    named = lambda pictures: looks[judge.names(pictures).numpy()]
    plain = rng.choice(len(world.emoji), PLAIN, replace=False)
    true = np.stack([single(world, world.emoji[at], rng, rng, 0).draw() for at in plain])
    captions = [with_article(world.emoji[at].name) for at in plain]
    pairs = pair_scenes(world, rng)
    things = looks[[[world.index[code] for code in scene.things] for scene, _ in pairs]]
    shown = np.stack([scenes.draw(scene, world.sprites, "noto", rng) for scene, _ in pairs])
    both = lambda pictures: (named(pictures)[:, :2] == things).all(1).mean()
    first = lambda pictures: (named(pictures)[:, 0] == looks[plain]).mean()
    texts = [caption for _, caption in pairs]
    rows, scales = [], (1.0, 2.0, 4.0)
    rows.append(["true pictures", f"{100 * first(true):.1f} %", f"{100 * both(shown):.1f} %"])
    for scale in scales:
        of_plain, of_pairs = first(drawn(captions, guidance_scale=scale)), both(drawn(texts, guidance_scale=scale))
        rows.append([f"decoded, guidance {scale:g}", f"{100 * of_plain:.1f} %", f"{100 * of_pairs:.1f} %"])
    figures |= {"plain picture named": float(of_plain), "pair of things named": float(of_pairs)}
    print(table(["the judge names", "the emoji of a name", "both things of a pair"], rows), "\n")
