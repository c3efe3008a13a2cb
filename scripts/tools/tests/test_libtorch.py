"""Tests of libtorch.py. They need no network: pip gets made-up wheels from a folder.

Each run of the script is a process of its own, as in real use, with small wheels pinned
in place of the real ones. Where pip itself is not in question a stand-in takes its part.
"""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import zipfile
from pathlib import Path

import libtorch

from ..built import SCRIPTS

# A virtual environment may have no pip.
PYTHON = getattr(sys, "_base_executable", sys.executable)

# Runs libtorch.py with the pins and the repository of a test.
RUN = """
import signal, sys
from pathlib import Path
for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs start with SIGINT ignored
    signal.signal(number, signal.SIG_DFL)
scripts, repository, pin, *arguments = sys.argv[1:]
sys.path.insert(0, scripts)
sys.dont_write_bytecode = True
import libtorch
libtorch.PAUSES = (0, 0)
libtorch.REPOSITORY = Path(repository)
machine = libtorch.platform.system(), libtorch.platform.machine()
libtorch.BUILDS = {machine: libtorch.Build(1, (libtorch.Wheel(*eval(pin)),))}
sys.exit(libtorch.main(arguments))
"""

# A `pip` that notes each call and copies the wheel, or does what a test asks of it.
STAND_IN = """
import os, shutil, sys, time
with open(os.environ["CALLS"], "a") as calls:
    calls.write("call\\n")
folder = sys.argv[sys.argv.index("--dest") + 1]
shutil.copy(os.environ["WHEEL"], folder)
time.sleep(float(os.environ.get("SLOW", "0")))
while os.path.exists(os.environ.get("HOLD", "")):
    time.sleep(0.01)
if "BROKEN" in os.environ:
    sys.exit("WARNING: this is not the reason\\nERROR: the line fell over\\n[notice] nor is this")
"""


