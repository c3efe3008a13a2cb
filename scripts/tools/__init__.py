"""What the scripts share. A script in the folder above is a command; the code that several of them need is here.

    built           where cargo puts the program
    cache           the project's cache folder, and locks in it
    command_line    types and conventions for argparse
    environments    virtual environments in the cache
    problem         the one kind of error that a user is shown
    benchmark/      bench.py, a module a subcommand
    decoding/       decode.py
    fixtures/       make_fixtures.py: the expected values in tests/fixtures
    models/         pipelines with random weights, from a few kilobytes up, and diffusers' runs of them
    tests/          tests of all this; test_scripts.py runs them

Only what is under benchmark, decoding, fixtures, models and tests imports more than the standard library: the rest runs
before anything is installed.
"""

import sys
from pathlib import Path

# What the Python package has too is imported from there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
