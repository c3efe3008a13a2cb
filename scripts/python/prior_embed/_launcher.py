"""`prior-embed` on the PATH: finds libtorch, and becomes the program."""

from __future__ import annotations

import os
import sys

from ._libtorch import Unavailable


def main() -> int:
    """The exit status, if it does not become the program."""
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-V"]):
        from . import __version__

        return tell(f"prior-embed {__version__}")
    from . import _program

    try:
        path = _program.program()
        variables = dict(os.environ)
        if path == _program.PROGRAM:
            lib = _program.libtorch()
            text = help_text(arguments) if lib is None else None
            if text is not None:
                return tell(text)
            variables = _program.environment(lib or _program.fetch())
        os.execve(path, ["prior-embed", *arguments], variables)
    except Unavailable as error:
        _program.say(f"error: {error}")
    except OSError as error:
        _program.say(f"error: {error.filename or 'the program'} cannot be run ({error.strerror})")
    except KeyboardInterrupt:
        return 130
    return 1


def tell(text: str) -> int:
    """Prints on standard output, whose reader may have seen enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def help_text(arguments: list[str]) -> str | None:
    """What the program would answer to `--help`, as it was when the wheel was made: no reason to fetch libtorch."""
    wanted = next((argument for argument in arguments if argument in ("-h", "--help")), None)
    if wanted is None:
        return None
    import json

    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin", "help.json"), encoding="utf-8") as file:
        texts: dict[str, dict[str, str]] = json.load(file)
    command = next((argument for argument in arguments if argument in texts), "")
    return texts[command][wanted]
