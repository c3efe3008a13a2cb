#!/usr/bin/env python3
"""Tests the page of `prior-embed serve` in headless Chromium, as people use it: by mouse, by keyboard, on a phone, in the dark,
and with axe's rules for screen readers.

    python3 scripts/check_page.py [--screenshots FOLDER] [NAMES OF TESTS]

Needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver).
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
from tools import environments  # noqa: E402
from tools.built import BINARY  # noqa: E402
from tools.problem import Problem  # noqa: E402

KEY = "a-key-for-tests"
# Nothing of the machine's own profile, and no connection but to the page.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
screenshots = None


class Server:
    """`prior-embed serve` with the built-in model."""

    def __init__(self, *options, **environment):
        command = [BINARY, "serve", "--port", "0", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | environment
        )
        # listening on http://127.0.0.1:PORT
        self.url = f"{self.process.stdout.readline().split()[-1]}/"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.url}health", timeout=5)
                return
            except OSError:
                if self.process.poll() is not None:
                    raise AssertionError("the server ended") from None
                time.sleep(0.1)
        raise AssertionError("the server does not get ready")

    def stop(self):
        """Ends it."""
        self.process.terminate()
        self.process.wait(30)
        self.process.stdout.close()


def browser(downloads):
    """A Chromium of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, "--window-size=1200,1400", f"--user-data-dir={downloads}/profile"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": downloads})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


