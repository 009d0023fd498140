"""Measures the test accuracy and the minutes of the notebook, as it is or changed, and keeps them.

    python -m benchmarks.accuracy                                     # what was measured
    python -m benchmarks.accuracy "half as wide"                      # measure it with the notebook's seed
    python -m benchmarks.accuracy "as it is" --seeds 1 2 3 4 5 6 7    # and with others
    python -m benchmarks.accuracy --missing                           # all that this version lacks

The names are those of `tools.exercises`. Each is trained from the start, up to its `last_iteration`; its
accuracies go into benchmarks/accuracy.csv. Nothing else should run on the machine when the minutes are to
be true. When it is interrupted, or killed, the same command goes on from its checkpoints in build/accuracy/.
They stay there; delete that folder to train anew.
"""

import argparse
import csv
import importlib.metadata
import itertools
import math
import os
import platform
import re
import statistics
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from tools.exercises import read_changes
from tools.notebook import DATA_PATH, ROOT, run_cells

RESULTS = ROOT / "benchmarks" / "accuracy.csv"
COLUMNS = ["change", "measured on", "iterations", "version", "seed"]
COLUMNS += ["accuracy in %", "minutes", "PFLOP", "machine"]

# Version 1 had other random numbers for the batches and the distortions; its rows are in the history.
VERSION = "2"

# The steps of the exercise on better networks.
LADDER = [
    "better trained",
    "small filters",
    "whole images",
    "whitening",
    "fast biases",
    "six views",
    "wider",
    "wider in lower precision",
    "79 % in half a minute",
    "half a minute in lower precision",
]

# The seeds of what is measured by --missing; the other changes with the notebook's own.
SEEDS = {
    "as it is": [42, 1, 2, 3, 4, 5, 6, 7],
    "crop and flip only": [42, 1, 2],
    "no distortions": [42, 1, 2],
    "79 % in half a minute": [42, 1, 2, 3, 4],
    "half a minute in lower precision": [42, 1, 2],
}
# These train the same network as others do, in another way.
NOT_MEASURED = ["batched distortions", "loop in TensorFlow", "all three", "several devices"]

# To choose between changes without a look at the test-set.
HELD_OUT = {
    "images_train, cls_train, labels_train = cifar10.load_training_data()": """\
images_train, cls_train, labels_train = cifar10.load_training_data()
held_out = images_train[45_000:], cls_train[45_000:], labels_train[45_000:]
images_train, cls_train, labels_train = images_train[:45_000], cls_train[:45_000], labels_train[:45_000]""",
    "images_test, cls_test, labels_test = cifar10.load_test_data()": (
        "images_test, cls_test, labels_test = held_out"
    ),
}


def machine(*more_packages):
    """Describe the GPU if there is one, the processor and the versions in a line."""
    model, details = platform.processor() or platform.machine(), []
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        model = re.search(r"model name\s*: (.*)", text)[1] if "model name" in text else model
        # The name alone may be that of several generations: Zen 4 is family 25, Zen 5 is family 26.
        if family := re.search(r"cpu family\s*: (\d+)", text):
            details.append(f"family {family[1]}")
        names = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        details += [name for name in names if f" {name} " in text]
    versions = []
    for package in ("tensorflow", "keras", "numpy", *more_packages):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu)["device_name"] for gpu in gpus]
    cores = f"{os.cpu_count()} cores of {model} ({', '.join(details) or 'unknown instructions'})"
    return f"{', '.join([*names, cores])}, Python {platform.python_version()}, {', '.join(versions)}"


def processor(row):
    """Return the name of the kind of processor that a row was measured on, which tells the minutes."""
    kinds = {
        "NVIDIA": "GPU",
        "family 25, avx2)": "Zen 3",
        "family 25, avx2, avx512f": "Zen 4",
        "family 26, avx2, avx512f": "Zen 5",
        "amx_bf16": "Xeon",
    }
    return next((name for kind, name in kinds.items() if kind in row["machine"]), "another")


def on_gpu(row):
    """Say whether a row was measured on a GPU."""
    return processor(row) == "GPU"


