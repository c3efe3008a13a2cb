"""Writes a model folder with random weights: `python -m tools.benchmark.models SHAPE FOLDER`."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from ..models.files import write_json
from ..models.one_step import save_one_step
from ..models.pipelines import Spec, save_pipeline
from ..models.weights import set_up
from .shapes import ONE_STEP, SHAPES, read_recipe, recipe


def publish(made, folder, name):
    """Puts a finished folder into its place, unless another process was faster."""
    if folder.exists() and read_recipe(folder) != recipe(name):
        shutil.rmtree(folder)
    try:
        os.rename(made, folder)
    except OSError:
        if read_recipe(folder) != recipe(name):
            raise


def main():
    """Writes the model beside its place and moves it there, so that no half a model is ever found."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    print(f"bench: making a model of shape {name} with random weights (once)", file=sys.stderr)
    set_up()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as work:
        made = Path(work) / "model"
        save = save_one_step if name in ONE_STEP.values() else save_pipeline
        save(Spec(**SHAPES[name]), made)
        write_json(made / "recipe.json", recipe(name), indent=2)
        publish(made, folder, name)


if __name__ == "__main__":
    main()
