"""Measures the test accuracy and the minutes of the notebook, as it is or changed, and keeps them.

    python -m benchmarks.accuracy                                     # what was measured
    python -m benchmarks.accuracy "half as wide"                      # measure it with the notebook's seed
    python -m benchmarks.accuracy "as it is" --seeds 1 2 3 4 5 6 7    # and with others

The names are those of `tools.exercises`. Each is trained from the start, up to `last_iteration` when the
changed notebook has one and for 10,000 iterations otherwise; its accuracies go into
benchmarks/accuracy.csv. Nothing else should run on the machine when the minutes are to be true. When it
is interrupted, or killed, the same command goes on from its checkpoints in build/accuracy/. They stay
there; delete that folder to train anew.
"""

import argparse
import csv
import itertools
import math
import statistics
import sys

import numpy as np

from benchmarks.bench import machine
from tools.exercises import CHANGES, RESULTS, read_results
from tools.notebook import DATA_PATH, ROOT, run_cells

COLUMNS = ["change", "measured on", "iterations", "seed", "accuracy in %", "minutes", "PFLOP", "machine"]

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


def write_results(rows):
    """Put rows into the table, in the place of those that were measured before."""
    table = {tuple(row[name] for name in COLUMNS[:4]): row for row in [*read_results(), *rows]}
    order = list(CHANGES)
    ordered = sorted(
        table.values(),
        key=lambda row: (
            order.index(row["change"]), row["measured on"], int(row["iterations"]), int(row["seed"])
        ),
    )  # fmt: skip
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)


def operations(network):
    """Return the operations for training on one image: two for each product that is added to a sum, and
    twice as many again to calculate the gradients. What isn't a convolution or a dense layer is left out.
    """
    layers = [layer for layer in network.layers if hasattr(layer, "kernel")]
    return sum(6 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1]) for layer in layers)


def measure(change, seed, held_out, data_path):
    """Train the changed notebook and return its rows of the table."""
    measured_on = "5,000 held out" if held_out else "test-set"
    this_machine = machine()
    # One folder for all changes: the saver tells their checkpoints apart, and a change that concerns only
    # the testing finds the network that was trained before. But another machine trains anew.
    folder = ROOT / "build" / "accuracy" / this_machine.replace("/", "-") / str(seed)
    replace = CHANGES[change] | {"random_seed": f"random_seed = {seed}"} | (HELD_OUT if held_out else {})
    notebook = run_cells(data_path, folder, replace)
    last = notebook.get("last_iteration", 10_000)
    notebook["optimize"](last - int(notebook["global_step"].numpy()))
    if notebook["global_step"] != last:
        sys.exit("Interrupted, so nothing is recorded. The same command goes on.")
    correct, _ = notebook["predict_cls_test"]()
    curve = notebook["learning_curve"].numpy()
    curve[-1, 4] = correct.mean()
    operations_per_step = operations(notebook["network"]) * notebook["train_batch_size"]
    return [
        {
            "change": change,
            "measured on": measured_on,
            "iterations": str(int(step)),
            "seed": str(seed),
            "accuracy in %": f"{100 * accuracy:.2f}",
            "minutes": f"{seconds / 60:.2f}",
            "PFLOP": f"{step * operations_per_step / 1e15:.4f}",
            "machine": this_machine,
        }
        for step, _, _, seconds, accuracy in curve
        if not np.isnan(accuracy)
    ]


def summarize(rows):
    """Return a table of the mean and the standard deviation over the seeds, as Markdown."""
    lines = [
        "| change | measured on | iterations | seeds | accuracy in % | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for key, group in itertools.groupby(rows, lambda row: [row[name] for name in COLUMNS[:3]]):
        group = list(group)
        accuracies, minutes = ([float(row[name]) for row in group] for name in ("accuracy in %", "minutes"))
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(group) > 1 else ""
        lines.append(
            f"| {' | '.join(key)} | {len(group)} | {statistics.mean(accuracies):.2f}{spread} | "
            f"{statistics.mean(minutes):.1f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("changes", nargs="*", metavar="change", help="see `python -m tools.exercises`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--held-out", action="store_true", help="on 5,000 images of the training-set")
    parser.add_argument("--data-path", default=DATA_PATH)
    arguments = parser.parse_args()
    if unknown := set(arguments.changes) - set(CHANGES):
        parser.error(f"unknown: {', '.join(unknown)}. There are: {', '.join(CHANGES)}")

    for change, seed in itertools.product(arguments.changes, arguments.seeds):
        print(f"\n{change}, seed {seed}", flush=True)
        write_results(measure(change, seed, arguments.held_out, arguments.data_path))
    print(summarize(read_results()))


if __name__ == "__main__":
    main()