def read_results():
    """Return the rows of the table as dictionaries."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measured(change, iterations=None, gpu=False):
    """Return the rows of a change on the test-set with this version, on the processor or on a GPU, one for
    each seed, after so many iterations or all.
    """
    wanted = change, "test-set", VERSION, gpu
    rows = [r for r in read_results() if (r["change"], r["measured on"], r["version"], on_gpu(r)) == wanted]
    iterations = iterations or max((int(row["iterations"]) for row in rows), default=0)
    return [row for row in rows if int(row["iterations"]) == iterations]


def write_results(rows):
    """Put rows into the table, each in the place of what was measured before, on a processor or on a GPU."""
    change, measured_on, *numbers = COLUMNS[:5]
    table = {}
    for row in [*read_results(), *rows]:
        key = (row[change], row[measured_on], on_gpu(row), *(int(row[name]) for name in numbers))
        table[key] = row
    order = list(read_changes())
    ordered = sorted(table, key=lambda key: (order.index(key[0]), *key[1:]))
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table[key] for key in ordered)


def missing():
    """Return what this version lacks on this kind of machine, as pairs of a change and a seed."""
    rows = [row for row in read_results() if (row["version"], row["machine"]) == (VERSION, machine())]
    there = {(row["change"], int(row["seed"])) for row in rows if row["measured on"] == "test-set"}
    names = [name for name in read_changes() if name not in NOT_MEASURED]
    return [(name, seed) for name in names for seed in SEEDS.get(name, [42]) if (name, seed) not in there]


def operations(network):
    """Return the operations for training on one image: two for each product that is added to a sum, and
    twice as many again to calculate the gradients. What isn't a convolution or a dense layer is left out.
    """
    layers = [layer for layer in network.layers if hasattr(layer, "kernel")]
    return sum(6 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1]) for layer in layers)


def measure(change, seed, held_out, data_path):
    """Train the changed notebook and return its rows of the table."""
    this_machine = machine()
    replace = read_changes()[change] | {"random_seed": f"random_seed = {seed}"}
    begins_with_another = any("start_from" in text for text in replace.values())
    # One folder for all changes: the saver tells their checkpoints apart, and a change that concerns only
    # the testing finds the network that was trained before. What begins with another network lies apart,
    # for the saver can't tell it from the same network that begins anew. And another machine trains anew.
    folder = ROOT / "build" / "accuracy" / this_machine.replace("/", "-")
    folder /= f"{seed}, {change}" if begins_with_another else str(seed)
    notebook = run_cells(data_path, folder, replace | (HELD_OUT if held_out else {}))
    last = notebook["last_iteration"]
    notebook["optimize"](last - int(notebook["global_step"].numpy()))
    if (step := int(notebook["global_step"].numpy())) != last:
        sys.exit(f"Nothing is recorded: {folder} has {step} of {last} iterations. The same command goes on.")
    correct, _ = notebook["predict_cls_test"]()
    curve = np.array(notebook["learning_curve"])
    curve[-1, 4] = correct.mean()
    if begins_with_another:  # That one wasn't trained here.
        curve = curve[-1:]
    operations_per_step = operations(notebook["network"]) * notebook["train_batch_size"]
    return [
        {
            "change": change,
            "measured on": "5,000 held out" if held_out else "test-set",
            "iterations": str(int(step)),
            "seed": str(seed),
            "version": VERSION,
            "accuracy in %": f"{100 * accuracy:.2f}",
            "minutes": f"{seconds / 60:.2f}",
            "PFLOP": f"{step * operations_per_step / 1e15:.4f}",
            "machine": this_machine,
        }
        for step, _, _, seconds, accuracy in curve[np.isfinite(curve[:, 4])]
    ]


def mean_and_spread(rows):
    """Return the mean accuracy of rows and, of several, their standard deviation, as text in percent."""
    accuracies = [float(row["accuracy in %"]) for row in rows]
    if len(rows) == 1:
        return f"{accuracies[0]:.1f} %"
    deviation = statistics.stdev(accuracies)
    return f"{statistics.mean(accuracies):.1f} ± {deviation:.{2 if deviation < 0.05 else 1}f} %"


def mean_minutes(rows):
    """Return the mean minutes of rows as text."""
    return f"{statistics.mean(float(row['minutes']) for row in rows):.1f}"


def summarize(rows):
    """Return a table of all changes, each with the mean over its seeds, as Markdown."""
    lines = [
        "| change | measured on | iterations | version | processor | seeds | accuracy | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for names, group in itertools.groupby(rows, lambda row: [*(row[k] for k in COLUMNS[:4]), processor(row)]):
        group = list(group)
        numbers = [str(len(group)), mean_and_spread(group), mean_minutes(group)]
        lines.append(f"| {' | '.join([*names, *numbers])} |")
    return "\n".join(lines)


def main():
    known = read_changes()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("changes", nargs="*", metavar="change", help="see `python -m tools.exercises`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--held-out", action="store_true", help="on 5,000 images of the training-set")
    parser.add_argument("--missing", action="store_true", help="all that isn't measured with this version")
    parser.add_argument("--data-path", default=DATA_PATH)
    arguments = parser.parse_args()
    if unknown := set(arguments.changes) - set(known):
        parser.error(f"unknown: {', '.join(unknown)}. There are: {', '.join(known)}")

    wanted = missing() if arguments.missing else itertools.product(arguments.changes, arguments.seeds)
    for change, seed in wanted:
        print(f"\n{change}, seed {seed}", flush=True)
        write_results(measure(change, seed, arguments.held_out, arguments.data_path))
    print(summarize(read_results()))


if __name__ == "__main__":
    main()
