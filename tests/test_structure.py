"""Tests of the notebook and the project as documents."""

import ast
import builtins
import importlib.util
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from tests.conftest import SLOW
from tools.exercises import read_changes, write
from tools.notebook import NOTEBOOK, ROOT, SETTINGS, TRAINING, changed_notebook, code_sha256

CELLS = nbformat.read(NOTEBOOK, as_version=4).cells
CODE = [cell for cell in CELLS if cell.cell_type == "code"]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="There is no make.")


def test_versions_are_those_of_the_requirements():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    code = "\n".join(cell.source for cell in CODE)
    for package, module in (("tensorflow", "tf"), ("keras", "keras")):
        [oldest] = re.findall(rf"^{package}>=([\d.]+),", text, re.M)
        assert f'assert Version({module}.__version__) >= Version("{oldest}")' in code


def test_schema_and_size():
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    assert NOTEBOOK.stat().st_size < 2_000_000


def test_outputs_are_of_one_clean_run():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 10
    assert not any("execution" in cell.metadata for cell in CELLS)


def test_outputs_are_of_this_code():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert notebook.metadata.code_sha256 == code_sha256(notebook)


def test_nothing_is_used_before_it_is_defined():
    """A function may be called as soon as its cell was run."""
    defined = set(dir(builtins))
    for cell in CODE:
        module = ast.parse(cell.source)
        names = [node for node in ast.walk(module) if isinstance(node, ast.Name)]
        arguments = {node.arg for node in ast.walk(module) if isinstance(node, ast.arg)}
        functions = {n.name for n in ast.walk(module) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        imports = [n for n in ast.walk(module) if isinstance(n, ast.Import | ast.ImportFrom)]
        imported = {(alias.asname or alias.name).split(".")[0] for n in imports for alias in n.names}
        defined |= {node.id for node in names if isinstance(node.ctx, ast.Store)} | functions | imported
        used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
        assert not used - defined - arguments, cell.source


def test_outputs_are_of_cifar10():
    text = "".join(output.get("text", "") for cell in CODE for output in cell.outputs)
    assert "Training-set:\t\t50000" in text and "Test-set:\t\t10000" in text
    assert "STAND-IN" not in text
    assert "Data has apparently already been downloaded and unpacked." in text
    assert re.search(r"Accuracy on Test-Set: [\d.]+% \(\d+ / 10000\)", text)


def test_the_notebook_is_no_longer_than_the_original():
    """In code before the training, where that has 56 cells, and in text before the exercises."""
    code = [cell.source for cell in CODE]
    code = code[: code.index(TRAINING)]
    assert len(code) <= 56 and sum(bool(line) for line in "\n".join(code).split("\n")) <= 350
    exercises = next(i for i, cell in enumerate(CELLS) if cell.source.startswith("## Exercises"))
    words = [cell.source.split() for cell in CELLS[:exercises] if cell.cell_type == "markdown"]
    assert exercises <= 165 and sum(map(len, words)) <= 3300


def test_no_two_headings_are_the_same():
    text = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    headings = re.findall("^#+ (.*)", re.sub("```.*?```", "", text, flags=re.S), re.M)
    assert len(headings) == len(set(headings)) > 30


def test_changes_of_the_exercises_fit_the_notebook():
    for replace in read_changes().values():
        notebook, _ = changed_notebook(replace)
        ast.parse("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))


def test_changed_lines_can_be_pasted_as_they_are():
    """Whole lines replaced by hand give the tool's cells; items of a list may have any indentation."""

    def code(replace):
        cells = changed_notebook(replace)[0].cells
        return "\n".join(f"\n{cell.source}\n" for cell in cells if cell.cell_type == "code")

    for replace in read_changes().values():
        statements = {old: new for old, new in replace.items() if not old.endswith(",")}
        whole_cells = {name: cell for name, cell in statements.items() if name.isidentifier()}
        pasted = code(whole_cells)
        for old, new in statements.items():
            if old not in whole_cells:
                pasted = pasted.replace(f"\n{old}\n", f"\n{new}\n")
        assert pasted == code(statements)


def test_what_is_told_to_run_is_there():
    """The modules, the targets of make and the environment variables in all that is to be read."""
    files = [ROOT / "README.md", NOTEBOOK, ROOT / "Makefile", *ROOT.glob("*/README.md"), *ROOT.glob("*/*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    modules = set(re.findall(r"python -m ((?:tools|benchmarks|tests)[.\w]*)", text))
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+(?: [\w-]+)*):", makefile, re.M))
    told = set(re.findall(r"(?:`|^ {4}|[A-Z]=\S+ )make ([a-z][\w-]*)", text, re.M))
    assert told <= {name for names in targets for name in names.split()}
    assert set(re.findall(r"CIFAR10_\w+", text)) == set(SETTINGS)


def test_prose_before_every_code_cell():
    for before, cell in zip(CELLS, CELLS[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" and before.source.strip(), cell.source


def test_cells_are_short():
    lengths = sorted(len(cell.source.splitlines()) for cell in CODE)
    assert lengths[len(lengths) // 2] <= 5
    assert lengths[-1] <= 40
    for cell in CODE:
        if len(cell.source.splitlines()) > 15:
            assert re.search(r"^(def|class) ", cell.source, re.M), cell.source


def test_every_function_has_a_docstring():
    for cell in CODE:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in ("call", "full_network"):
                assert ast.get_docstring(node), node.name


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff(command):
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def make_environment(folder, python):
    """Let make make an environment, without what goes into it."""
    command = ["make", f"VENV={folder}", f"PYTHON={python}", f"{folder}/made"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@SLOW
@needs_make
def test_half_made_environment(tmp_path):
    """What a venv without pip has left behind is made again."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    result = make_environment(venv, sys.executable)
    assert result.returncode == 0, result.stdout + result.stderr
    subprocess.run([venv / "bin" / "python", "-m", "pip", "--version"], check=True)


@needs_make
def test_environment_that_cannot_be_made(tmp_path):
    """It says what to do when Python has no venv, as on Debian without python3-venv."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\nmkdir -p {tmp_path}/venv/bin\nexit 1\n'
    )
    python.chmod(0o755)
    result = make_environment(tmp_path / "venv", python)
    assert result.returncode != 0 and "sudo apt install python3-venv" in result.stdout
    assert not (tmp_path / "venv" / "made").exists()


def test_the_whole_notebook_of_the_widest_network_is_up_to_date(tmp_path):
    sources = []
    for path in (ROOT / "benchmarks" / "exercise-wider.ipynb", write("wider", tmp_path)):
        cells = nbformat.read(path, as_version=4).cells
        place = os.path.relpath(ROOT, path.parent)
        sources.append([cell.source.replace(place, "ROOT") for cell in cells])
    assert sources[0] == sources[1]
