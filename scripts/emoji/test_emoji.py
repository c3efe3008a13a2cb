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

from emoji import scene_templates, scenes, wordings  # noqa: E402
from emoji.batches import by_length, encode  # noqa: E402
from emoji.clip import EMBEDDING_DIM, MAX_LENGTH, Heads, text_tower  # noqa: E402
from emoji.decoder import Decoder  # noqa: E402
from emoji.refine_prior import hide_words  # noqa: E402
from emoji.train_decoder import PLAIN, Pool  # noqa: E402
from emoji.train_prior import DATA_SCALE, GUIDANCE, Denoiser, EpochImages, encode_captions, make_prior, to_data_scale  # noqa: E402
from emoji.trained_clip import turn  # noqa: E402
from tools.built import ROOT  # noqa: E402
from tools.decoding import builtin  # noqa: E402

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
            batch = {"captions": [by_length(tokenizer, texts)]}
            for part in encode_captions(tower, batch, empty, np.random.default_rng(2)):
                for row, picture in enumerate(part.pictures.tolist()):
                    alone = tower(**encode(tokenizer, [texts[picture]]))
                    shown = nothing if part.dropped[row] else alone
                    length = shown.last_hidden_state.shape[1]
                    self.assertLess((part.texts[row] - alone.text_embeds[0]).abs().max(), 1e-5)
                    self.assertLess((part.embeds[row] - shown.text_embeds[0]).abs().max(), 1e-5)
                    self.assertLess((part.states[row, :length] - shown.last_hidden_state[0]).abs().max(), 1e-5)
                    self.assertEqual(part.mask[row].sum(), length)
                    emptied += part.dropped[row].item()
                seen += part.pictures.tolist()
        self.assertEqual(sorted(seen), list(range(len(texts))))
        self.assertTrue(0 < emptied < len(texts))


class WordsTest(unittest.TestCase):
    def test_words_are_hidden_but_never_the_end(self):
        mask = (torch.arange(12) < torch.arange(1, 13)[:, None]).float().repeat(50, 1)
        shown = hide_words(mask, torch.Generator().manual_seed(0))
        self.assertTrue((shown <= mask).all())
        self.assertTrue(shown[torch.arange(len(mask)), mask.sum(1).long() - 1].all())
        whole = (shown == mask).all(1)[mask.sum(1) > 4].float().mean()
        self.assertTrue(0.5 < whole < 0.65, whole)


class EpochTest(unittest.TestCase):
    def test_pictures_that_come_again_have_the_embeddings_of_the_first_time(self):
        image = lambda pixel_values: SimpleNamespace(image_embeds=pixel_values.mean((1, 2, 3))[:, None])
        images = EpochImages(SimpleNamespace(image=image), 2)
        batch = lambda value: {"pictures": torch.full((1, 3, 8, 8), value, dtype=torch.uint8)}
        again = {"pictures": torch.empty(0, 3, 8, 8, dtype=torch.uint8)}
        first = [images.of(step, batch(value)).item() for step, value in enumerate((10, 20))]
        self.assertNotEqual(*first)
        self.assertEqual([images.of(step, again).item() for step in (2, 3)], first)


class DataScaleTest(unittest.TestCase):
    def test_at_the_trained_guidance_the_embedding_stays_and_is_of_the_scale_of_the_data(self):
        torch.manual_seed(0)
        prior, tensors = make_prior(), [torch.randn(2, EMBEDDING_DIM) for _ in range(2)]
        torch.nn.init.normal_(prior.clip_std), torch.nn.init.normal_(prior.clip_mean)
        states = torch.randn(2, MAX_LENGTH, EMBEDDING_DIM)
        predict = lambda: prior(tensors[0], 500, tensors[1], states).predicted_image_embedding
        with torch.no_grad():
            trained = predict()
            embedding = prior.post_process_latents(trained)
            to_data_scale(prior)
            # That of an empty caption is taken to be 0.
            guided = GUIDANCE * predict()
            self.assertLess((guided - DATA_SCALE * trained).abs().max(), 1e-5)
            self.assertLess((prior.post_process_latents(guided) - embedding).abs().max(), 1e-4)


class PoolTest(unittest.TestCase):
    def test_a_mixture_is_of_one_emoji_and_its_picture_the_one_that_most_of_it_is(self):
        count, variants = 200, 6
        place = torch.arange(count * variants).view(count, variants)
        embeds = torch.nn.functional.one_hot(place, count * variants).float()
        singles = place[..., None, None, None]
        scenes = torch.full((30, 1, 1, 1), -1)
        pool = Pool(singles, scenes, embeds, torch.zeros(30, count * variants))
        mixed, pictures = pool.batch(np.random.default_rng(0))
        drawn = pictures.flatten()
        self.assertEqual((drawn < 0).sum(), 24)
        for row in range(int((drawn >= 0).sum())):
            emoji = set((mixed[row].nonzero().flatten() // variants).tolist())
            self.assertEqual(emoji, {int(drawn[row]) // variants})
            if row < PLAIN:
                self.assertEqual(drawn[row] % variants, 0)
            else:
                self.assertEqual(mixed[row].argmax(), drawn[row])


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
