"""Writes into the README and the notebook what was measured, so that no number in them is written by hand.

    python -m benchmarks.tables

The text between <!-- name --> and <!-- end name -->, which show nothing, is written anew. It is from the
learning curve of the network that comes with the notebook, from the outputs of the notebook, and from what
the tests and the benchmarks have measured. A marker alone gets its text and its end.
"""

import re
import sys
import textwrap

import nbformat
import numpy as np
import tensorflow as tf

from benchmarks.accuracy import LADDER, mean_and_spread, mean_minutes, measured, processor
from benchmarks.contestants import BEST, CONTESTANTS
from tools.notebook import NOTEBOOK, ROOT

README = ROOT / "README.md"
STEP = 150_000
CHECKPOINT = ROOT / "checkpoints" / f"cifar10_cnn-{STEP}"

# What the network that comes with the notebook was trained on.
PROCESSOR = "Xeon"
MACHINE = "two cores of an Intel Xeon (family 6, model 207, AVX-512), at times with other programs beside it"

# The original's accuracies in a run of ours, and in its author's.
ORIGINAL = {1000: "46.5 %", 5000: "59.7 %", 10_000: "65.2 %", 150_000: "79.3 %, 15 hours, by its author"}


def read_curve():
    """Return the learning curve of the network that comes with the notebook."""
    return tf.train.load_checkpoint(CHECKPOINT).get_tensor("learning_curve")


def output_of(notebook, start):
    """Return the text that a cell of the notebook has printed."""
    cell = next(cell for cell in notebook.cells if cell.source.startswith(start))
    if not cell.outputs:
        sys.exit(f"The notebook has no outputs: run `make notebook`.\n{cell.source}")
    return "".join(output.get("text", "") for output in cell.outputs)


def percent(accuracy):
    """Return an accuracy between 0 and 1 as text."""
    return f"{100 * accuracy:.1f} %"


def in_words(parts):
    """Return texts as a list within a sentence."""
    *parts, last = parts
    return f"{', '.join(parts)} and {last}"


