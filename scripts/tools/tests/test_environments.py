"""How decode.py finds a Python that has what it needs, started by one that has nothing.

All but one of these need no network: a stand-in takes pip's part, and leads to the libraries of the Python that runs
the tests.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import PIL
import safetensors

from .decode_script import ScriptTest, embeddings, npy

# A `pip` that notes each install, and does what a test asks of it.
STAND_IN = """
import os, sys, time
from pathlib import Path
if "--version" in sys.argv:
    sys.exit("NO_PIP" in os.environ)
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
while os.path.exists(os.environ.get("HOLD", "")):
    time.sleep(0.01)
if "BROKEN" in os.environ:
    sys.exit("WARNING: this is not the reason\\nERROR: the line fell over\\n[notice] nor is this")
python = Path(sys.argv[sys.argv.index("--python") + 1])
(site,) = python.parent.parent.glob("lib/python*/site-packages")
(site / "libraries.pth").write_text(os.environ["LIBRARIES"])
"""

# A `torch` that tells how the script was started, once it has read the embeddings.
TORCH = """
import os, sys
print(*sys.argv[1:], "offline=" + os.environ.get("HF_HUB_OFFLINE", ""))
sys.stdout.flush()
os._exit(0)
"""


class EnvironmentTest(ScriptTest):
    """Starts the script with a Python that has neither numpy nor Pillow."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        bare = cls.root / "bare"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
        cls.python = bare / "bin" / "python"
        pip = cls.root / "stand-in" / "pip"
        pip.mkdir(parents=True)
        (pip / "__init__.py").touch()
        (pip / "__main__.py").write_text(STAND_IN, encoding="utf-8")
        # Stand-ins for the libraries that the small environment lacks.
        for name in ("torch", "diffusers", "transformers"):
            (cls.root / "large" / name).mkdir(parents=True)
            (cls.root / "large" / name / "__init__.py").touch()
        (cls.root / "large" / "torch" / "__init__.py").write_text(TORCH, encoding="utf-8")

    def setUp(self):
        super().setUp()
        self.cache = self.folder / "cache"
        self.calls = self.folder / "calls"
        self.calls.touch()
        libraries = {str(Path(module.__file__).parent.parent) for module in (numpy, PIL, safetensors)}
        self.environment |= {
            "PRIOR_EMBED_CACHE": str(self.cache), "PYTHONPATH": str(self.root / "stand-in"), "CALLS": str(self.calls),
            "LIBRARIES": "\n".join(sorted(libraries)),
        }  # fmt: skip
        self.content = npy(embeddings(1))

    def decode(self, **environment):
        """`(status, standard output, standard error)` of a run that should name an emoji."""
        return self.run_script("-", "--nearest", "1", stdin=self.content, env=self.environment | environment)

    def assert_decoded(self, result, *said):
        """The run went well and said these things, a line each."""
        status, out, err = result
        self.assertEqual(status, 0, err)
        self.assertEqual(len(out.splitlines()), 1)
        lines = err.splitlines()
        self.assertEqual(len(lines), len(said), err)
        for line, text in zip(lines, said):
            self.assertRegex(line, f"^decode: .*{text}")

    def assert_failed(self, result, text):
        """The run failed with a line, after perhaps one that says what was tried."""
        status, out, err = result
        self.assertEqual((status, out), (1, b""), err)
        self.assertIn(text, err.splitlines()[-1])
        self.assertLessEqual(len(err.splitlines()), 2, err)

    def installs(self):
        """How often pip was to install."""
        return len(self.calls.read_text(encoding="utf-8").splitlines())

    def wait_for_pip(self):
        """Until pip is at work."""
        deadline = time.monotonic() + 60
        while not self.installs():
            self.assertLess(time.monotonic(), deadline, "pip was not called")
            time.sleep(0.01)

    def test_installs_once_and_keeps_standard_input(self):
        self.assert_decoded(self.decode(), "installing numpy, pillow, safetensors into .*, once")
        self.assert_decoded(self.decode())
        self.assertEqual(self.installs(), 1)
        pins = (self.project / "scripts" / "requirements.txt").read_text(encoding="utf-8").split()
        called = self.calls.read_text(encoding="utf-8").split()
        self.assertEqual({word.split("==")[0] for word in called if "==" in word}, {"numpy", "pillow", "safetensors"})
        self.assertLessEqual({word for word in called if "==" in word}, set(pins))
        self.assertEqual(sorted(path.name for path in self.cache.iterdir()), ["decode", "decode.lock"])

    def test_with_the_real_pip(self):
        """This one needs the package index."""
        del self.environment["PYTHONPATH"]
        self.assert_decoded(self.decode(), "installing")
        self.assert_decoded(self.decode())

    def test_mistakes_are_found_before_anything_is_installed(self):
        self.fail_with("nothing to do", "-")
        self.assertFalse(self.cache.exists())

    def test_other_pins_install_anew(self):
        self.decode()
        requirements = self.project / "scripts" / "requirements.txt"
        old = requirements.read_text(encoding="utf-8")
        self.addCleanup(requirements.write_text, old, encoding="utf-8")
        requirements.write_text(old.replace("pillow==", "pillow==1"), encoding="utf-8")
        self.assert_decoded(self.decode(), "installing")
        self.assertEqual(self.installs(), 2)

    def test_an_install_that_was_cut_off_is_made_again(self):
        environment = self.environment | {"HOLD": str(self.folder)}
        process = self.start("-", "--nearest", "1", env=environment, start_new_session=True)
        self.wait_for_pip()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        self.assertFalse((self.cache / "decode" / "installed").exists())
        self.assert_decoded(self.decode(), "installing")

    def test_two_at_once_install_once(self):
        hold = self.write("hold", b"")
        environment = self.environment | {"HOLD": str(hold)}
        first = self.start("-", "--nearest", "1", env=environment)
        self.wait_for_pip()
        second = self.start("-", "--nearest", "1", env=environment)
        self.assertIn(b"waiting", second.stderr.readline())
        hold.unlink()
        for process, said in ((first, ["installing"]), (second, [])):
            out, err = process.communicate(self.content, timeout=60)
            self.assert_decoded((process.returncode, out, err.decode()), *said)
        self.assertEqual(self.installs(), 1)

    def test_damage_is_repaired(self):
        self.decode()
        (libraries,) = self.cache.rglob("libraries.pth")
        libraries.unlink()
        self.assert_decoded(self.decode(), "damaged .*numpy", "installing")
        self.assertEqual(self.installs(), 2)
        (self.cache / "decode" / "bin" / "python").unlink()
        self.assert_decoded(self.decode(), "installing")
        self.assert_decoded(self.decode())

    def test_libraries_that_never_work(self):
        for _ in range(2):
            result = self.decode(LIBRARIES=str(self.folder))
            self.assertEqual(result[0], 1)
            self.assertIn("do not work (numpy: No module named 'numpy')", result[2].splitlines()[-1])

    def test_pip_fails(self):
        self.assert_failed(self.decode(BROKEN="1"), "could not be installed: the line fell over")
        self.assertFalse((self.cache / "decode" / "installed").exists())

    def test_there_is_no_pip(self):
        hidden = self.root / "hidden"
        shutil.copytree(self.root / "stand-in", hidden, dirs_exist_ok=True)
        (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['ensurepip'] = None\n", encoding="utf-8")
        self.assert_failed(self.decode(NO_PIP="1", PYTHONPATH=str(hidden)), "install pip")

    def test_a_cache_that_cannot_be_written(self):
        blocked = self.write("blocked", b"")
        self.assert_failed(self.decode(PRIOR_EMBED_CACHE=str(blocked)), "PRIOR_EMBED_CACHE")

    def test_isolated_mode(self):
        command = [str(self.python), "-I", str(self.project / "scripts" / "decode.py"), "-"]
        result = subprocess.run(command, input=b"", capture_output=True, env=self.environment, check=False)
        self.assertEqual(result.returncode, 2)
        self.assertIn(b"nothing to do", result.stderr)

    def test_diffusers_come_from_the_reference_and_the_hub_is_not_kept_out(self):
        arguments = ("-", "--decoder", "kandinsky-2.2", "--guidance-scale", "1", "--out", "a.png")
        content = npy(embeddings(1, 1280))
        result = self.run_script(*arguments, stdin=content, env=self.environment | {"BROKEN": "1"})
        self.assert_failed(result, "could not be installed: the line fell over")
        large = f"{self.environment['LIBRARIES']}\n{self.root / 'large'}"
        result = self.run_script(*arguments, stdin=content, env=self.environment | {"LIBRARIES": large})
        self.assertEqual((result[0], result[1].decode()), (0, f"{' '.join(arguments)} offline=\n"), result[2])
        self.assertRegex(result[2], r"\Adecode: installing torch, diffusers, .* into .*/reference \(several GB.*\), once\n\Z")
        called = self.calls.read_text(encoding="utf-8").splitlines()
        self.assertIn("--no-deps open_clip_torch==", called[-1])
        pins = (self.project / "scripts" / "requirements.txt").read_text(encoding="utf-8").split()
        self.assertEqual({word for word in called[-2].split() if "==" in word}, {pin for pin in pins if "==" in pin})

    def test_large_libraries_that_do_not_work_are_not_installed_twice(self):
        arguments = ("-", "--decoder", "karlo", "--out", "a.png")
        result = self.run_script(*arguments, stdin=npy(embeddings(1, 768)))
        self.assert_failed(result, "do not work (No module named 'torch'); delete that folder")

    def test_the_nearest_emoji_need_no_diffusers(self):
        result = self.run_script("-", "--nearest", "1", "--decoder", "karlo", stdin=self.content)
        self.assert_decoded(result, "installing numpy")
