"""Sees to it that the script runs in a Python that has what it needs.

That is the one it was started with, or else one of two virtual environments in the project's cache: a small one of its
own, or the one of `scripts/reference-python` for diffusers' decoders. The script is started again in there by exec, so
it keeps standard input, of which nothing has been read.

Only the standard library and what needs no other is imported here: this runs before anything else is there.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from cache_folder import cache_folder, exclusive

from .problem import FAILED, Problem

SCRIPTS = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "pillow", "safetensors")
MODULES = ("numpy", "PIL.Image", "safetensors.numpy")
DIFFUSERS_MODULES = ("torch", "diffusers", "transformers")
OLDEST_PYTHON = (3, 11)  # of the numpy in requirements.txt
# Says where the script was started again, so that it does not start itself for ever.
ENTERED = "PRIOR_EMBED_DECODE_ENTERED"


def enter(script, arguments, with_diffusers=False):
    """Returns if this Python will do; otherwise the script starts again in one that does, and this never returns."""
    entered = os.environ.pop(ENTERED, "")
    lacking = missing(with_diffusers)
    if not lacking:
        return
    folder = cache_folder() / ("reference" if with_diffusers else "decode")
    damaged = entered == str(folder)
    if entered == f"repaired {folder}" or (with_diffusers and damaged):
        reason = f"the libraries in {folder} do not work ({lacking}); delete that folder and run this again"
        raise Problem(reason, FAILED)
    try:
        python = reference_python(folder) if with_diffusers else own_python(folder, lacking if damaged else "")
    except OSError as error:
        where = error.filename or folder
        reason = f"{error.strerror or error}: {where}; PRIOR_EMBED_CACHE can name another cache folder"
        raise Problem(reason, FAILED) from None
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


def reference_python(folder):
    """The Python that has diffusers; `scripts/reference-python` installs it if need be.

    That script keeps the hub out of what it runs, and decoders may come from there. So it runs nothing here.
    """
    command = [str(SCRIPTS / "reference-python"), "-c", "pass"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
    )
    lines = []
    for line in process.stderr:
        if line.startswith("reference-python: installing"):
            sys.stderr.write(line)  # before the long wait, not after it
            sys.stderr.flush()
        else:
            lines.append(line)
    if process.wait() != 0:
        raise Problem(f"torch and diffusers, which this decoder needs, are not there: {explain(lines)}", FAILED)
    return folder / "bin" / "python"


def own_python(folder, damage):
    """The Python that has numpy, Pillow and safetensors; they are installed if need be."""
    requirements = pins()
    folder.parent.mkdir(parents=True, exist_ok=True)
    before = state(folder)
    waiting = "another run is installing what this needs; waiting for it"
    with exclusive(folder.with_name("decode.lock"), lambda: say(waiting)):
        # Who held the lock before may have done the work.
        if (damage and state(folder) == before) or not is_complete(folder, requirements):
            install(folder, requirements, damage)
    return folder / "bin" / "python"


def pins():
    """The versions that requirements.txt names."""
    lines = (SCRIPTS / "requirements.txt").read_text(encoding="utf-8").split()
    return [line for line in lines if line.split("==")[0] in PACKAGES]


def state(folder):
    """Changes whenever something gets installed."""
    try:
        return (folder / "installed").stat().st_mtime_ns
    except OSError:
        return None


def is_complete(folder, requirements):
    """Whether the environment holds these; its stamp is written last, so an install that was cut off has none."""
    try:
        stamp = (folder / "installed").read_text(encoding="utf-8")
    except OSError:
        return False
    return stamp.split() == requirements and os.access(folder / "bin" / "python", os.X_OK)


def install(folder, requirements, damage):
    """Makes the environment from nothing."""
    if damage:
        say(f"{folder} is damaged ({damage}); making it again")
    if sys.version_info < OLDEST_PYTHON:
        here, oldest = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON))
        reason = f"numpy, pillow and safetensors are missing; install them, or use Python {oldest} on (this is {here})"
        raise Problem(reason, FAILED)
    say(f"installing {', '.join(PACKAGES)} into {folder}, once")
    stamp, python = folder / "installed", folder / "bin" / "python"
    stamp.unlink(missing_ok=True)
    # While it is made again, the environment that this very process runs in is no help.
    inside = Path(sys.prefix).resolve() == folder.resolve()
    base = getattr(sys, "_base_executable", sys.executable) if inside else sys.executable
    if run([base, "-m", "pip", "--version"]) is None:
        make = [base, "-m", "venv", "--clear", "--without-pip", str(folder)]
        pip = [base, "-m", "pip", "--python", str(python)]
    elif importlib.util.find_spec("ensurepip"):
        make = [base, "-m", "venv", "--clear", str(folder)]
        pip = [str(python), "-m", "pip"]
    else:
        reason = f"numpy, pillow and safetensors are missing, and {base} has no pip to install them; install pip"
        raise Problem(f"{reason} (Debian: apt-get install python3-pip)", FAILED)
    options = ["--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    for command in (make, [*pip, "install", *options, *requirements]):
        failure = run(command)
        if failure is not None:
            raise Problem(f"{' '.join(requirements)} could not be installed: {failure}", FAILED)
    new = stamp.with_name("installed.new")
    new.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    os.replace(new, stamp)


def run(command):
    """Runs a command without a word; None, or why it failed."""
    environment = dict(os.environ, PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    return None if result.returncode == 0 else explain(result.stdout.splitlines())


def explain(lines):
    """The line of a failed command's output that says most: pip's last error, or else the last one."""
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:") and line != "ERROR: Exception:"]
    text = (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")
    if any("from versions: none" in line for line in lines):
        text += " (is the package index reachable?)"
    return text
