#!/usr/bin/env python3
"""Tests of what trains the built-in model: scripts/reference-python scripts/emoji/test_emoji.py. They need no data."""

import sys
import unittest
from pathlib import Path
from string import Formatter
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True
import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

from emoji import scene_templates, scenes, views, wordings  # noqa: E402
from emoji.batches import ABSENT, by_length, encode  # noqa: E402
from emoji.clip import EMBEDDING_DIM, MAX_LENGTH, Composition, text_tower  # noqa: E402
from emoji.decoder import paste  # noqa: E402
from emoji.drawing import CANVAS, Placed, Sprites  # noqa: E402
from emoji.muon import Muon  # noqa: E402
from emoji.train_decoder import pose  # noqa: E402
from emoji.train_prior import Denoiser, encode_captions, make_prior, make_scheduler, of_words, weights  # noqa: E402
from emoji.train_sprites import SpriteTable  # noqa: E402
from emoji.training import Average  # noqa: E402
from tools.built import ROOT  # noqa: E402

ASSETS = ROOT / "assets"


class DenoiserTest(unittest.TestCase):
    def test_several_problems_of_a_caption_equal_diffusers_on_each_alone(self):
        torch.manual_seed(0)
        prior, problems = make_prior(), 4
        for weight in prior.parameters():
            torch.nn.init.normal_(weight, std=0.08)
        mask = torch.zeros(3, MAX_LENGTH)
        for row, length in enumerate((5, 9, 12)):
            mask[row, :length] = 1
        states, embeds = torch.randn(3, MAX_LENGTH, EMBEDDING_DIM), torch.randn(3, EMBEDDING_DIM)
        noisy, timesteps = torch.randn(3, problems, EMBEDDING_DIM), torch.randint(1000, (3, problems))
        with torch.no_grad():
            alone = [
                prior(noisy[:, at], timesteps[:, at], proj_embedding=embeds, encoder_hidden_states=states, attention_mask=mask)
                for at in range(problems)
            ]
            together = Denoiser(prior, None)(noisy, timesteps, embeds, states[:, :12], mask[:, :12])
        expected = torch.stack([output.predicted_image_embedding for output in alone], 1)
        self.assertLess((together - expected).abs().max(), 1e-5 * expected.abs().max())


class MuonTest(unittest.TestCase):
    def test_steps_are_those_of_torch_but_for_its_rounding(self):
        torch.manual_seed(0)
        start = [torch.randn(shape) for shape in ((64, 64), (256, 64), (64, 256), (64, 64))]
        ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
        muon = Muon(ours, 0.02)
        reference = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
        muon.param_groups[0]["lr"] = 1e-2
        for _ in range(4):
            for weight, other in zip(ours, theirs):
                weight.grad = torch.randn_like(weight)
                other.grad = weight.grad.clone()
            muon.step(), reference.step()
        for weight, other, before in zip(ours, theirs, start):
            self.assertLess((weight - other).norm(), 0.03 * (other - before).norm())


class CaptionsTest(unittest.TestCase):
    def test_captions_in_parts_are_encoded_as_each_alone_and_some_as_the_empty_one(self):
        torch.manual_seed(0)
        tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "emoji" / "tokenizer")
        tower = text_tower(tokenizer).eval()
        texts = [" ".join(["red apple", "cat", "blue"][at % 3 :] * (1 + at * 5 % 4)) for at in range(24)]
        empty = encode(tokenizer, [""])
        seen, emptied = [], 0
        with torch.no_grad():
            nothing = tower(**empty)
            for part in encode_captions(tower, by_length(tokenizer, texts), empty, np.random.default_rng(2)):
                for row, place in enumerate(part.place.tolist()):
                    alone = tower(**encode(tokenizer, [texts[place]]))
                    shown = nothing if part.dropped[row] else alone
                    length = shown.last_hidden_state.shape[1]
                    self.assertLess((part.texts[row] - alone.text_embeds[0]).abs().max(), 1e-5)
                    self.assertLess((part.embeds[row] - shown.text_embeds[0]).abs().max(), 1e-5)
                    self.assertLess((part.states[row, :length] - shown.last_hidden_state[0]).abs().max(), 1e-5)
                    self.assertEqual(part.mask[row].sum(), length)
                    emptied += part.dropped[row].item()
                seen += part.place.tolist()
        self.assertEqual(sorted(seen), list(range(len(texts))))
        self.assertTrue(0 < emptied < len(texts))


