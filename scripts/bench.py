#!/usr/bin/env python3
"""Measures prior-embed; scripts/README.md tells what each command needs and how long it takes.

    scripts/reference-python scripts/bench.py [speed] [OPTIONS]     times against diffusers' and the machine's limits
    scripts/reference-python scripts/bench.py quality [OPTIONS]     how close bf16 and int8 come to f32
    scripts/reference-python scripts/bench.py load-times [OPTIONS]  loading safetensors and .bin
    scripts/reference-python scripts/bench.py encode-image [OPTIONS]  pictures against transformers
    scripts/reference-python scripts/bench.py cost [OPTIONS]        rows a second a core, and what millions cost
    python3 scripts/bench.py scale [OPTIONS]                        memory and overhead of long runs
    scripts/reference-python scripts/bench.py search [OPTIONS]      exact search of a bank

`speed` is the default. COMMAND --help lists the options of one.
"""

import importlib
import sys

COMMANDS = {
    "speed": "speed",
    "quality": "quality",
    "load-times": "load_times",
    "encode-image": "encode_image",
    "cost": "cost",
    "scale": "scale",
    "search": "search",
}


def main(arguments):
    """The exit status of a command."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    name, rest = "speed", arguments
    if arguments and arguments[0] in COMMANDS:
        name, rest = arguments[0], arguments[1:]
    elif arguments and not arguments[0].startswith("-"):
        print(f"bench: no command {arguments[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    # Imported when it is wanted: `scale` does without the reference's libraries.
    return importlib.import_module(f"tools.benchmark.{COMMANDS[name]}").main(f"bench.py {name}", rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
