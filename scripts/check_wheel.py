#!/usr/bin/env python3
"""Installs the wheel in fresh virtual environments outside the repository, and embeds: python3 scripts/check_wheel.py

Without torch, with a torch 2.13.0 (that of the reference environment, by a .pth file) and with one of another version.
With --fetch, libtorch is fetched from the package index (540 MB), by two processes at once, with pip and without. Times
of a first embedding are printed. Without a WHEEL it is built around the program in target/release.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
from tools import environments  # noqa: E402
from tools.built import BINARY, ROOT, SCRIPTS  # noqa: E402
from tools.cache import cache_folder  # noqa: E402
from tools.problem import Problem  # noqa: E402

PROMPT = "a red apple"
OWN = ("LIBTORCH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PRIOR_EMBED_CACHE", "PRIOR_EMBED_PROGRAM")

# Fails if the numbers are not those of the file.
FIRST = f"""
import sys
from prior_embed import PriorPipeline
with PriorPipeline.from_pretrained() as prior:
    embeds = prior({PROMPT!r}, seed=0, output_type="np").image_embeds
    import numpy
    assert numpy.array_equal(embeds, numpy.load(sys.argv[1]))
assert "torch" not in sys.modules
"""


def say(message):
    """A line for the person at the terminal."""
    print(f"check_wheel: {message}", file=sys.stderr, flush=True)


class Place:
    """A folder for environments and what they write."""

    def __init__(self, folder, wheel):
        self.folder, self.wheel = folder, wheel
        self.environment = {name: value for name, value in os.environ.items() if name not in OWN}
        self.expected = folder / "expected.npy"
        subprocess.run([BINARY, "-p", PROMPT, "-o", self.expected, "-q"], check=True, cwd=folder)

    def make(self, name, sites=(), with_pip=False):
        """A virtual environment with the wheel, and packages of others in its path."""
        home = self.folder / name
        subprocess.run([sys.executable, "-m", "venv", *([] if with_pip else ["--without-pip"]), home], check=True)
        install = ["install", "--quiet", "--disable-pip-version-check", *(["--no-deps"] if sites else []), self.wheel]
        base = getattr(sys, "_base_executable", sys.executable)
        python = home / "bin" / "python"
        subprocess.run([base, "-m", "pip", "--python", python, *install], check=True, env=self.environment)
        (site,) = home.glob("lib/python*/site-packages")
        (site / "others.pth").write_text("".join(f"{path}\n" for path in sites), encoding="utf-8")
        return home / "bin"

    def run(self, command, cache, **options):
        """A finished process that did not fail."""
        variables = {**self.environment, "PRIOR_EMBED_CACHE": str(cache)}
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, encoding="utf-8", **options)
        if done.returncode != 0:
            raise Problem(f"{command[0]} failed: {environments.explain(done.stderr)}")
        return done

    def embed(self, bin_folder, cache):
        """Embeds with the program and with the pipeline, and compares. The seconds that Python took."""
        out = self.folder / "out.npy"
        self.run([bin_folder / "prior-embed", "-p", PROMPT, "-o", out, "--overwrite", "-q"], cache)
        if out.read_bytes() != self.expected.read_bytes():
            raise Problem("the installed program has other numbers")
        start = time.monotonic()
        self.run([bin_folder / "python", "-c", FIRST, self.expected], cache)
        return time.monotonic() - start

    def check_help(self, bin_folder, cache):
        """What needs no libtorch."""
        for arguments in (["--version"], ["--help"], ["-h"], ["merge", "--help"]):
            found, expected = (
                self.run([program, *arguments], cache).stdout for program in (bin_folder / "prior-embed", BINARY)
            )
            if found != expected:
                raise Problem(f"the launcher has another answer to {' '.join(arguments)}")


def site_packages(environment):
    """Where an environment's packages are."""
    return next(environment.folder.glob("lib/python*/site-packages"))


def check_no_torch(place, numpy):
    """libtorch from the cache; help without one."""
    bin_folder, empty = place.make("without", [numpy]), place.folder / "empty"
    place.check_help(bin_folder, empty)
    if empty.exists():
        raise Problem("--help or --version wrote into the cache")
    times, bare = [], []
    for _ in range(8):
        times.append(place.embed(bin_folder, cache_folder()))
        start = time.monotonic()
        place.run([BINARY, "-p", PROMPT, "-o", "bare.npz", "--overwrite", "-q"], cache_folder())
        bare.append(time.monotonic() - start)
    print(f"without torch: passed; first embedding in Python {min(times):.2f} s, by the bare program {min(bare):.2f} s")


def check_torch(place, numpy):
    """libtorch of an installed torch, with an empty cache; not one of another version."""
    environments.reference().ensure(say)
    bin_folder, empty = place.make("with", [site_packages(environments.reference())]), place.folder / "empty"
    seconds = place.embed(bin_folder, empty)
    if empty.exists():
        raise Problem("an installed torch was not used")
    print(f"with torch: passed; first embedding {seconds:.2f} s")
    other = place.folder / "other" / "torch"
    (other / "lib").mkdir(parents=True)
    (other / "lib" / "libtorch_cpu.so").write_text("no library", encoding="utf-8")
    (other / "version.py").write_text("__version__ = '2.12.0'\n", encoding="utf-8")
    place.embed(place.make("another", [other.parent, numpy]), cache_folder())
    print("with another torch: passed")


def check_fetch(place, numpy):
    """libtorch from the index."""
    for with_pip in (True, False):
        bin_folder, cache = place.make(f"fetching-{with_pip}", [numpy], with_pip), place.folder / f"cache-{with_pip}"
        start = time.monotonic()
        variables = {**place.environment, "PRIOR_EMBED_CACHE": str(cache)}
        command = [bin_folder / "prior-embed", "-p", PROMPT, "--overwrite", "-q", "-o"]
        runs = [subprocess.Popen([*command, place.folder / f"{run}.npy"], env=variables, stderr=subprocess.PIPE,
                                 encoding="utf-8") for run in range(2)]  # fmt: skip
        said = "".join(run.communicate()[1] for run in runs)
        if any(run.returncode for run in runs):
            raise Problem(f"fetching failed: {environments.explain(said)}")
        if said.count("fetching libtorch") != 1 or said.count("waiting for it") > 1:
            raise Problem(f"two at once do not fetch once: {said}")
        for run in range(2):
            if (place.folder / f"{run}.npy").read_bytes() != place.expected.read_bytes():
                raise Problem("what was fetched gives other numbers")
        shutil.rmtree(cache)
        print(f"fetching {'with' if with_pip else 'without'} pip: passed in {time.monotonic() - start:.0f} s")


def main(arguments):
    """Runs the checks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("wheel", nargs="?", type=Path, metavar="WHEEL")
    parser.add_argument("--fetch", action="store_true", help="fetch libtorch too")
    options = parser.parse_args(arguments)
    try:
        environments.decoding().ensure(say)
        numpy = site_packages(environments.decoding())
        with tempfile.TemporaryDirectory(prefix="check-wheel-") as name:
            folder = Path(name)
            if ROOT in folder.resolve().parents:
                raise Problem(f"{folder} is in the repository")
            wheel = options.wheel and options.wheel.resolve(strict=True)
            if wheel is None:
                command = [SCRIPTS / "wheel", "--program", BINARY, "--out", folder]
                wheel = Path(
                    subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout.strip()
                )
            place = Place(folder, wheel)
            check_no_torch(place, numpy)
            check_torch(place, numpy)
            if options.fetch:
                check_fetch(place, numpy)
    except (Problem, OSError, subprocess.CalledProcessError) as problem:
        say(str(problem))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
