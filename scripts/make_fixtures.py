"""Writes tests/fixtures: the values that diffusers and transformers give, for the tests to compare with.

Run it with `scripts/reference-python scripts/make_fixtures.py [group ...]`; the same machine gives the same bytes.
"""

import sys

from tools.fixtures import (
    autoregressive,
    builtin,
    checkpoints,
    components,
    ddpm,
    drawing,
    given,
    images,
    mixing,
    networks,
    one_step,
    pipelines,
    samplers,
    scheduling,
    shap_e,
    tokenizers,
)
from tools.models.weights import set_up

GROUPS = {
    "models": networks.write_all,
    "schedulers": scheduling.write_all,
    "ddpm": ddpm.write_all,
    "pipelines": pipelines.write_all,
    "one_step": one_step.write_all,
    "shap_e": shap_e.write_all,
    "autoregressive": autoregressive.write_all,
    "samplers": samplers.write_all,
    "components": components.write_all,
    "given": given.write_all,
    "images": images.write_all,
    "mixing": mixing.write_all,
    "checkpoints": checkpoints.write_all,
    "tokenizers": tokenizers.write_all,
    "builtin": builtin.write_all,
    "drawing": drawing.write_all,
}


def main():
    """Writes the groups named on the command line, or all."""
    set_up()
    for name in sys.argv[1:] or GROUPS:
        print(f"{name} …", file=sys.stderr)
        GROUPS[name]()


if __name__ == "__main__":
    main()
