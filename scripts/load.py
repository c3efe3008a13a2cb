#!/usr/bin/env python3
"""Measures `prior-embed serve` under load: scripts/reference-python scripts/load.py [--model karlo] [OPTIONS]

Throughput and latency by the number of clients, each of which sends a prompt of its own and waits for its row: our server, the
same taking one row at a time, and a FastAPI server around diffusers; beside them the command line's own batches. Then what
HTTP, queue and JSON cost, and what idle connections take. `--soak MINUTES` keeps the server under mixed load in their place and
watches its memory. The load comes from oha, which the first run builds into the cache.
"""

import sys

from tools.benchmark.load import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
