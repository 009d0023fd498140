"""Reads, changes and runs the notebook, for the other tools, the tests and the benchmarks."""

import ast
import hashlib
import itertools
import json
import linecache
import os
import re
import sys
import textwrap
from pathlib import Path
from unittest import mock

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "cifar10_cnn.ipynb"
DATA_PATH = os.environ.get("CIFAR10_DATA_PATH", str(ROOT / "data" / "CIFAR-10"))
TRAINING = "optimize(num_iterations=last_iteration - int(global_step.numpy()))"
# The environment variables that choose other values than those which the notebook assigns.
SETTINGS = {
    "CIFAR10_DATA_PATH": "cifar10.data_path",
    "CIFAR10_SAVE_DIR": "save_dir",
    "CIFAR10_LAST_ITERATION": "last_iteration",
}
_runs = itertools.count()


def find_assignment(notebook, name):
    """Return the code cell in which a line assigns a name, and the match of that line, with the value."""
    pattern = re.compile(rf"^{re.escape(name)} = (.*)$", re.MULTILINE)
    code = (cell for cell in notebook.cells if cell.cell_type == "code")
    [found] = [(cell, match) for cell in code for match in pattern.finditer(cell.source)]
    return found


def choose_settings(notebook, environment):
    """Assign the settings in the cells of a notebook what the environment variables say."""
    for variable, name in SETTINGS.items():
        if variable in environment:
            value = environment[variable]
            value = int(value) if name == "last_iteration" else str(value)
            cell, match = find_assignment(notebook, name)
            before, after = cell.source[: match.start(1)], cell.source[match.end(1) :]
            cell.source = f"{before}{value!r}{after}"


def settings(data_path, save_dir, last_iteration=0):
    """Return the environment of a process that runs the notebook."""
    values = data_path, save_dir, last_iteration
    return os.environ | {variable: str(value) for variable, value in zip(SETTINGS, values, strict=True)}


def defined_names(source):
    """Return the list of the names that a cell defines: functions, classes, variables."""
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
    return names


def changed_notebook(replace):
    """Return the notebook with some cells or lines changed, and the set of the ids of the changed cells.

    :param replace: Dictionary to the new text, from a name that a code cell defines, for the whole cell,
        or from the old text in a cell, one or more lines or a part of a line. The indentation of lines is
        that of the cell.
    :raises ValueError: No cell has that name or text, or there are several.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    changed = set()
    for old, new in replace.items():
        pattern = r"\n *".join(map(re.escape, textwrap.dedent(old).splitlines()))
        if old.isidentifier():
            found = [(cell, None) for cell in code if old in defined_names(cell.source)]
        else:
            found = [(cell, match) for cell in code for match in re.finditer(pattern, cell.source)]
        if len(found) != 1:
            raise ValueError(f"{old!r} is in the notebook {len(found)} times, not once.")
        [(cell, match)] = found
        if match:
            before, after = cell.source[: match.start()], cell.source[match.end() :]
            line = before.rpartition("\n")[2]
            indentation = line[: len(line) - len(line.lstrip())]
            new = textwrap.indent(textwrap.dedent(new).strip("\n"), indentation)
            new = before + new.removeprefix(indentation) + after
        cell.source = new.strip("\n")
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
    choose_settings(notebook, {"CIFAR10_DATA_PATH": data_path, "CIFAR10_SAVE_DIR": save_dir})
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    training = next(i for i, cell in enumerate(cells) if cell.source == TRAINING)

    run = next(_runs)
    namespace = {"__name__": "cifar10_cnn"}
    with (
        mock.patch.dict(os.environ, {"MPLBACKEND": "Agg"}),
        mock.patch.object(sys, "path", [str(ROOT), *sys.path]),
    ):
        for cell in cells[:training]:
            # TensorFlow reads the source of the functions that it makes graphs of, often much later.
            name = f"<{cell.id} of {NOTEBOOK.name}, run {run}>"
            lines = cell.source.splitlines(keepends=True)
            linecache.cache[name] = len(cell.source), None, lines, name
            exec(compile(cell.source, name, "exec"), namespace)
    return namespace
