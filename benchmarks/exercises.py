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
from tools.exercises import CHANGES
from tools.notebook import DATA_PATH

RESULTS = Path(__file__).resolve().parent / "exercises.csv"
COLUMNS = ["change", "iterations", "test accuracy in %", "minutes", "machine"]
ITERATIONS = 10_000


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
