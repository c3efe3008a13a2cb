#!/usr/bin/env python3
"""Tests of decode.py.

    python3 scripts/test_decode.py                                  # without torch
    scripts/reference-python scripts/test_decode.py --diffusers     # and those with torch and diffusers

They run the script itself, in a copy of it that has a small decoder and a small index. If this Python lacks numpy, the
tests run where decode.py would. Names of tests may follow: decoding.tests.test_script.GridTest.
"""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
from decoding import environment  # noqa: E402
from decoding.problem import Problem  # noqa: E402

TESTS = ["decoding.tests.test_script", "decoding.tests.test_input", "decoding.tests.test_environment"]
DIFFUSERS_TESTS = ["decoding.tests.test_diffusers"]


def main(arguments):
    """Runs the tests."""
    with_diffusers = "--diffusers" in arguments
    try:
        environment.enter(Path(__file__).resolve(), arguments, with_diffusers)
    except Problem as problem:
        sys.exit(f"test_decode: {problem}")
    rest = [argument for argument in arguments if argument != "--diffusers"]
    if all(argument.startswith("-") for argument in rest):
        rest += TESTS + DIFFUSERS_TESTS if with_diffusers else TESTS
    unittest.main(module=None, argv=[sys.argv[0], *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