class PageTest(unittest.TestCase):
    """One server and one browser for all tests, a fresh page for each."""

    @classmethod
    def setUpClass(cls):
        cls.downloads = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.downloads, True)
        cls.server = Server()
        cls.addClassCleanup(cls.server.stop)
        cls.browser = browser(cls.downloads)
        cls.addClassCleanup(cls.browser.quit)

    def setUp(self):
        self.open(self.server.url)

    def tearDown(self):
        for command in ("Emulation.clearDeviceMetricsOverride", "Emulation.setEmulatedMedia"):
            self.browser.execute_cdp_cmd(command, {})
        # What the page's own policy or a script's mistake would leave there.
        severe = [line["message"] for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]
        self.assertEqual([line for line in severe if "status of 4" not in line and "ERR_CONNECTION" not in line], [])

    def open(self, url):
        self.browser.get(url)
        self.wait(lambda: self.text("model") != "loading the model")

    def at(self, name):
        return self.browser.find_element(By.ID, name)

    def text(self, name):
        return self.at(name).text

    def wait(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end, "the page does not get there")
            time.sleep(0.02)

    def write(self, name, text):
        self.at(name).clear()
        self.at(name).send_keys(text)

    def embed(self, prompts=None, **fields):
        if prompts:
            self.write("prompts", prompts)
        for name, value in fields.items():
            self.write(name, value)
        self.at("run").click()
        self.wait_for_rows()

    def wait_for_rows(self):
        self.wait(lambda: self.at("run").is_enabled() and "numbers in" in self.text("status"))

    def downloaded(self, button, name):
        path = Path(self.downloads, name)
        path.unlink(missing_ok=True)
        self.at(button).click()
        self.wait(path.is_file)
        self.wait(lambda: path.stat().st_size > 0 and not list(Path(self.downloads).glob("*.crdownload")))
        return path

    def shoot(self, name):
        if screenshots:
            self.browser.save_screenshot(str(screenshots / f"{name}.png"))

    def of_command(self, command):
        """What the command on the page writes."""
        words = shlex.split(command)
        self.assertEqual(words[0], "prior-embed")
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([BINARY, *words[1:], "--quiet"], cwd=folder, check=True)
            return np.load(Path(folder) / "embs.npy")

    def test_rows_are_those_of_the_command_that_it_shows(self):
        self.embed("a red apple\nit's a \"dog\"\n  \n--help", negative="blue", seed="7", guidance="2.5", steps="5", samples="2")
        rows = self.browser.find_elements(By.CSS_SELECTOR, "#rows li")
        self.assertEqual(len(rows), 6)
        self.assertIn("a red apple (seed 7)", rows[0].text)
        expected = self.of_command(self.text("command"))
        npy = np.load(self.downloaded("save-npy", "embs.npy"))
        np.testing.assert_allclose(npy, expected, atol=1e-5)
        with safe_open(self.downloaded("save-safetensors", "embs.safetensors"), "np") as file:
            np.testing.assert_array_equal(file.get_tensor("image_embeds"), npy)
        self.shoot("rows")

    def test_pictures_and_nearest_emoji_are_those_of_the_rows(self):
        self.embed("a red apple\na rocket")
        images = self.browser.find_elements(By.CSS_SELECTOR, "#rows img")
        shown = [self.browser.execute_script("return arguments[0].naturalWidth", image) for image in images]
        self.assertTrue(all(shown), shown)
        self.assertIn("red apple", images[0].get_attribute("alt"))
        self.assertIn("rocket", images[1].get_attribute("alt"))

    def test_the_matrix_has_the_cosines(self):
        self.embed("a cat\na dog\na car")
        rows = np.load(self.downloaded("save-npy", "embs.npy"))
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cells = [float(cell.text) for cell in self.browser.find_elements(By.CSS_SELECTOR, "#matrix tr:not(:first-child) td")]
        np.testing.assert_allclose(np.reshape(cells, (3, 3)), units @ units.T, atol=6e-4)

    def test_the_slider_goes_from_one_row_to_the_other_by_keyboard(self):
        self.embed("a cat\na dog\na car")
        rows = np.load(self.downloaded("save-npy", "embs.npy"))
        self.at("share").send_keys(Keys.HOME)
        np.testing.assert_allclose(np.load(self.downloaded("save-mix", "embedding.npy"))[0], rows[0], atol=1e-5)
        self.at("share").send_keys(Keys.END)
        Select(self.at("to")).select_by_index(2)
        np.testing.assert_allclose(np.load(self.downloaded("save-mix", "embedding.npy"))[0], rows[2], atol=1e-5)
        self.at("share").send_keys(*[Keys.ARROW_LEFT] * 10)
        self.wait(lambda: self.at("share").get_attribute("aria-valuetext") == "90 %")
        self.assertTrue(self.text("mix-cosines").startswith("90 %"), self.text("mix-cosines"))
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "rows.npy", rows)
            words = ["interpolate", f"@{folder}/rows.npy[0]", f"@{folder}/rows.npy[2]", "--slerp", "--frames", "11"]
            subprocess.run([BINARY, *words, "--out", f"{folder}/frames.npy", "--quiet"], check=True)
            frames = np.load(f"{folder}/frames.npy")
        np.testing.assert_allclose(np.load(self.downloaded("save-mix", "embedding.npy"))[0], frames[9], atol=1e-5)

    def test_all_of_it_can_be_used_by_keyboard(self):
        self.at("prompts").send_keys(Keys.CONTROL, Keys.ENTER)
        self.wait_for_rows()
        self.open(self.server.url)
        reached = []
        self.browser.execute_script("document.body.focus()")
        for _ in range(12):
            ActionChains(self.browser).send_keys(Keys.TAB).perform()
            reached.append(self.browser.switch_to.active_element.get_attribute("id"))
        wanted = ["prompts", "negative", "seed", "guidance", "steps", "samples", "run"]
        self.assertEqual([name for name in reached if name in wanted][: len(wanted)], wanted)
        self.at("run").send_keys(Keys.ENTER)
        self.wait_for_rows()

    def test_what_is_wrong_is_said_beside_its_field(self):
        for name, value, word in [
            ("steps", "0", "from 1"), ("seed", "x", "whole number"), ("guidance", "much", "number"), ("samples", "-1", "whole"),
            ("prompts", " ", "prompt"),
        ]:  # fmt: skip
            self.open(self.server.url)
            self.write(name, value)
            self.at("run").click()
            self.assertIn(word, self.text(f"{name}-wrong"))
            self.assertEqual(self.at(name).get_attribute("aria-invalid"), "true")
            self.assertEqual(self.browser.switch_to.active_element.get_attribute("id"), name)
        self.shoot("wrong")

    def test_what_the_server_refuses_is_said(self):
        self.embed("a cat")
        # Typed, so many would take minutes.
        self.browser.execute_script("arguments[0].value = 'word '.repeat(30000)", self.at("prompts"))
        self.at("run").click()
        self.wait(lambda: self.text("wrong"))
        self.assertIn("bytes", self.text("wrong"))
        self.assertTrue(self.at("run").is_enabled())

    def test_a_server_that_has_gone_is_said(self):
        server = Server()
        self.open(server.url)
        server.stop()
        self.at("run").click()
        self.wait(lambda: self.text("wrong"))
        self.assertIn("does not answer", self.text("wrong"))

    def test_a_locked_server_asks_for_its_key(self):
        server = Server(PRIOR_EMBED_API_KEY=KEY)
        self.addCleanup(server.stop)
        self.open(server.url)
        self.wait(lambda: self.at("key").is_displayed())
        self.at("key").send_keys("wrong", Keys.TAB)
        self.wait(lambda: "another key" in self.text("key-wrong"))
        self.write("key", KEY)
        self.at("key").send_keys(Keys.TAB)
        self.wait(lambda: "numbers a row" in self.text("model"))
        self.embed("a cat")

    def test_nothing_comes_from_another_host(self):
        self.embed("a cat\na dog")
        names = self.browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        outside = [name for name in names if not name.startswith((self.server.url, "data:", "blob:"))]
        self.assertEqual(outside, [])
        blocked = self.browser.execute_async_script(
            "const done = arguments[0]; fetch('https://example.com').then(() => done('sent'), (error) => done(String(error)))"
        )
        self.assertNotEqual(blocked, "sent")
        self.browser.get_log("browser")

    def test_it_fits_a_phone(self):
        phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        self.open(self.server.url)
        self.embed("a red apple\n" + "a_very_long_word_without_a_space_" * 5 + "\na dog\na car\na house")
        width = self.browser.execute_script("return document.documentElement.scrollWidth")
        self.assertLessEqual(width, 360)
        self.shoot("phone")

    def test_axe_finds_nothing_by_day_and_by_night(self):
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            self.open(self.server.url)
            self.write("steps", "0")
            self.at("run").click()
            self.embed("a cat\na dog", steps="5")
            found = Axe().run(self.browser)["violations"]
            self.assertEqual([(one["id"], one["nodes"][0]["html"]) for one in found], [])
            self.shoot(scheme)


def enter():
    """Starts again in a Python that has what this needs."""
    try:
        import axe_core_python.selenium  # noqa: F401
        import numpy  # noqa: F401
        import safetensors  # noqa: F401
        import selenium  # noqa: F401
    except ImportError:
        python = environments.browsing().ensure(lambda message: print(f"check_page: {message}", file=sys.stderr))
        os.execv(python, [str(python), *sys.argv])


def main():
    """Runs the tests."""
    global screenshots
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--screenshots", type=Path, help="a folder for pictures of the page")
    options, rest = parser.parse_known_args()
    if options.screenshots:
        screenshots = options.screenshots
        screenshots.mkdir(parents=True, exist_ok=True)
    unittest.main(argv=[sys.argv[0], *rest])


if __name__ == "__main__":
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if missing:
        sys.exit(f"check_page: {' and '.join(missing)} missing; apt-get install chromium chromium-driver")
    try:
        enter()
    except Problem as problem:
        sys.exit(f"check_page: {problem}")
    import numpy as np
    from axe_core_python.selenium import Axe
    from safetensors import safe_open
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    main()