def table(heading, rows):
    """Return a table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [heading, ["---"] * len(heading), *rows])


def ladder(curve, seeds=None):
    """Return the table of the test accuracy after some iterations, with that of the seeds if given."""
    heading = ["iterations", "test accuracy", "minutes"]
    rows = []
    for step, _, _, seconds, accuracy in curve:
        if step in (1000, 5000, 10_000, 20_000, 50_000, 100_000, 150_000):
            row = [f"{step:,.0f}", percent(accuracy), f"{seconds / 60:.1f}"]
            if seeds:
                row += [mean_and_spread(seeds[step]) if step in seeds else "", ORIGINAL.get(step, "")]
            rows.append(row)
    if seeds:
        heading += ["eight seeds", "original, one run"]
    return table(heading, rows)


def last_points(curve):
    """Return the test accuracies from 100,000 iterations on."""
    return [accuracy for step, *_, accuracy in curve if step >= 100_000 and np.isfinite(accuracy)]


def curve_text(curve):
    """Return what is told of the learning curve."""
    _, loss, batch_acc, _, _ = curve[-100:].mean(axis=0)
    return (
        "The network that comes with the notebook has had 150,000 iterations. Averaged over the last "
        f"10,000, its loss is {loss:.2f}, and it classifies {100 * batch_acc:.0f} % of the training-batches "
        "correctly (they aren't distorted for that, as in testing, while the loss is of distorted ones). On "
        f"the test-set it is {percent(curve[-1, 4])}. So it has learned some things that are only true of "
        "the training-images, which is called *overfitting*. The distortions are there to keep this small. "
        "The curve rises only slowly at the end: from 100,000 iterations on, every 10,000, it has "
        f"{in_words(map(percent, last_points(curve)))}."
    )


def results_text(curve, printed):
    """Return what is told of the results, with the confusions that are printed below."""
    points = last_points(curve)
    lines = re.findall(r"^([ \d]{59}) \(\d\) (\w+)$", printed, re.M)
    matrix, names = np.array([line.split() for line, _ in lines], int), [name for _, name in lines]
    wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
    most = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:5]]
    names = [name if name == "deer" else f"{name}s" for name in names]
    confusions = [f"{matrix[i, j]} of the 1,000 {names[i]} are taken for {names[j]}" for i, j in most]
    right = matrix.diagonal()
    best, worst = right.argmax(), right.argmin()
    return (
        "This is the classification accuracy on the test-set. For the network that comes with the notebook, "
        f"after 150,000 iterations, it is {percent(curve[-1, 4])}; the original reached 79.3 %. Both are "
        "single points of curves that go up and down: from 100,000 iterations on, this one lies between "
        f"{percent(min(points))} and {percent(max(points))}.\n\n"
        "The confusion matrix shows which classes are mistaken for which. These are the most frequent "
        f"mistakes: {in_words(confusions)}. {names[best].capitalize()} are recognized best, with "
        f"{right[best]} of 1,000, and {names[worst]} worst, with {right[worst]}."
    )


def label_text(printed):
    """Return what is told of the two highest probabilities that are printed below."""
    (first, name), (second, other) = re.findall(r"^([\d.]+)  \(\d\) (\w+)$", printed, re.M)
    return f"the probability of {name} is {first}, and that of {other} {second}."


def longer_text(curve):
    """Return what the last iterations brought."""
    # The differences of what the table shows, so of rounded numbers.
    shown = [percent(curve[step // 100 - 1, 4]) for step in (10_000, 100_000, 150_000)]
    first, second = np.diff([float(text.split()[0]) for text in shown])
    return (
        "For the network that comes with the notebook, the iterations from 10,000 to 100,000 brought "
        f"{first:.1f} percentage points, and the last 50,000 brought {second:.1f}."
    )


def work(iterations):
    """Return the PFLOP of so many iterations of the tutorial's network."""
    row = measured("as it is")[0]
    return float(row["PFLOP"]) / int(row["iterations"]) * iterations


def better_networks(curve):
    """Return the table of the steps to better networks, with the means where there are several seeds."""
    minutes = f"{curve[-1, 3] / 60:.1f}, {PROCESSOR}"
    rows = [["the tutorial's network, as it comes", percent(curve[-1, 4]), minutes, "", f"{work(STEP):.2f}"]]
    for name in LADDER:
        row, on_gpu = [name, "", ""], measured(name, gpu=True)
        if runs := measured(name):
            several = f", {len(runs)} seeds" if len(runs) > 1 else ""
            row = [name, mean_and_spread(runs) + several, f"{mean_minutes(runs)}, {processor(runs[0])}"]
        row.append(mean_and_spread(on_gpu) if on_gpu else "")
        rows.append([*row, f"{float((runs or on_gpu)[0]['PFLOP']):.2g}"])
    heading = ["step", "test accuracy", "minutes, processor", "three seeds on a GPU", "PFLOP"]
    return table(heading, rows)


def reached_text(curve):
    """Return what the README tells first."""
    better = []
    for name in ("79 % in half a minute", "six views", "wider in lower precision"):
        runs = measured(name)
        accuracy, lower = mean_and_spread(runs).split()[0], name.endswith(" in lower precision")
        with_what = processor(runs[0]) + ", in lower precision" * lower
        better.append(f"{accuracy} % in {mean_minutes(runs)} minutes ({with_what})")
    text = (
        f"It comes with a trained network. After 150,000 iterations, {curve[-1, 3] / 60:.0f} minutes on "
        f"{MACHINE}, it gets {percent(curve[-1, 4])} of the test images right. The original's author "
        "reported 79.3 % after 15 hours on his laptop. Both are single points of curves that go up and down. "
        "The last answers to the exercises show better networks, step by step in the same "
        f"notebook: on two cores they reach {in_words(better)}."
    )
    return textwrap.fill(text, 110)


