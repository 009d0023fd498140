"""Runs the code of the notebook as a plain Python program, for the tests and the benchmarks."""

import ast
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


def defined_names(source):
    """Return the set of names that a cell defines: functions, classes, variables."""
    body = ast.parse(source).body
    targets = {target for node in body if isinstance(node, ast.Assign) for target in node.targets}
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    return names | {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def changed_notebook(replace):
    """Return the notebook with some cells or lines changed, and the set of the ids of the changed cells.

    :param replace: Dictionary to the new text, from a name that a code cell defines, for the whole cell,
        or from the old text in a cell.
    :raises ValueError: No cell has that name or text, or there are several.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    changed = set()
    for old, new in replace.items():
        if old.isidentifier():
            found = [cell for cell in code if old in defined_names(cell.source)]
            times = len(found)
        else:
            found = [cell for cell in code if old in cell.source]
            times = sum(cell.source.count(old) for cell in found)
        if times != 1:
            raise ValueError(f"{old!r} is in the notebook {times} times, not once.")
        [cell] = found
        cell.source = new.strip("\n") if old.isidentifier() else cell.source.replace(old, new)
        changed.add(cell.id)
    return notebook, changed


def code_sha256(notebook):
    """Return the SHA-256 of the code cells of a notebook, as hexadecimal digits."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def run_cells(data_path, save_dir, replace=None):
    """Run the code cells of the notebook up to its training and return what they define.

    :param data_path: Folder of the data set.
    :param save_dir: Folder of the checkpoints.
    :param replace: What to change, see `changed_notebook`.
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
