"""Starts decode.py again in a Python that has what it needs, if the present one has not.

That is a small virtual environment in the project's cache, or the one of `scripts/reference-python` for diffusers'
decoders. The script is started again by exec, so it keeps standard input, of which nothing has been read.
"""

import importlib
import importlib.util
import os
import sys

from .. import environments
from ..problem import FAILED, Problem

MODULES = ("numpy", "PIL.Image", "safetensors.numpy")
DIFFUSERS_MODULES = ("torch", "diffusers", "transformers")
# Says where the script was started again, so that it does not start itself for ever.
ENTERED = "PRIOR_EMBED_DECODE_ENTERED"


def enter(script, arguments, with_diffusers=False):
    """Returns if this Python will do; otherwise the script starts again in one that does, and this never returns."""
    entered = os.environ.pop(ENTERED, "")
    lacking = missing(with_diffusers)
    if not lacking:
        return
    environment = environments.reference() if with_diffusers else environments.decoding()
    folder = environment.folder
    damaged = entered == str(folder)
    # The large one is not installed twice without being asked.
    if entered == f"repaired {folder}" or (with_diffusers and damaged):
        reason = f"the libraries in {folder} do not work ({lacking}); delete that folder and run this again"
        raise Problem(reason, FAILED)
    python = environment.ensure(say, lacking if damaged else "")
    os.environ[ENTERED] = f"repaired {folder}" if damaged else str(folder)
    os.execv(python, [str(python), str(script), *arguments])


def missing(with_diffusers):
    """What this Python cannot import, and why; empty if there is nothing."""
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a library built for another Python or processor fails in many ways
            return f"{name}: {error}"
    if with_diffusers:
        # Not imported, which takes seconds: that it is installed has to do.
        for name in DIFFUSERS_MODULES:
            if importlib.util.find_spec(name) is None:
                return f"No module named '{name}'"
    return ""


def say(message):
    """A line for the person at the terminal."""
    print(f"decode: {message}", file=sys.stderr, flush=True)
