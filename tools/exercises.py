"""The changes of the notebook that answer its exercises.

    python -m tools.exercises                     # list them
    python -m tools.exercises "half as wide"      # write exercise-half-as-wide.ipynb, to open in Jupyter

The notebook that is written says "Changed:" above each cell that was changed. `benchmarks.accuracy`
measures the same changes.
"""

import argparse
import csv

import nbformat

from tools.better_networks import LADDER
from tools.notebook import ROOT, changed_notebook

RESULTS = ROOT / "benchmarks" / "accuracy.csv"

CONV1 = 'keras.layers.Conv2D({}, 5, padding="same", kernel_initializer=relu_weights, name="layer_conv1"),'
CONV2 = 'keras.layers.Conv2D({}, 5, padding="same", kernel_initializer=relu_weights, name="layer_conv2"),'
CONV3 = 'keras.layers.Conv2D(64, 5, padding="same", activation="relu", kernel_initializer=relu_weights),'
FLATTEN = "keras.layers.Flatten(),"
FC1 = 'keras.layers.Dense({}, activation="relu", kernel_initializer=relu_weights, name="layer_fc1"),'
FC2 = 'keras.layers.Dense({}, activation="relu", kernel_initializer=relu_weights, name="layer_fc2"),'
NORMALIZE1 = 'BatchNormalization(scale=False, epsilon=0.001, name="layer_conv1_batch_normalize"),'
NORMALIZE2 = 'BatchNormalization(scale=False, epsilon=0.001, name="layer_conv2_batch_normalize"),'
RATE = "learning_rate=1e-4"
CROP = "images = random_crop(images, seed=seeds[0])"
CENTRE = "images = tf.image.resize_with_crop_or_pad(images, img_size_cropped, img_size_cropped)"
FLIP = "images = random_flip_left_right(images, seed=seeds[1])"
COLORS = (
    "images = random_hue(images, max_delta=0.05, seed=seeds[2])",
    "images = random_contrast(images, lower=0.3, upper=1.0, seed=seeds[3])",
    "images = random_brightness(images, max_delta=0.2, seed=seeds[4])",
    "images = random_saturation(images, lower=0.0, upper=2.0, seed=seeds[5])",
)
NO_COLORS = {line: f"# {line}" for line in COLORS}
INDENT = "\n            "

# For each change what `changed_notebook` replaces.
CHANGES = {
    "as it is": {},
    "crop and flip only": NO_COLORS,
    "no distortions": {CROP: CENTRE, FLIP: f"# {FLIP}"} | NO_COLORS,
    "half as wide": {
        CONV1.format(64): CONV1.format(32),
        CONV2.format(64): CONV2.format(32),
        FC1.format(256): FC1.format(128),
        FC2.format(128): FC2.format(64),
    },
    "twice as wide": {
        CONV1.format(64): CONV1.format(128),
        CONV2.format(64): CONV2.format(128),
        FC1.format(256): FC1.format(512),
        FC2.format(128): FC2.format(256),
    },
    "a third convolutional layer": {FLATTEN: f"{CONV3}{INDENT}{FLATTEN}"},
    "batch-normalization in both layers": {CONV2.format(64): f"{CONV2.format(64)}{INDENT}{NORMALIZE2}"},
    "batch-normalization in none": {f"{NORMALIZE1}{INDENT}": ""},
    "learning-rate 1e-3": {RATE: "learning_rate=1e-3"},
    "learning-rate falling from 1e-3 to 0": {
        RATE: "learning_rate=keras.optimizers.schedules.CosineDecay(1e-3, 10_000)"
    },
    **LADDER,
}


def read_results():
    """Return the rows of benchmarks/accuracy.csv as dictionaries."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measured(change, iterations=None):
    """Return the rows of a change on the test-set, one for each seed, after so many iterations or all."""
    rows = [r for r in read_results() if (r["change"], r["measured on"]) == (change, "test-set")]
    iterations = iterations or max((int(row["iterations"]) for row in rows), default=0)
    return [row for row in rows if int(row["iterations"]) == iterations]


def processor(row):
    """Return the name of the kind of processor that a row was measured on, which tells the minutes."""
    kinds = {"family 25, avx2, avx512f": "Zen 4", "family 26, avx2, avx512f": "Zen 5"}
    return next((name for kind, name in kinds.items() if kind in row["machine"]), "another")


def write(change):
    """Write the changed notebook beside the notebook itself and return its path."""
    name = change.replace(" ", "-").replace("%", "percent")
    folder = {'"CIFAR10_SAVE_DIR", "checkpoints/"': f'"CIFAR10_SAVE_DIR", "checkpoints/{name}/"'}
    notebook, changed = changed_notebook(CHANGES[change] | folder)
    for number, cell in reversed(list(enumerate(notebook.cells))):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if cell.id in changed:
            mark = nbformat.v4.new_markdown_cell(f"**Changed:** {change}", id=f"{cell.id}-changed")
            notebook.cells.insert(number, mark)
    path = ROOT / f"exercise-{name}.ipynb"
    with path.open("x", encoding="utf-8") as file:
        nbformat.write(notebook, file)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("changes", nargs="*", metavar="change", help="see the list")
    changes = parser.parse_args().changes
    unknown = set(changes) - set(CHANGES)
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}. There are: {', '.join(CHANGES)}")
    if not changes:
        print("\n".join(CHANGES))
    for change in changes:
        try:
            print(write(change))
        except FileExistsError as error:
            parser.error(f"{error.filename} is there already. Move it away first.")


if __name__ == "__main__":
    main()
