"""What the scripts' command lines have in common."""

import argparse
import sys


def number(least, most=None):
    """A type for argparse: a whole number within limits."""

    def parse(text):
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            upper = "" if most is None else f", at most {most}"
            raise argparse.ArgumentTypeError(f"it must be a whole number, at least {least}{upper}")
        return int(text)

    return parse


def parse_with_extra(parser, arguments=None):
    """The options, with everything after `--` as `extra`: arguments that go to prior-embed as they are."""
    own, extra = sys.argv[1:] if arguments is None else list(arguments), []
    if "--" in own:
        own, extra = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    options.extra = extra
    return options
