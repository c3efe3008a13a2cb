#!/usr/bin/env python3
"""Put libtorch 2.13.0 into a per-user cache, once, and print where it is.

    scripts/libtorch.py [--cuda]

The folder printed holds include/ and lib/; nothing else goes to standard output.
On Linux the Python wheel of torch is a CUDA build whose dependencies are several GB.
Work on the CPU needs only a part of it: the headers, a few libraries, and an empty
libtorch.so in place of the one that pulls in CUDA. No Python package gets installed.

--cuda (Linux) installs the whole of torch beside it. That a program links with the
result and runs on a CPU is tested; on a GPU it has not been tried.

Environment: LIBTORCH is printed unchanged if set; PRIOR_EMBED_CACHE is the cache folder
(by default prior-embed in XDG_CACHE_HOME or ~/.cache); CXX is the C++ compiler.

The path of the CPU build also goes into .cargo/config.toml, so that plain cargo commands
find it. For another build: LIBTORCH=$(scripts/libtorch.py --cuda) cargo test.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from tools.cache import cache_folder
from tools.problem import FAILED, Problem

from prior_embed import _libtorch
from prior_embed._libtorch import BUILDS, GB, PAUSES, VERSION, Build, Unavailable, Wheel, destination, intact
from prior_embed._pip import PipFailed, pip_target, run_pip

__all__ = ["Wheel", "destination"]

REPOSITORY = Path(__file__).resolve().parent.parent
MARKER = "# Written by scripts/libtorch.py, which replaces it when libtorch moves."
# With its dependencies: to download, and on disk at the peak (5 GB remain).
CUDA_DOWNLOAD, CUDA_SPACE = 3 * GB, 8 * GB


def say(message: str) -> None:
    print(f"libtorch: {message}", file=sys.stderr, flush=True)


def failure(message: str) -> Problem:
    """A problem that is not the caller's mistake."""
    return Problem(message, FAILED)


def this_build() -> Build:
    """The build for this machine."""
    system, machine = platform.system(), platform.machine()
    build = BUILDS.get((system, machine))
    if build is None:
        raise failure(f"no libtorch {VERSION} to fetch for {system} on {machine}; "
                      "set LIBTORCH to a folder that holds one")
    return build


def from_environment(folder: str) -> str:
    """Check the user's own LIBTORCH well enough to fail here and not in the linker."""
    path = Path(folder)
    libraries = [path / "lib" / name for name in ("libtorch_cpu.so", "libtorch_cpu.dylib")]
    if not (path / "include").is_dir() or not any(lib.is_file() for lib in libraries):
        raise Problem(f"LIBTORCH={folder} holds no include/ and lib/libtorch_cpu.so; "
                      "correct or unset it")
    return folder if path.is_absolute() else str(path.absolute())


def compiler() -> list[str]:
    """The C++ compiler as words of a command: CXX may hold several, as in `ccache g++`."""
    for candidate in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise failure("no C++ compiler (c++, g++ or clang++); install one (Debian: apt-get install g++), or set CXX")


def add_link_targets(lib: Path) -> None:
    """Add what the linker asks for by name: -ltorch, and -lgomp where there is no gcc to bring it."""
    gomp = lib / "libgomp.so"
    if not gomp.exists():
        gomp.symlink_to("libgomp.so.1")
    stub = lib / "libtorch.so"
    if not stub.exists():
        command = [*compiler(), "-shared", "-nostdlib", "-Wl,-soname,libtorch.so", "-x", "c++", os.devnull]
        result = subprocess.run([*command, "-o", str(stub)], stdin=subprocess.DEVNULL, capture_output=True,
                                encoding="utf-8", errors="replace", check=False)
        if result.returncode != 0:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise failure(f"{command[0]} could not build a shared library: {reason}")


def prepare_cuda(folder: Path, scratch: Path) -> None:
    """Install torch and its dependencies; libtorch is the folder `torch` among them."""
    machine = platform.machine()
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(28, 16, -1)]
    command = ["install", "--target", str(folder), "--no-compile", f"torch=={VERSION}",
               *pip_target(*tags, f"manylinux2014_{machine}")]
    try:
        run_pip(command, scratch, PAUSES, say)
    except PipFailed as error:
        raise Unavailable(f"pip failed: {error}") from None
    (folder / "torch" / "build-version").write_text(f"{VERSION}\n", encoding="utf-8")


