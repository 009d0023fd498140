"""Runs the code of the notebook as a plain Python program, for the tests and the benchmarks."""

import hashlib
import itertools
import json
import linecache
import os
import sys
from pathlib import Path
from unittest import mock

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "cifar10_cnn.ipynb"
DATA_PATH = os.environ.get("CIFAR10_DATA_PATH", str(ROOT / "data" / "CIFAR-10"))
TRAINING = "optimize(num_iterations)"
_runs = itertools.count()


def settings(data_path, save_dir, num_iterations=0):
    """Return the environment of a process that runs the notebook."""
    return os.environ | {
        "CIFAR10_DATA_PATH": str(data_path),
        "CIFAR10_SAVE_DIR": str(save_dir),
        "CIFAR10_NUM_ITERATIONS": str(num_iterations),
    }


def changed_notebook(replace):
    """Return the notebook with some lines changed, and the set of the ids of the changed cells.

    :param replace: Dictionary from the text in a code cell of the notebook to the new text. Each text
        must occur exactly once.
    :raises ValueError: A text isn't in the notebook, or not just once.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    changed = set()
    for old, new in replace.items():
        found = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        if len(found) != 1 or found[0].source.count(old) != 1:
            raise ValueError(f"{old!r} isn't in the notebook exactly once.")
        found[0].source = found[0].source.replace(old, new)
        changed.add(found[0].id)
    return notebook, changed


def code_sha256(notebook):
    """Return the SHA-256 of the code cells of a notebook, as hexadecimal digits."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def run_cells(data_path, save_dir, replace=None):
    """Run the code cells of the notebook up to its training and return what they define.

    :param data_path: Folder of the data set.
    :param save_dir: Folder of the checkpoints.
    :param replace: Lines to change, see `changed_notebook`.
    :return: Dictionary of all global names of the notebook.
    """
    notebook, _ = changed_notebook(replace or {})
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    training = next(i for i, cell in enumerate(cells) if cell.source == TRAINING)

    run = next(_runs)
    namespace = {"__name__": "cifar10_cnn"}
    with (
        mock.patch.dict(os.environ, settings(data_path, save_dir) | {"MPLBACKEND": "Agg"}),
        mock.patch.object(sys, "path", [str(ROOT), *sys.path]),
    ):
        for cell in cells[:training]:
            # TensorFlow reads the source of the functions that it makes graphs of, often much later.
            name = f"<{cell.id} of {NOTEBOOK.name}, run {run}>"
            lines = cell.source.splitlines(keepends=True)
            linecache.cache[name] = len(cell.source), None, lines, name
            exec(compile(cell.source, name, "exec"), namespace)
    return namespace
