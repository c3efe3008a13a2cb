#!/usr/bin/env python3
"""Tests of the scripts, in tools/tests, and of the Python package, in python/tests.

    python3 scripts/test_scripts.py                                  # without torch
    scripts/reference-python scripts/test_scripts.py --reference     # and those with torch and diffusers

If this Python lacks numpy, they run where decode.py would. Names of tests may follow:
tools.tests.test_decode_script.GridTest. Those of what trains the built-in model are in emoji/test_emoji.py.
"""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
from tools.decoding import environment  # noqa: E402
from tools.problem import Problem  # noqa: E402

TESTS = [f"tools.tests.test_{name}" for name in ("libtorch", "decode_script", "decode_input", "decode_options", "environments")]
TESTS += ["tools.tests.test_cost", "python.tests.test_fetch"]
REFERENCE_TESTS = [f"tools.tests.test_{name}" for name in ("decode_diffusers", "decode_guided", "elsewhere")]
REFERENCE_TESTS += ["python.tests.test_diffusers"]


def main(arguments):
    """Runs the tests."""
    with_reference = "--reference" in arguments
    try:
        environment.enter(Path(__file__).resolve(), arguments, with_reference)
    except Problem as problem:
        sys.exit(f"test_scripts: {problem}")
    rest = [argument for argument in arguments if argument != "--reference"]
    if all(argument.startswith("-") for argument in rest):
        rest += TESTS + REFERENCE_TESTS if with_reference else TESTS
    unittest.main(module=None, argv=[sys.argv[0], *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
