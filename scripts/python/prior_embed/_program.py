"""Where the program is, and the libtorch that it runs with.

The program is an ELF file in this package, linked to libtorch without a path to it. It runs with the first of these:

- `LIBTORCH`, if that is set, as in the build;
- an installed torch of the version that it was built with, with its CUDA libraries if there is a GPU;
- a libtorch for the CPU in the per-user cache, which is fetched once.

This runs at every start of the program, so it imports as little as it can: not torch, not even importlib.metadata.
"""

from __future__ import annotations

import os
import sys

from . import _libtorch
from ._cache import cache_folder
from ._libtorch import VERSION, Unavailable

PACKAGE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.path.join(PACKAGE, "bin", "prior-embed")


def program() -> str:
    """The path of the program: `PRIOR_EMBED_PROGRAM`, or the one in this package. Raises Unavailable."""
    own = os.environ.get("PRIOR_EMBED_PROGRAM")
    if own:
        return own
    if not os.path.exists(PROGRAM):
        raise Unavailable(
            "this installation of prior_embed holds no program for this platform; build a wheel with "
            "scripts/wheel, or set PRIOR_EMBED_PROGRAM to a program built with cargo"
        )
    return PROGRAM


def installed_torch() -> str | None:
    """The folder of the libraries of an installed torch, if it is of the right version."""
    for entry in sys.path:
        folder = os.path.join(entry or os.curdir, "torch")
        try:
            with open(os.path.join(folder, "version.py"), encoding="utf-8") as file:
                version = next((line for line in file if line.startswith("__version__")), "")
        except OSError:
            if os.path.isfile(os.path.join(folder, "__init__.py")):
                return None  # What `import torch` would find.
            continue
        # `__version__ = '2.13.0+cpu'`; what follows the plus sign is the kind of the build.
        lib = os.path.join(folder, "lib")
        release = version.partition("=")[2].strip(" \"'\n").partition("+")[0]
        return lib if release == VERSION and os.path.exists(os.path.join(lib, "libtorch_cpu.so")) else None
    return None


def has_gpu() -> bool:
    """Whether there is a GPU of NVIDIA's and a driver for it."""
    return os.path.exists("/dev/nvidiactl")


def libtorch() -> str | None:
    """The folder of the libraries, if nothing must be fetched for them. Raises Unavailable."""
    own = os.environ.get("LIBTORCH")
    if own:
        lib = os.path.join(own, "lib")
        if not os.path.exists(os.path.join(lib, "libtorch_cpu.so")):
            raise Unavailable(f"LIBTORCH={own} holds no lib/libtorch_cpu.so; correct or unset it")
        return lib
    installed = installed_torch()
    if installed:
        return installed
    folder = cache_folder() / f"libtorch-{VERSION}-cpu"
    return str(folder / "lib") if _libtorch.intact(folder, "lib/") else None


def fetch() -> str:
    """The folder of the libraries in the cache, fetched if need be. Raises Unavailable."""
    from ._fetch import fetch_libtorch

    try:
        return str(fetch_libtorch(say) / "lib")
    except OSError as error:
        where = error.filename or cache_folder()
        raise Unavailable(
            f"{error.strerror or error}: {where}; PRIOR_EMBED_CACHE can name another cache folder"
        ) from None


def say(message: str) -> None:
    """A line on standard error, as the program's own."""
    print(f"prior-embed: {message}", file=sys.stderr, flush=True)


def environment(lib: str) -> dict[str, str]:
    """That of the program, so that it finds its libraries in `lib`."""
    variables = dict(os.environ)
    before = variables.get("LD_LIBRARY_PATH")
    variables["LD_LIBRARY_PATH"] = f"{lib}:{before}" if before else lib
    cuda = os.path.join(lib, "libtorch_cuda.so")
    if os.path.exists(cuda) and has_gpu():
        # The program itself needs nothing of it, and so does not load it.
        before = variables.get("LD_PRELOAD")
        variables["LD_PRELOAD"] = f"{cuda}:{before}" if before else cuda
    return variables


def command() -> tuple[str, dict[str, str]]:
    """The program and its environment; libtorch is fetched if need be. Raises Unavailable."""
    path = program()
    if path != PROGRAM:
        return path, dict(os.environ)  # It knows where its libraries are.
    return path, environment(libtorch() or fetch())
