"""Draws the two pictures of the exercise on better networks.

    python -m benchmarks.draw_better_networks

images/better_networks.png is from benchmarks/accuracy.csv and the learning curve of the shipped network,
images/whitening.png from that network and from the images of CIFAR-10.
"""

import tempfile

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.accuracy import LADDER, measured
from benchmarks.tables import CHECKPOINT, STEP, read_curve, work
from tools.exercises import read_changes
from tools.notebook import DATA_PATH, ROOT, run_cells


def draw_accuracies():
    """Plot the test accuracy of each step over the work of its training, beside the shipped network's.

    The work is the same on every processor, on a GPU and in lower precision, whose points would hide the
    others; the minutes are in the table of the answer.
    """
    curve = read_curve()
    step, _, _, _, accuracy = curve[np.isfinite(curve[:, 4])].T

    fig, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    ax.plot(work(step), 100 * accuracy, "o-", color="black", markersize=3, label="the tutorial's network")
    ax.plot(work(STEP), 79.3, "*", color="black", markersize=10, label="the original in 2016")
    for number, change in enumerate(change for change in LADDER if "lower precision" not in change):
        if runs := measured(change) + measured(change, gpu=True):
            operations, accuracies = (
                [float(run[name]) for run in runs] for name in ("PFLOP", "accuracy in %")
            )
            style = {"marker": "os^Dv<>p"[number], "fillstyle": "none", "linestyle": "none"}
            ax.plot(operations, accuracies, color=f"C{number}", markersize=7, label=change, **style)

    ax.legend(loc="lower right")
    ax.set_xscale("log")
    ticks = [0.005, 0.01, 0.03, 0.1, 0.3, 1]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_ylim(40, 97)
    ax.set_xlabel("Work of the training in PFLOP, $10^{15}$ operations")
    ax.set_ylabel("Test accuracy in %")
    ax.grid(alpha=0.3)
    fig.savefig(ROOT / "images" / "better_networks.png", dpi=100)


def draw_filters():
    """Plot the whitening filters beside those that the tutorial's first layer has learned."""
    learned = run_cells(DATA_PATH, CHECKPOINT.parent)["weights_conv1"].numpy()
    with tempfile.TemporaryDirectory() as folder:
        whitening = run_cells(DATA_PATH, folder, read_changes()["whitening"])["weights_conv1"].numpy()
    fig = plt.figure(figsize=(8, 4), layout="constrained")
    halves = fig.subfigures(1, 2)
    for half, filters, rows, columns, title in [
        (halves[0], whitening, 4, 6, "Whitening: 24 filters of 2 x 2 pixels, calculated"),
        (halves[1], learned, 8, 8, "The tutorial's: 64 filters of 5 x 5 pixels, learned"),
    ]:
        half.set_facecolor("lightgray")
        half.suptitle(title, fontsize="medium")
        for ax, number in zip(half.subplots(rows, columns).flat, range(rows * columns), strict=True):
            one = filters[..., number]
            ax.imshow(0.5 + 0.5 * one / np.abs(one).max(), interpolation="nearest")
            ax.set_axis_off()
    fig.savefig(ROOT / "images" / "whitening.png", dpi=100)


if __name__ == "__main__":
    draw_accuracies()
    draw_filters()
