"""Runs pip as a process of its own, and explains why it failed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Sequence


class PipFailed(Exception):
    """What pip said last."""


def run_pip(arguments: Sequence[str], scratch: Path, pauses: Sequence[float], say: Callable[[str], None]) -> None:
    """Run pip, again after each of `pauses` (seconds); its progress goes to standard error if a person watches.

    Raises PipFailed, at once if a file does not have its hash.
    """
    # pip downloads into TMPDIR first: /tmp may be small, and scratch gets removed in any case.
    # Its cache would keep a second copy of everything.
    environment = dict(os.environ, TMPDIR=str(scratch), PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--no-cache-dir"]
    if not sys.stderr.isatty():
        command.append("--quiet")
    for pause in (*pauses, None):
        result = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if result.returncode == 0:
            return
        reason = explain(result.stderr)
        if pause is None or "DO NOT MATCH THE HASHES" in result.stderr:
            raise PipFailed(reason)
        say(f"pip failed: {reason}; trying again in {pause} s")
        time.sleep(pause)


def pip_target(*tags: str) -> list[str]:
    """pip's options for a platform and a Python other than those that run it."""
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"]
    return options + [word for tag in tags for word in ("--platform", tag)]


def explain(output: str) -> str:
    """The line of a failed command's output that says most: pip's last error, or else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # Of a traceback ("ERROR: Exception:") it is the last line.
    errors = [line for line in lines if line.startswith("ERROR:") and line != "ERROR: Exception:"]
    text = (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")
    if any("from versions: none" in line for line in lines):
        text += " (is the package index reachable?)"
    return text
