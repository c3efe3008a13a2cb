#!/usr/bin/env python3
"""Checks and times a build of prior-embed for GPUs, on one: python3 scripts/gpu_check.py BINARY [--json FILE]

Run it with a Python that has torch for this GPU, diffusers and transformers. First the embeddings of diffusers that the tests
hold, in float32 and in 16 bits, and rows alone and in batches; then a table against diffusers in float16 on the same GPU, with
random models that are made in the cache (9 GB). It is meant to take less than eight minutes. Ends with 1 if a number is wrong.
"""

import sys

from tools.benchmark.gpu import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
