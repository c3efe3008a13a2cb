"""How good the built-in model is on what its training never saw: scripts/reference-python scripts/evaluate.py."""

import sys

from emoji.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