def check_tools() -> None:
    """Find out before a long download, not after it, what would make it useless."""
    if importlib.util.find_spec("pip") is None:
        raise failure(f"{sys.executable} has no pip; install it (Debian: apt-get install python3-pip), or set LIBTORCH")
    compiler()


def install(build: Build, folder: Path, cuda: bool) -> None:
    """Fetch libtorch into `folder`."""
    check_tools()
    # pip keeps two copies of a wheel for a moment.
    needed = CUDA_SPACE if cuda else build.size + max(build.size, build.unpacked)
    _libtorch.check_machine(folder.parent, needed)
    what = f"about {CUDA_DOWNLOAD / GB:.0f} GB with CUDA" if cuda else f"{build.size / 1e6:.0f} MB, for the CPU"
    say(f"fetching libtorch {VERSION} ({what}) into {folder}, once")

    def prepare(new: Path, scratch: Path) -> None:
        if cuda:
            prepare_cuda(new, scratch)
        else:
            fetch = functools.partial(_libtorch.download, pauses=PAUSES, say=say)
            _libtorch.prepare_cpu(build, new, scratch, fetch, say)
        if platform.system() == "Linux":
            add_link_targets((new / "torch" if cuda else new) / "lib")

    _libtorch.install(folder, prepare)
    say(f"libtorch {VERSION} is ready")


def links(folder: Path) -> bool:
    """Whether the linker finds in it what it asks for by name, once it is intact."""
    return platform.system() != "Linux" or any((folder / lib / "libtorch.so").exists() for lib in ("lib", "torch/lib"))


def cached(cuda: bool) -> Path:
    """The folder of libtorch in the cache, which is filled or repaired first if need be."""
    build = this_build()
    if cuda and platform.system() != "Linux":
        raise Problem("--cuda is for Linux")

    def make(folder: Path) -> None:
        if not intact(folder):
            install(build, folder, cuda)
        else:  # The Python package, which fetched it, links nothing.
            add_link_targets(folder / "lib")
            _libtorch.write_manifest(folder)

    variant = "cuda" if cuda else "cpu"
    folder = _libtorch.ensure(variant, make, say, lambda folder: links(folder) and intact(folder))
    return folder / "torch" if cuda else folder


def write_cargo_config(libtorch: Path) -> None:
    """Tell plain `cargo build` where libtorch is; a file someone else wrote stays as it is."""
    config = REPOSITORY / ".cargo" / "config.toml"
    text = f"{MARKER}\n[env]\nLIBTORCH = {json.dumps(str(libtorch), ensure_ascii=False)}\n"
    try:
        old = config.read_text(encoding="utf-8", errors="replace") if config.exists() else ""
        if old == text:
            return
        if old and old.split("\n", 1)[0] != MARKER:
            if "LIBTORCH" not in old:
                say(f"{config} is not mine to change; plain cargo commands need LIBTORCH={libtorch}")
            return
        config.parent.mkdir(exist_ok=True)
        part = config.with_name(f"config.toml.{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        part.replace(config)
    except OSError as error:
        say(f"cannot write {config} ({error.strerror}); plain cargo commands need LIBTORCH={libtorch}")


def stop(number: int, _frame: object) -> NoReturn:
    """Leave by an exception, so that temporary folders get removed."""
    raise SystemExit(128 + number)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cuda", action="store_true", help="the CUDA build (Linux; about 3 GB)")
    cuda = parser.parse_args(arguments).cuda
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, stop)
    try:
        own = os.environ.get("LIBTORCH")
        if own:
            print(from_environment(own))
            return 0
        libtorch = cached(cuda)
        if not cuda:  # plain cargo commands would rebuild everything at each change to and fro
            write_cargo_config(libtorch)
        print(libtorch)
        return 0
    except Problem as problem:
        say(str(problem))
        return problem.status
    except Unavailable as error:
        say(str(error))
    except OSError as error:
        say(f"{error.strerror or error}: {error.filename or cache_folder()}; "
            "PRIOR_EMBED_CACHE can name another cache folder")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
