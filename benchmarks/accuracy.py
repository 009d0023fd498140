"""Measures the test accuracy of the notebook's network after training from scratch.

    python -m benchmarks.accuracy --seeds 42 1 2 --iterations 1000 5000 10000

Prints a table with one row for each number of iterations, the accuracy of each seed, their mean and
their standard deviation. Training is that of the notebook: its cells are run, with another seed.
"""

import argparse
import statistics
import tempfile

from tests.notebook import ROOT, run_cells


def accuracies(seed, iterations, data_path):
    """Train from scratch and return the test accuracy after each of the numbers of iterations."""
    with tempfile.TemporaryDirectory() as save_dir:
        notebook = run_cells(
            data_path,
            save_dir,
            replace={"random_seed = 42": f"random_seed = {seed}"},
        )
        result = []
        for number in iterations:
            notebook["optimize"](number - int(notebook["global_step"]))
            correct, _ = notebook["predict_cls_test"]()
            result.append(notebook["classification_accuracy"](correct)[0])
            print(f"seed {seed}, {number} iterations: {result[-1]:.2%}", flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--iterations", type=int, nargs="+", default=[1000, 5000, 10000])
    parser.add_argument("--data-path", default=ROOT / "data" / "CIFAR-10")
    arguments = parser.parse_args()

    table = [accuracies(seed, arguments.iterations, arguments.data_path) for seed in arguments.seeds]
    print("iterations | " + " | ".join(f"seed {seed}" for seed in arguments.seeds) + " | mean | sd")
    for number, row in zip(arguments.iterations, zip(*table, strict=True), strict=True):
        spread = statistics.stdev(row) if len(row) > 1 else float("nan")
        cells = [*(f"{accuracy:.2%}" for accuracy in row), f"{statistics.mean(row):.2%}", f"{spread:.2%}"]
        print(f"{number} | " + " | ".join(cells))


if __name__ == "__main__":
    main()