class CompositionTest(unittest.TestCase):
    def test_an_embedding_is_the_sum_of_what_its_picture_shows(self):
        counts = {"thing0": 4, "thing1": 4, "thing2": 4, "layout": 2, "style": 2, "tone": 3}
        composition = Composition(counts).requires_grad_(False)
        # One thing alone, and a scene of two: 3 is none.
        labels = {"thing0": [1, 2], "thing1": [3, 0], "thing2": [3, 3], "layout": [0, 1], "style": [1, 0], "tone": [2, ABSENT]}
        labels = {name: torch.tensor(values) for name, values in labels.items()}
        things, tables = composition.things.weight, {name: table.weight for name, table in composition.tables.items()}
        turn = lambda name, vector: composition.turned[name].weight @ vector
        alone = things[1] + tables["layout"][0] + tables["style"][1] + tables["tone"][2]
        scene = turn("thing0", things[2]) + turn("thing1", things[0]) + tables["layout"][1] + tables["style"][0]
        found = composition(labels)
        torch.testing.assert_close(found, torch.stack([alone, scene]))
        self.assertAlmostEqual(composition.error(3 * found, labels).item(), 0, places=5)
        self.assertAlmostEqual(composition.error(-found, labels).item(), 2, places=5)


class LossTest(unittest.TestCase):
    def test_errors_count_as_the_signal_is_above_the_noise_within_bounds(self):
        scheduler = make_scheduler()
        found = weights(scheduler, torch.tensor([0, 300, 500, 999]))
        middle = scheduler.alphas_cumprod[[300, 500]]
        self.assertEqual((found[0].item(), round(found[3].item(), 6)), (5.0, 0.05))
        torch.testing.assert_close(found[1:3], middle / (1 - middle))

    def test_words_near_what_they_may_mean_cost_nothing(self):
        means = torch.eye(6)
        batch = {"meant": torch.tensor([[2, 4], [0, 1]]), "probability": torch.tensor([[0.5, 0.5], [1.0, 0.0]])}
        part = lambda texts: [SimpleNamespace(texts=texts, place=torch.tensor([0, 1]))]
        right = of_words(part(torch.stack([means[2] + means[4], means[0]])), batch, means)
        wrong = of_words(part(torch.stack([means[2] + means[3], means[0]])), batch, means)
        self.assertLess(right, 1e-3)
        self.assertGreater(wrong, 1.0)


class AverageTest(unittest.TestCase):
    def test_early_weights_are_forgotten_and_later_ones_averaged(self):
        model = torch.nn.Linear(1, 1, bias=False)
        average = Average(model, 0.9)
        for step, value in enumerate([100.0] + [1.0, 3.0] * 200):
            model.weight.data.fill_(value)
            average.update(step)
        self.assertAlmostEqual(average.weights["weight"].item(), 2.0, delta=0.15)


class DrawingTest(unittest.TestCase):
    def sprites(self):
        picture = np.zeros((96, 96, 4), np.uint8)
        picture[8:40, 8:40] = (255, 0, 0, 255)  # a red square, upper left
        return Sprites({("A", "noto", None): picture})

    def red(self, **how):
        """Where the red of the drawn square is, as halves of the canvas: `(left, top)`."""
        drawn = self.sprites().draw((255.0,) * 3, [Placed("A", 96, 48, 48, **how)], "noto")
        rows, columns = ((drawn[..., 0] > 200) & (drawn[..., 1] < 50)).nonzero()
        self.assertEqual(drawn.shape, (CANVAS, CANVAS, 3))
        self.assertTrue(900 < len(rows) < 1100, len(rows))
        return columns.mean() < 48, rows.mean() < 48

    def test_angles_are_clockwise_and_mirrors_swap_left_and_right(self):
        self.assertEqual(self.red(), (True, True))
        self.assertEqual(self.red(angle=90), (False, True))
        self.assertEqual(self.red(angle=180), (False, False))
        self.assertEqual(self.red(mirrored=True), (False, True))
        self.assertEqual(self.red(mirrored=True, angle=90), (False, False))

    def test_an_emoji_shrinks_about_its_centre_without_losing_colour(self):
        for size in (80, 40, 20):
            drawn = self.sprites().draw((255.0,) * 3, [Placed("A", size, 50, 56)], "noto").astype(float)
            amount = (255 - drawn[..., 1]) / 255
            self.assertAlmostEqual(amount.sum(), (size / 3) ** 2, delta=0.1 * (size / 3) ** 2)
            self.assertAlmostEqual((amount.sum(0) @ np.arange(96)) / amount.sum(), 50 - size / 4 - 0.5, delta=0.5)


