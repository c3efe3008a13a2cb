"""Tests of the scripts; scripts/test_scripts.py runs them."""

import os

# Read when the library is imported: keeps its advice from the tests' output.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
