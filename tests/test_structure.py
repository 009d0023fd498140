"""Tests of the notebook as a document, and of the whole notebook run by Jupyter's own client."""

import ast
import builtins
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

import cifar10
from tools.exercises import CHANGES
from tools.notebook import NOTEBOOK, ROOT, changed_notebook, code_sha256, settings
from tools.run_notebook import find_accuracy, find_data, last_save_failed

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


def text_in_a_line(name):
    """Return what is in a file of the project, in one line."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_readme_has_the_ratio_of_the_benchmark():
    results = (ROOT / "benchmarks" / "results.md").read_text(encoding="utf-8")
    ratio = re.search(r"^\| PyTorch.*\| ([\d.]+) \(", results, re.M)[1]
    readme = text_in_a_line("README.md")
    assert f"{float(ratio):.1f} times as fast as the same network in PyTorch" in readme


def test_readmes_have_the_measured_fidelity():
    table, readme, tests = map(text_in_a_line, ["tests/fidelity.md", "README.md", "tests/README.md"])
    outputs, adam = re.findall(r"at most (\de-\d+)", table)
    assert [float(x) for x in re.findall(r"to within (\de-\d+)", tests)] == [float(outputs), float(adam)]
    assert [float(x) for x in re.findall(r"to within (\de-\d+)", readme)] == [float(outputs)]
    z = max(abs(float(z)) for z in re.findall(r"z = (-?[\d.]+)", table))
    assert f"differ by at most {z} standard errors" in tests


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_run_notebook(stand_in_path, tmp_path):
    """The whole notebook runs without a browser, in both ways that a run can begin."""
    environment = settings(stand_in_path, tmp_path / "checkpoints", 20)
    command = [sys.executable, "-m", "tools.run_notebook", "--build", str(tmp_path / "build")]
    for last, start in [(20, "the variables are new ones"), (40, "Restored checkpoint from")]:
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "STAND-IN SET, NOT CIFAR-10" in result.stdout
        assert start in result.stdout and f"Global Step: {last:6}" in result.stdout
        executed = nbformat.read(tmp_path / "build" / NOTEBOOK.name, as_version=4)
        assert find_accuracy(executed) == result.stdout.splitlines()[-1]
        assert "THIS IS NOT CIFAR-10" in (tmp_path / "build" / "cifar10_cnn.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["small filters", "79 % in half a minute"])
def test_the_whole_notebook_of_an_exercise(change, stand_in_path, tmp_path):
    """It runs to its end, with all the pictures."""
    notebook, _ = changed_notebook(CHANGES[change] | {"num_iterations": "num_iterations = 2"})
    client = NotebookClient(notebook, kernel_name="python3", timeout=300)
    client.execute(cwd=ROOT, env=settings(stand_in_path, tmp_path))
    assert (tmp_path / "cifar10_cnn-2.index").is_file()
    assert find_accuracy(notebook).startswith("Accuracy on Test-Set: ")
    for cell, changed in zip(CODE, (c for c in notebook.cells if c.cell_type == "code"), strict=True):
        pictures = [["image/png" in output.get("data", {}) for output in c.outputs] for c in (cell, changed)]
        assert sum(pictures[0]) == sum(pictures[1]), cell.source


@pytest.mark.parametrize(
    ("printed", "failed"),
    [
        ("", False),
        ("Saved checkpoint.\n", False),
        ("COULD NOT SAVE x: disk full\nFree some space.\nSaved checkpoint.\n", False),
        ("Saved checkpoint.\nCOULD NOT SAVE x: disk full\nFree some space.\n", True),
    ],
)
def test_a_last_save_that_failed_is_noticed(printed, failed):
    output = nbformat.v4.new_output("stream", name="stdout", text=printed)
    cell = nbformat.v4.new_code_cell("optimize(num_iterations)", outputs=[output])
    assert last_save_failed(nbformat.v4.new_notebook(cells=[cell])) == failed


def test_the_stand_in_set_takes_the_place_of_cifar10_only_when_that_is_out_of_reach(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cifar10, "data_path", "data/CIFAR-10/")
    monkeypatch.setattr(cifar10, "_SOURCES", ("http://127.0.0.1:9/cifar-10-python.tar.gz",))
    monkeypatch.setenv("CIFAR10_SAVE_DIR", "my checkpoints")
    monkeypatch.delenv("CIFAR10_DATA_PATH", raising=False)
    monkeypatch.delenv("CIFAR10_NUM_ITERATIONS", raising=False)
    with pytest.raises(cifar10.DataUnavailableError, match="three ways on"):
        cifar10.maybe_download_and_extract()
    find_data()
    assert "THIS IS NOT CIFAR-10" in capsys.readouterr().out
    assert os.environ["CIFAR10_DATA_PATH"] == cifar10.STAND_IN
    assert os.environ["CIFAR10_NUM_ITERATIONS"] == "1000"
    assert os.environ["CIFAR10_SAVE_DIR"] == os.path.join("my checkpoints", "stand-in")
    assert not (tmp_path / "data" / "CIFAR-10" / "cifar-10-batches-py").exists()