class DecoderTest(unittest.TestCase):
    def test_sprites_in_their_poses_are_the_pictures_they_are_learned_from(self):
        picture = np.zeros((96, 96, 4), np.uint8)
        picture[8:60, 20:44], picture[50:86, 20:80] = (255, 0, 0, 255), (0, 60, 255, 200)  # no turn looks like another
        key = ("A", "noto", None)
        drawn_by, sprites = Sprites({key: picture}), SpriteTable({key: picture})
        for placed in (
            Placed("A", 84, 48, 48), Placed("A", 60, 30, 61, None, 25.0), Placed("A", 37, 70, 23, None, 180.0, True),
            Placed("A", 40, 20, 70, None, -80.0, True), Placed("A", 28, 15, 15, mirrored=True),
        ):  # fmt: skip
            true = drawn_by.draw((150.0, 205.0, 245.0), [placed], "noto") / 255
            poses = torch.tensor([pose(placed)], dtype=torch.float32)
            # As logits.
            poses[:, 0], poses[:, -1] = 20.0, 20.0 * (2 * poses[:, -1] - 1)
            canvas = torch.tensor([150.0, 205.0, 245.0]).view(1, 3, 1, 1).expand(1, 3, 192, 192) / 255
            found = torch.nn.functional.avg_pool2d(paste(sprites.of(torch.tensor([0])), poses, canvas), 2)[0]
            off = np.abs(found.permute(1, 2, 0).numpy() - true)
            plain = np.abs(true - true[0, 95]).mean()
            self.assertLess(off.mean(), 0.1 * plain, placed)


class ViewsTest(unittest.TestCase):
    def test_what_captions_leave_open_is_distributed_as_pictures_are(self):
        """Whether a thing is told says nothing of its value: over silent captions its shares are the ones of all."""
        rng, emoji = np.random.default_rng(0), SimpleNamespace(code="1F34E")
        sprites = SimpleNamespace(has=lambda code, style, tone=None: tone is None)
        words = {"upside down": views.ROTATION_WORDS["upside down"], "mirrored": views.MIRRORED_WORDS[True]}
        silent = {"rotation": [], "mirrored": []}
        for _ in range(6000):
            view = views.random_view(emoji, sprites, rng)
            text = views.tell("it", view, rng, views.what_is_told(rng))
            if not any(word in text for values in views.ROTATION_WORDS.values() for word in values):
                silent["rotation"].append(view.rotation == "upside down")
            if not any(word in text for values in views.MIRRORED_WORDS.values() for word in values):
                silent["mirrored"].append(view.mirrored)
        self.assertEqual(len(words), 2)
        for values in silent.values():
            self.assertGreater(len(values), 2000)
            self.assertAlmostEqual(np.mean(values), 0.1, delta=0.015)

    def test_told_values_are_said(self):
        rng = np.random.default_rng(0)
        view = views.View("3d", "dark", "light blue", "left", "small", "top left", True)
        text = views.tell("a hand", view, rng, {"tone", "style", "background", "rotation", "size", "place", "mirrored"})
        for part in ("dark", "3d", "light blue", "top left"):
            self.assertIn(part, text)


class TemplatesTest(unittest.TestCase):
    def test_templates_of_the_evaluation_are_none_of_training(self):
        rng = np.random.default_rng(0)
        self.assertFalse({wordings.random_template(rng) for _ in range(20000)} & set(wordings.HELD_OUT_TEMPLATES))
        for form in scenes.FORMS:
            held_out = set(scene_templates.HELD_OUT_TEMPLATES[form])
            self.assertTrue(held_out)
            self.assertFalse({scene_templates.random_template(form, rng) for _ in range(5000)} & held_out)

    def test_a_name_is_said_once_whatever_stands_around_it(self):
        rng = np.random.default_rng(0)
        templates = [wordings.random_template(rng) for _ in range(20000)]
        self.assertEqual({template.count("{") for template in templates}, {1})
        around = {word for template in templates for word in wordings.plain(template).split()}
        self.assertGreater(len(around), 2000, "most of the words mean nothing")

    def test_composed_templates_say_every_thing_once(self):
        rng = np.random.default_rng(0)
        for form in scenes.FORMS:
            for _ in range(500):
                template = scene_templates.composed_template(form, rng)
                fields = [name for _, name, _, _ in Formatter().parse(template or "") if name]
                self.assertEqual(len(fields), len(set(fields)))
                if form in scene_templates.SLOTS:
                    self.assertEqual({name.strip("c") for name in fields}, set(map(str, range(len(scene_templates.SLOTS[form])))))


if __name__ == "__main__":
    unittest.main()
