"""Child processes: run, and measured from outside."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ..built import SCRIPTS

# Settings of a BLAS library that would make a run say something about this shell instead of the programs.
NOT_PASSED_ON = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class BenchError(Exception):
    """What ends a benchmark, in words for its reader."""


def exit_status(run, failure="embeddings differ", name="bench"):
    """0 if `run()` holds. What did not hold, or what ended it, is told on standard error."""
    try:
        if run():
            return 0
        print(f"{name}: {failure}", file=sys.stderr)
    except BenchError as error:
        print(f"{name}: {error}", file=sys.stderr)
    return 1


@dataclass
class Measured:
    """A process that ended well."""

    wall_seconds: float
    peak_rss_bytes: int
    # Cores that everything else took meanwhile, other virtual machines included; None where the system does not say.
    other_cores: float | None


def child_environment():
    """The environment that all children get."""
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    environment["PYTHONPATH"] = str(SCRIPTS)
    environment["HF_HUB_OFFLINE"] = "1"
    return environment


def busy_seconds():
    """Processor seconds that this machine has not been idle since it started, or None."""
    try:
        user, nice, system, _, _, *rest = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except (OSError, ValueError, IndexError):
        return None
    return sum(map(int, [user, nice, system, *rest])) / os.sysconf("SC_CLK_TCK")


def measure(name, command):
    """Runs a command to its end; `name` is what an error calls it."""
    with tempfile.TemporaryFile() as errors:
        busy, start = busy_seconds(), time.perf_counter()
        try:
            child = subprocess.Popen(
                [str(part) for part in command],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        except OSError as error:
            raise BenchError(f"{name} does not start: {error.strerror}: {command[0]}") from error
        status, usage = wait(child)
        wall = time.perf_counter() - start
        others = None if busy is None else busy_seconds() - busy - usage.ru_utime - usage.ru_stime
        if status:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise BenchError(f"{name} ended with {status}: " + " | ".join(said[-3:]))
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(wall, usage.ru_maxrss * unit, None if others is None else max(others, 0.0) / wall)


def wait(child):
    """The exit status of a child and what it used; the child ends with this process."""
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        child.kill()
        child.wait()
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage


def module_command(module, *arguments):
    """The command that runs a module of this package in a Python of its own."""
    return [sys.executable, "-m", f"{__package__}.{module}", *arguments]


def run_module(module, *arguments):
    """Runs a module of this package; what it says goes to standard error."""
    command = [str(part) for part in module_command(module, *arguments)]
    done = subprocess.run(command, env=child_environment(), stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno())
    if done.returncode:
        raise BenchError(f"{module}.py ended with {done.returncode}")
