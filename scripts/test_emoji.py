#!/usr/bin/env python3
"""Tests of what trains the built-in model: scripts/reference-python scripts/test_emoji.py. They need no data."""

import sys
import unittest
from pathlib import Path
from string import Formatter
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
import numpy as np  # noqa: E402
import torch  # noqa: E402

from decoding import builtin  # noqa: E402
from emoji import scene_templates, scenes, wordings  # noqa: E402
from emoji.clip import EMBEDDING_DIM, MAX_LENGTH, Heads  # noqa: E402
from emoji.decoder import Decoder  # noqa: E402
from emoji.train_prior import DATA_SCALE, Denoiser, make_prior, to_data_scale  # noqa: E402
from emoji.trained_clip import turn  # noqa: E402


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


class DataScaleTest(unittest.TestCase):
    def test_the_embedding_stays_and_the_prediction_is_of_the_scale_of_the_data(self):
        torch.manual_seed(0)
        prior, tensors = make_prior(), [torch.randn(2, EMBEDDING_DIM) for _ in range(2)]
        torch.nn.init.normal_(prior.clip_std), torch.nn.init.normal_(prior.clip_mean)
        states = torch.randn(2, MAX_LENGTH, EMBEDDING_DIM)
        predict = lambda: prior(tensors[0], 500, tensors[1], states).predicted_image_embedding
        with torch.no_grad():
            trained = predict()
            embedding = prior.post_process_latents(trained)
            to_data_scale(prior)
            self.assertLess((predict() - DATA_SCALE * trained).abs().max(), 1e-5)
            self.assertLess((prior.post_process_latents(predict()) - embedding).abs().max(), 1e-5)


class TurnTest(unittest.TestCase):
    def test_cosines_stay_and_the_numbers_are_uncorrelated(self):
        torch.manual_seed(0)
        image, text = torch.nn.Linear(20, 8, bias=False), torch.nn.Linear(20, 8, bias=False)
        heads, thumbnail = Heads({}), torch.nn.Linear(8, 4)
        heads.heads["thing"] = torch.nn.Linear(8, 5)
        towers = SimpleNamespace(
            image=SimpleNamespace(visual_projection=image), text=SimpleNamespace(text_projection=text),
            image_heads=heads, text_heads=Heads({}), thumbnail=[thumbnail],
        )  # fmt: skip
        pictures, captions = torch.randn(500, 20) @ torch.randn(20, 20) + 1, torch.randn(500, 20)
        cosines = lambda: torch.cosine_similarity(image(pictures), text(captions)).detach()
        read = lambda: torch.cat([heads.heads["thing"](image(pictures)), thumbnail(image(pictures))], 1).detach()
        before, read_before = cosines(), read()
        turn(towers, image(pictures).detach())
        self.assertLess((cosines() - before).abs().max(), 1e-5)
        self.assertLess((read() - read_before).abs().max(), 1e-4)
        correlations = torch.corrcoef(image(pictures).detach().T)
        self.assertLess((correlations - torch.eye(8)).abs().max(), 1e-3)


class TemplatesTest(unittest.TestCase):
    def test_templates_of_the_evaluation_are_none_of_training(self):
        rng = np.random.default_rng(0)
        self.assertFalse({wordings.random_template(rng) for _ in range(20000)} & set(wordings.HELD_OUT_TEMPLATES))
        for form in scenes.FORMS:
            held_out = set(scene_templates.HELD_OUT_TEMPLATES[form])
            self.assertTrue(held_out)
            self.assertFalse({scene_templates.random_template(form, rng) for _ in range(5000)} & held_out)

    def test_composed_templates_say_every_thing_once(self):
        rng = np.random.default_rng(0)
        for form in scenes.FORMS:
            for _ in range(500):
                template = scene_templates.composed_template(form, rng)
                fields = [name for _, name, _, _ in Formatter().parse(template or "") if name]
                self.assertEqual(len(fields), len(set(fields)))
                if form in scene_templates.SLOTS:
                    self.assertEqual({name.strip("c") for name in fields}, set(map(str, range(len(scene_templates.SLOTS[form])))))


class DecoderTest(unittest.TestCase):
    def test_decode_py_draws_what_the_trained_network_draws(self):
        torch.manual_seed(0)
        decoder, embeds = Decoder(), torch.randn(3, EMBEDDING_DIM)
        with torch.no_grad():
            expected = decoder(embeds)
        weights = {name: weight.numpy() for name, weight in decoder.state_dict().items()}
        drawn = torch.from_numpy(builtin.Decoder(weights).forward(embeds.numpy()))
        self.assertLess((drawn - expected).abs().max(), 1e-4)


if __name__ == "__main__":
    unittest.main()
