"""The parts of `scripts/decode.py`."""