def make_wheel(folder: Path) -> Path:
    """A wheel that pip accepts, with files to keep and files to leave."""
    path = folder / f"torch-{libtorch.VERSION}-cp311-cp311-any.whl"
    info = f"torch-{libtorch.VERSION}.dist-info"
    files = {
        "torch/include/torch/all.h": 0o644,
        "torch/lib/libc10.so": 0o755,
        "torch/lib/libtorch_cpu.so": 0o755,
        "torch/lib/libgomp.so.1": 0o755,
        "torch/lib/libtorch_cuda.so": 0o755,
        "torch/lib/libtorch_python.so": 0o755,
        "torch/nn/functional.py": 0o644,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (0o100000 | mode) << 16
            archive.writestr(member, f"this is {name}")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {libtorch.VERSION}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


class LibtorchTest(unittest.TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        self.cache = self.folder / "cache"
        self.installed = self.cache / f"libtorch-{libtorch.VERSION}-cpu"
        self.repository = self.folder / "repository"
        self.config = self.repository / ".cargo" / "config.toml"
        self.config.parent.mkdir(parents=True)
        self.calls = self.folder / "calls"
        self.calls.touch()
        wheels = self.folder / "wheels"
        wheels.mkdir()
        self.wheel = make_wheel(wheels)
        content = self.wheel.read_bytes()
        self.size, self.sha256 = len(content), hashlib.sha256(content).hexdigest()
        stand_in = self.folder / "stand-in" / "pip"
        stand_in.mkdir(parents=True)
        (stand_in / "__init__.py").touch()
        (stand_in / "__main__.py").write_text(STAND_IN, encoding="utf-8")
        # In the order of their appearance: for the script, for the stand-in, for the real pip.
        self.environment = {key: value for key, value in os.environ.items()
                            if key not in ("LIBTORCH", "SLOW", "HOLD", "BROKEN") and not key.startswith("PIP_")}
        self.environment.update(
            PRIOR_EMBED_CACHE=str(self.cache), PYTHONDONTWRITEBYTECODE="1",
            PYTHONPATH=str(stand_in.parent), CALLS=str(self.calls), WHEEL=str(self.wheel),
            PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        pin = repr((f"torch=={libtorch.VERSION}", "any", self.size, self.sha256))
        return subprocess.Popen(
            [PYTHON, "-c", RUN, str(SCRIPTS), str(self.repository), pin, *arguments],
            env={**self.environment, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            encoding="utf-8", start_new_session=True)

    def run_script(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=60)
        self.assertNotIn("Traceback", err)
        return process.returncode, out, err

    def pip_calls(self) -> int:
        return len(self.calls.read_text(encoding="utf-8").splitlines())

    def wait_for_pip(self) -> None:
        deadline = time.monotonic() + 30
        while not self.pip_calls():
            self.assertLess(time.monotonic(), deadline, "pip was not called")
            time.sleep(0.01)

    def assert_installed(self, result: tuple[int, str, str]) -> None:
        code, out, err = result
        self.assertEqual((code, out), (0, f"{self.installed}\n"), err)
        self.assertTrue(libtorch.intact(self.installed))

    def assert_nothing_left(self) -> None:
        self.assertEqual([path.name for path in self.cache.iterdir()], ["libtorch.lock"])
        self.assertFalse(self.config.exists())

    def test_installs_what_is_needed_with_the_real_pip(self) -> None:
        self.assert_installed(self.run_script(PYTHONPATH=""))
        lib = self.installed / "lib"
        expected = {"libc10.so", "libtorch_cpu.so", "libgomp.so.1"}
        if platform.system() == "Linux":
            expected |= {"libtorch.so", "libgomp.so"}
        self.assertEqual({path.name for path in lib.iterdir()}, expected)
        self.assertTrue(os.access(lib / "libc10.so", os.X_OK))
        self.assertFalse(os.access(self.installed / "include" / "torch" / "all.h", os.X_OK))
        self.assertEqual((self.installed / "build-version").read_text(encoding="utf-8").strip(), libtorch.VERSION)
        self.assertIn(f'LIBTORCH = "{self.installed}"', self.config.read_text(encoding="utf-8"))

    def test_a_wheel_with_the_wrong_hash_is_refused_by_the_real_pip(self) -> None:
        self.sha256 = "0" * 64
        code, out, err = self.run_script(PYTHONPATH="")
        self.assertEqual((code, out), (1, ""))
        self.assertIn("DO NOT MATCH THE HASHES", err)
        self.assert_nothing_left()

    def test_a_wheel_of_the_wrong_size_is_refused(self) -> None:
        self.size += 1
        code, out, err = self.run_script()
        self.assertEqual((code, out), (1, ""))
        self.assertIn(f"wheel of {self.size:,} bytes", err)
        self.assert_nothing_left()

    def test_pip_is_tried_three_times_and_its_error_shown(self) -> None:
        code, out, err = self.run_script(BROKEN="1")
        self.assertEqual((code, out), (1, ""))
        self.assertEqual(self.pip_calls(), 3)
        self.assertTrue(err.endswith("libtorch: pip failed: the line fell over\n"), err)
        self.assert_nothing_left()

    def test_an_interruption_leaves_nothing(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number):
                self.calls.write_text("")
                process = self.start(SLOW="60")
                self.wait_for_pip()
                process.send_signal(number)
                out, err = process.communicate(timeout=30)
                self.assertEqual((process.returncode, out), (128 + number, ""))
                self.assertNotIn("Traceback", err)
                self.assert_nothing_left()

    def test_what_a_killed_run_left_is_removed(self) -> None:
        process = self.start(SLOW="60")
        self.wait_for_pip()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        self.assertFalse(self.installed.exists())
        self.assertEqual(len(list(self.cache.glob("*.part-*"))), 1)
        self.assert_installed(self.run_script())
        self.assertEqual(list(self.cache.glob("*.part-*")), [])

    def test_two_at_once_do_the_work_once(self) -> None:
        hold = self.folder / "hold"
        hold.touch()
        first = self.start(HOLD=str(hold))
        self.wait_for_pip()
        second = self.start(HOLD=str(hold))
        assert second.stderr
        self.assertIn("waiting", second.stderr.readline())
        hold.unlink()
        for process in (first, second):
            out, err = process.communicate(timeout=60)
            self.assert_installed((process.returncode, out, err))
        self.assertEqual(self.pip_calls(), 1)

    def test_a_damaged_installation_is_made_again(self) -> None:
        def shorten(path: Path) -> None:
            path.write_bytes(path.read_bytes()[:-1])

        self.assert_installed(self.run_script())
        self.assert_installed(self.run_script())
        self.assertEqual(self.pip_calls(), 1)
        damages = (shorten, Path.unlink)
        for calls, damage in enumerate(damages, start=2):
            damage(self.installed / "lib" / "libtorch_cpu.so")
            result = self.run_script()
            self.assert_installed(result)
            self.assertIn("damaged", result[2])
            self.assertEqual(self.pip_calls(), calls)

    def test_libtorch_of_the_user_is_left_alone(self) -> None:
        own = self.folder / "own"
        (own / "include").mkdir(parents=True)
        code, out, err = self.run_script(LIBTORCH=str(own))
        self.assertEqual((code, out), (2, ""))
        self.assertIn("LIBTORCH", err)
        (own / "lib").mkdir()
        (own / "lib" / "libtorch_cpu.so").touch()
        self.assertEqual(self.run_script(LIBTORCH=str(own)), (0, f"{own}\n", ""))
        self.assertEqual(self.pip_calls(), 0)
        self.assertFalse(self.config.exists())

    def test_only_its_own_cargo_config_is_replaced(self) -> None:
        self.config.write_text("[net]\noffline = true\n", encoding="utf-8")
        result = self.run_script()
        self.assert_installed(result)
        self.assertIn("config.toml", result[2])
        self.assertEqual(self.config.read_text(encoding="utf-8"), "[net]\noffline = true\n")
        self.config.write_text(f"{libtorch.MARKER}\n[env]\nLIBTORCH = '/elsewhere'\n", encoding="utf-8")
        self.assert_installed(self.run_script())
        self.assertIn(f'LIBTORCH = "{self.installed}"', self.config.read_text(encoding="utf-8"))
        self.assertEqual([path.name for path in self.config.parent.iterdir()], ["config.toml"])

    def test_problems_of_the_machine_are_found_before_the_download(self) -> None:
        blocked = self.folder / "file"
        blocked.touch()
        self.size = 10 ** 18
        for text, environment in (("GB free", {}),
                                  ("no C++ compiler", {"PATH": "", "CXX": ""}),
                                  ("PRIOR_EMBED_CACHE", {"PRIOR_EMBED_CACHE": str(blocked)})):
            with self.subTest(text):
                code, out, err = self.run_script(**environment)
                self.assertEqual((code, out), (1, ""))
                self.assertIn(text, err)
                self.assertEqual(self.pip_calls(), 0)

    def test_destinations(self) -> None:
        for member, target in (
                ("torch/include/ATen/ATen.h", "include/ATen/ATen.h"),
                ("torch/lib/libarm_compute.so", "lib/libarm_compute.so"),
                ("torch/lib/libgfortran.so.5", "lib/libgfortran.so.5"),
                ("torch/lib/libnvpl_blas_lp64_gomp.so.0", "lib/libnvpl_blas_lp64_gomp.so.0"),
                ("torch/lib/libomp.dylib", "lib/libomp.dylib"),
                ("torch/lib/libtorch.dylib", "lib/libtorch.dylib"),
                ("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13"),
                ("torch/include/", None), ("torch/lib/libtorch.so", None), ("torch/lib/libshm/err.h", None),
                ("torch/lib/libcaffe2_nvrtc.so", None), ("torch/lib/libtorch_nvshmem.so", None),
                ("torch/_C.cpython-311-darwin.so", None), ("nvidia/cu13/lib/libcheckpoint.so", None)):
            with self.subTest(member):
                self.assertEqual(libtorch.destination(member), target)