def fidelity():
    """Return how much the outputs differ at most from the original's, with its weights."""
    text = (ROOT / "tests" / "fidelity.md").read_text(encoding="utf-8")
    return re.search(r"^\| softmax outputs .*at most (\S+)", text, re.M)[1].replace("e-0", "e-")


def speeds(*names, unit="iterations"):
    """Return the table of the speeds of some programs of the benchmark: median, minimum and maximum."""
    text = (ROOT / "benchmarks" / "results.md").read_text(encoding="utf-8")
    titles = [(CONTESTANTS | BEST)[name][0] for name in names]
    found = [re.search(rf"^\| {re.escape(title)} \| (.*?) \|", text, re.M) for title in titles]
    if not all(found):
        sys.exit("The benchmark lacks a program: install PyTorch, and run `make bench`.")
    rows = [[title, match[1]] for title, match in zip(titles, found, strict=True)]
    return table(["program", f"{unit} per second"], rows)


def eight_seeds():
    """Return the measurements with several seeds by their number of iterations."""
    return {step: measured("as it is", step) for step in (1000, 5000, 10_000)}


def texts(curve, notebook):
    """Return the texts for the README, and for the notebook, by their names."""
    seeds = eight_seeds()
    accuracies = [float(row["accuracy in %"]) for row in seeds[10_000]]
    return {
        "ladder": ladder(curve, seeds),
        "reached": reached_text(curve),
        "fidelity": fidelity(),
        "speed": speeds("notebook", "all_three", "pytorch", "pytorch_compiled", "pytorch_lower", "sgemm"),
    }, {
        "ladder": ladder(curve),
        "machine": MACHINE,
        "curve": curve_text(curve),
        "results": results_text(curve, output_of(notebook, "print_test_accuracy(")),
        "label": label_text(output_of(notebook, "for i in np.argsort(-label_pred[0])")),
        "longer": longer_text(curve),
        "seeds": f"{min(accuracies):.1f} to {max(accuracies):.1f} %",
        "faster": speeds("notebook", "lower", "faster", "all_three"),
        "wider faster": speeds("best", "best_lower", "pytorch_best", unit="images"),
        "last": percent(curve[-1, 4]),
        "better networks": better_networks(curve),
    }


def fill(document, texts):
    """Return a document with these texts between their markers.

    Where a marker begins a line, its text makes paragraphs of its own.
    """

    def replace(match):
        name = match["name"]
        if name not in texts:
            return match[0]
        begins_a_line = document[: match.start()].endswith("\n") or match.start() == 0
        gap = "\n\n" if begins_a_line else ""
        return f"<!-- {name} -->{gap}{texts[name]}{gap}<!-- end {name} -->"

    marker = r"<!-- (?P<name>(?!end )[\w ]+) -->"
    return re.sub(marker + "(((?!<!--).)*<!-- end (?P=name) -->)?", replace, document, flags=re.S)


def fill_answer(source):
    """Return an answer with what was measured of the changes in its tables.

    The accuracy is of all seeds, the minutes are those with the notebook's seed, beside which nothing ran.
    """

    def replace(match):
        if not (runs := measured(match["change"])):
            return match[0]
        own = [row for row in runs if row["seed"] == "42"]
        minutes = f" {mean_minutes(own)} |" if match["minutes"] else ""
        return f"| {match['change']} | {mean_and_spread(runs)} |{minutes}"

    row = r"^\| (?P<change>[^|]+) \| [\d.]+( ± [\d.]+)? % \|(?P<minutes> [\d.]+ \|)?$"
    return re.sub(row, replace, source, flags=re.M) if source.startswith("<details>") else source


def main():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    readme, of_notebook = texts(read_curve(), notebook)
    README.write_text(fill(README.read_text(encoding="utf-8"), readme), encoding="utf-8")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill_answer(fill(cell.source, of_notebook))
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
