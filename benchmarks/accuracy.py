"""Measures the test accuracy of the notebook's network after training from scratch.

    python -m benchmarks.accuracy --seeds 42 1 2 --iterations 10000

Prints a table with a row for each number of iterations at which the notebook looks at the test set:
the accuracy of each seed, their mean and their standard deviation. Training is that of the notebook:
its cells are run, with another seed.
"""

import argparse
import statistics
import sys
import tempfile

import numpy as np

from tools.notebook import DATA_PATH, run_cells


def train(iterations, data_path, replace):
    """Train a changed notebook from scratch and return its learning curve."""
    with tempfile.TemporaryDirectory() as save_dir:
        notebook = run_cells(data_path, save_dir, replace)
        notebook["optimize"](iterations)
    if notebook["global_step"] != iterations:
        sys.exit("Interrupted, so nothing is recorded.")
    return notebook["learning_curve"].numpy()


def accuracies(seed, iterations, data_path):
    """Train from scratch and return a dictionary of the test accuracies by the iterations."""
    curve = train(iterations, data_path, {"random_seed = 42": f"random_seed = {seed}"})
    result = {int(row[0]): float(row[4]) for row in curve if not np.isnan(row[4])}
    print(f"seed {seed}: {result}", flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--iterations", type=int, default=10_000)
    parser.add_argument("--data-path", default=DATA_PATH)
    arguments = parser.parse_args()

    columns = [accuracies(seed, arguments.iterations, arguments.data_path) for seed in arguments.seeds]
    print("iterations | " + " | ".join(f"seed {seed}" for seed in arguments.seeds) + " | mean | sd")
    for number in columns[0]:
        row = [column[number] for column in columns]
        spread = statistics.stdev(row) if len(row) > 1 else float("nan")
        cells = [*(f"{accuracy:.2%}" for accuracy in row), f"{statistics.mean(row):.2%}", f"{spread:.2%}"]
        print(f"{number} | " + " | ".join(cells))


if __name__ == "__main__":
    main()
