"""Measures the answers to the notebook's exercises.

    python -m benchmarks.exercises --list              # the changes, and what was measured
    python -m benchmarks.exercises "half as wide"      # measure one or more of them again
    python -m benchmarks.exercises                     # all that are not in the table yet

A row is the notebook with a change of a line or two, trained from scratch for 10,000 iterations (about 6
minutes on two cores, 20 for the network that is twice as wide) with the notebook's seed. Its test
accuracy and its minutes go into benchmarks/exercises.csv, from which the tables of the notebook are.
Nothing else should run on the machine meanwhile.
"""

import argparse
import csv
from pathlib import Path

from benchmarks.accuracy import train
from benchmarks.bench import machine
from tools.notebook import DATA_PATH

RESULTS = Path(__file__).resolve().parent / "exercises.csv"
COLUMNS = ["change", "iterations", "test accuracy in %", "minutes", "machine"]
ITERATIONS = 10_000

CONV1 = 'Conv2D({}, 5, padding="same", kernel_initializer=relu_weights, name="layer_conv1"),'
CONV2 = 'Conv2D({}, 5, padding="same", kernel_initializer=relu_weights, name="layer_conv2"),'
CONV3 = 'Conv2D(64, 5, padding="same", activation="relu", kernel_initializer=relu_weights),'
FC1 = 'keras.layers.Dense({}, activation="relu", kernel_initializer=relu_weights, name="layer_fc1"),'
FC2 = 'keras.layers.Dense({}, activation="relu", kernel_initializer=relu_weights, name="layer_fc2"),'
NORMALIZE1 = 'BatchNormalization(scale=False, epsilon=0.001, name="layer_conv1_batch_normalize"),'
NORMALIZE2 = 'BatchNormalization(scale=False, epsilon=0.001, name="layer_conv2_batch_normalize"),'
RATE = "learning_rate=1e-4"
CROP = "image = random_crop(image, seed=seeds[0])"
CENTRE = "image = tf.image.resize_with_crop_or_pad(image, img_size_cropped, img_size_cropped)"
FLIP = "image = random_flip_left_right(image, seed=seeds[1])"
COLORS = (
    "image = random_hue(image, max_delta=0.05, seed=seeds[2])",
    "image = random_contrast(image, lower=0.3, upper=1.0, seed=seeds[3])",
    "image = random_brightness(image, max_delta=0.2, seed=seeds[4])",
    "image = random_saturation(image, lower=0.0, upper=2.0, seed=seeds[5])",
)
NO_COLORS = {line: f"# {line}" for line in COLORS}

# For each change the lines of the notebook with their new text.
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
    "a third convolutional layer": {"keras.layers.Flatten(),": f"{CONV3} keras.layers.Flatten(),"},
    "batch-normalization in both layers": {CONV2.format(64): f"{CONV2.format(64)} {NORMALIZE2}"},
    "batch-normalization in none": {NORMALIZE1: ""},
    "learning-rate 1e-3": {RATE: "learning_rate=1e-3"},
    "learning-rate falling from 1e-3 to 0": {
        RATE: "learning_rate=keras.optimizers.schedules.CosineDecay(1e-3, 10_000)"
    },
}


def read_results():
    """Return the rows of the table by their change."""
    if not RESULTS.exists():
        return {}
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return {row["change"]: row for row in csv.DictReader(file)}


def write_results(results):
    """Write the table, in the order of the changes."""
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(results[change] for change in CHANGES if change in results)


def measure(change, data_path):
    """Train the changed notebook and return its row of the table."""
    _, _, _, seconds, accuracy = train(ITERATIONS, data_path, CHANGES[change])[-1]
    values = [change, ITERATIONS, f"{100 * accuracy:.2f}", f"{seconds / 60:.1f}", machine()]
    return dict(zip(COLUMNS, values, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("changes", nargs="*", metavar="change", help="a change by its name")
    parser.add_argument("--list", action="store_true", help="list the changes and what was measured")
    parser.add_argument("--data-path", default=DATA_PATH)
    arguments = parser.parse_args()
    unknown = set(arguments.changes) - set(CHANGES)
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}. There are: {', '.join(CHANGES)}")

    results = read_results()
    if arguments.list:
        for change in CHANGES:
            row = results.get(change)
            print(f"{change}: " + (", ".join(row[name] for name in COLUMNS[1:]) if row else "not measured"))
        return
    for change in arguments.changes or [change for change in CHANGES if change not in results]:
        print(f"\n{change}")
        row = measure(change, arguments.data_path)
        write_results(read_results() | {change: row})
        print(row)


if __name__ == "__main__":
    main()
