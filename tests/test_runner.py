"""Tests of the run without a browser, `make run`: of a tiny notebook, and the slow ones of the whole one."""

import os
import re
import signal
import sys
import textwrap
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import ScriptExporter

import cifar10
from tests.conftest import SLOW, mostly_slow
from tools import run_notebook
from tools.exercises import read_changes
from tools.notebook import NOTEBOOK, ROOT, TRAINING, changed_notebook, choose_settings, code_sha256, settings

RESTORE = 'print("No checkpoint in mine/, so the variables are new ones.")'
# Draws a curve, prints a line that is overwritten, and one that stays, as the training does.
TRAIN = """
from IPython.display import SVG, display
import os, signal, time
curve = display(SVG("<svg>1</svg>"), display_id=True)
for step in 9, 10:
    print(f"\\rGlobal Step: {step} of 20", end="", flush=True)
    curve.update(SVG(f"<svg>{step}</svg>"))
    time.sleep(0.5)
print("\\rGlobal Step:   10, Saved checkpoint.", flush=True)
"""
TRAIN_AND_WAIT = f"""
try:
{textwrap.indent(TRAIN, "    ")}
    time.sleep(10)
except KeyboardInterrupt:
    print("Interrupted.")
"""
TRAINED = "Global Step:   10, Saved checkpoint.\n", ["<svg>10</svg>"]
RESULT = 'print("Accuracy on Test-Set: 50.0% (1 / 2)")'


@pytest.fixture
def tiny(tmp_path, monkeypatch, capsys):
    """A function that writes a tiny notebook with some cells, and returns what runs it in this process."""
    path = tmp_path / NOTEBOOK.name
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cifar10, "data_path", cifar10.data_path)
    monkeypatch.setattr(run_notebook, "NOTEBOOK", path)
    for variable in ("CIFAR10_DATA_PATH", "CIFAR10_SAVE_DIR", "CIFAR10_LAST_ITERATION"):
        monkeypatch.delenv(variable, raising=False)

    def write(*cells, data_path=cifar10.STAND_IN):
        cells = "import cifar10", f"cifar10.data_path = {data_path!r}", 'save_dir = "mine/"', *cells
        text = "# Tiny\n![Chart](images/06_network_flowchart.png) and [license](LICENSE)"
        cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in ("last_iteration = 9", *cells)]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), *cells])
        nbformat.write(notebook, path)

        def run(*options):
            monkeypatch.setattr(sys, "argv", ["run_notebook", "--build", str(tmp_path / "build"), *options])
            with pytest.raises(SystemExit) as end:
                run_notebook.main()
            executed = path if options else tmp_path / "build" / path.name
            executed = nbformat.read(executed, as_version=4)
            return SimpleNamespace(status=end.value.code, notebook=executed, printed=capsys.readouterr())

        return run

    return write


def outputs(notebook, number=-2):
    """What a code cell, by its number from the end, has printed, and its pictures."""
    cell = [cell for cell in notebook.cells if cell.cell_type == "code"][number]
    pictures = [output.data["image/svg+xml"] for output in cell.outputs if "data" in output]
    return "".join(output.get("text", "") for output in cell.outputs), pictures


def test_the_executed_notebook_keeps_one_curve_and_no_overwritten_lines(tiny):
    run = tiny(TRAIN, RESULT)()
    assert run.status == 0 and outputs(run.notebook) == TRAINED
    assert "\nTiny\n" in run.printed.out
    assert "\rGlobal Step: 9 of 20\rGlobal Step: 10 of 20\rGlobal Step:   10, Saved" in run.printed.out
    last = ["This was the STAND-IN SET, NOT CIFAR-10.", "Global Step:   10, Saved checkpoint."]
    assert run.printed.out.splitlines()[-3:] == [*last, "Accuracy on Test-Set: 50.0% (1 / 2)"]


def test_a_kernel_that_is_killed(tiny):
    """What was run is kept, and it is told what is saved and how to go on."""
    run = tiny(RESTORE, TRAIN + "time.sleep(1)\nos.kill(os.getpid(), signal.SIGKILL)", RESULT)()
    assert "The kernel was killed" in run.status and "The same command goes on" in run.status
    assert outputs(run.notebook) == TRAINED
    last = ["No checkpoint in mine/, so the variables are new ones.", "Global Step:   10, Saved checkpoint."]
    assert run.printed.out.splitlines()[-2:] == last


def test_a_cell_that_fails(tiny, tmp_path, monkeypatch):
    """What was run is left in build, and the notebook itself as it was."""
    monkeypatch.setattr(cifar10, "maybe_download_and_extract", lambda: None)
    run = tiny("1 / 0", RESULT, data_path="data/")("--in-place")
    assert "ZeroDivisionError" in run.status and not any(cell.get("outputs") for cell in run.notebook.cells)
    executed = nbformat.read(tmp_path / "build" / NOTEBOOK.name, as_version=4)
    assert executed.cells[-2].outputs[0].ename == "ZeroDivisionError"


def test_build_is_made_before_anything_is_run(tiny, tmp_path):
    (tmp_path / "build").write_text("a file")
    with pytest.raises(FileExistsError):
        tiny(f"open({str(tmp_path / 'was run')!r}, 'w')")()
    assert not (tmp_path / "was run").exists()


def test_what_lies_in_build_works_there(tiny, tmp_path):
    """The page and the notebook have their images in them, and the notebook finds the project's files."""
    executed = tiny("open('saver.py').close()", RESULT)().notebook
    page = (tmp_path / "build" / "cifar10_cnn.html").read_text(encoding="utf-8")
    assert re.findall(r'<img[^>]*src="([^"]{10})', page) == ["data:image"]
    [link] = re.findall(r'href="([^"]*LICENSE)"', page)
    assert (tmp_path / "build" / link).samefile(ROOT / "LICENSE")
    [image] = re.findall(r"!\[Chart\]\(attachment:([^)]*)\)", executed.cells[0].source)
    assert list(executed.cells[0].attachments) == [image]
    NotebookClient(executed, kernel_name="python3").execute(cwd=tmp_path / "build")


def test_another_kernel_of_that_name_is_not_taken(tiny, tmp_path, monkeypatch):
    kernel = tmp_path / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text('{"argv": ["false"], "display_name": "other", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    run = tiny("import sys\nprint(sys.executable)", RESULT)()
    assert run.status == 0 and outputs(run.notebook)[0] == f"{sys.executable}\n"


def test_outputs_of_the_notebook_itself(tiny, tmp_path, monkeypatch):
    """Only they are written, not the settings; the metadata are as complete as JupyterLab's."""
    monkeypatch.setattr(cifar10, "maybe_download_and_extract", lambda: None)
    monkeypatch.setenv("CIFAR10_SAVE_DIR", "elsewhere")
    run = tiny("print(save_dir)\nimport sys; print('Red', file=sys.stderr)", RESULT, data_path="data/")
    before = nbformat.read(tmp_path / NOTEBOOK.name, as_version=4)
    after = run("--in-place").notebook
    assert outputs(after)[0] == "elsewhere\n"
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert after.metadata.code_sha256 == code_sha256(before)
    assert after.metadata.language_info.version == sys.version.split()[0]
    assert ScriptExporter().from_notebook_node(after)[1]["output_extension"] == ".py"


@pytest.mark.parametrize(
    "stop", mostly_slow(["Ctrl-C", "kill", "the terminal is closed", "nohup, it is closed"], "Ctrl-C")
)
def test_stopping_interrupts_the_cell_and_goes_on_to_the_results(stop, tiny, begin, tmp_path):
    tiny(TRAIN_AND_WAIT, RESULT)
    path = str(tmp_path / NOTEBOOK.name)
    code = f"from tools import run_notebook as r\nr.NOTEBOOK = r.Path({path!r})\nr.main()"
    nohup = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" * ("nohup" in stop)
    process = begin("-c", nohup + code, "--build", tmp_path / "build")
    next(line for line in process.stdout if "Saved checkpoint." in line)
    if stop == "the terminal is closed":
        process.stdout.close()
    process.send_signal({"Ctrl-C": signal.SIGINT, "kill": signal.SIGTERM}.get(stop, signal.SIGHUP))
    process.communicate(timeout=60)
    executed = nbformat.read(tmp_path / "build" / NOTEBOOK.name, as_version=4)
    assert outputs(executed)[0] == TRAINED[0] + "Interrupted.\n" * ("nohup" not in stop)
    assert outputs(executed, -1)[0].startswith("Accuracy on Test-Set")


def test_overwritten_lines_fit_into_the_terminal(monkeypatch, capsys):
    """Else each of them would begin a new line."""
    monkeypatch.setenv("COLUMNS", "10")
    run_notebook.show("A long heading\r0123456789a\r           \rA line that stays\n\r0123456789a")
    assert capsys.readouterr().out == "A long heading\r012345678\r         \rA line that stays\n\r012345678"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["NOT saved.", "Saved checkpoint."], 0),
        (["Saved checkpoint.", "NOT saved."], "are lost: see COULD NOT"),
    ],
    ids=["in the middle", "at the end"],
)
def test_a_save_that_failed(words, status, tiny):
    run = tiny(
        *[f"print('COULD NOT SAVE x: disk full\\nGlobal Step: 10, {word}')" for word in words], RESULT
    )()
    assert str(status) in str(run.status) and run.printed.out.splitlines()[-2].endswith(words[-1])


def test_the_stand_in_set_takes_the_place_of_cifar10_only_when_that_is_out_of_reach(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(cifar10, "_SOURCES", ("http://127.0.0.1:9/cifar-10-python.tar.gz",))
    run = tiny(
        "print(cifar10.data_path, save_dir, last_iteration)", RESULT, data_path=str(tmp_path / "CIFAR-10")
    )
    first = run()
    assert first.status == 0 and "three ways on" in first.printed.err
    assert outputs(first.notebook)[0] == f"stand-in {os.path.join('mine', 'stand-in')} 1000\n"
    monkeypatch.setenv("CIFAR10_LAST_ITERATION", "20")
    assert outputs(run().notebook)[0].endswith(" 20\n")
    assert "so it was not run" in run("--in-place").status


@SLOW
def test_the_whole_notebook_is_interrupted_and_goes_on_where_it_lies(begin, stand_in_path, tmp_path):
    """It saves a checkpoint and shows the results; what lies in build restores that checkpoint."""
    environment = settings(stand_in_path, tmp_path / "checkpoints", 100_000)
    process = begin("-m", "tools.run_notebook", "--build", tmp_path / "build", env=environment)
    next(line for line in process.stdout if re.match(r"Global Step: [1-9]", line))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert "Interrupted: " in output
    saved, accuracy = output.splitlines()[-2:]
    step = re.fullmatch(r"Global Step: +(\d+), .*, Saved checkpoint\.", saved)[1]
    assert process.returncode == 0 and accuracy.startswith("Accuracy on Test-Set: ")
    assert [path.stem for path in (tmp_path / "checkpoints").glob("*.index")] == [f"cifar10_cnn-{step}"]
    assert "THIS IS NOT CIFAR-10" in (tmp_path / "build" / "cifar10_cnn.html").read_text(encoding="utf-8")

    executed = nbformat.read(tmp_path / "build" / NOTEBOOK.name, as_version=4)
    assert saved in run_notebook.printed_lines(executed, "")
    choose_settings(executed, {"CIFAR10_LAST_ITERATION": step})
    NotebookClient(executed, kernel_name="python3").execute(cwd=tmp_path / "build")
    printed = run_notebook.printed_lines(executed, "")
    assert f"Restored checkpoint from: {tmp_path / 'checkpoints' / f'cifar10_cnn-{step}'}" in printed
    assert f"The network has had {step} iterations already." in printed and accuracy in printed


@SLOW
@pytest.mark.parametrize("change", ["small filters", "79 % in half a minute"])
def test_the_whole_notebook_of_an_exercise(change, stand_in_path, tmp_path):
    """It runs to its end, with as many pictures as the tutorial's own."""
    notebook, _ = changed_notebook(read_changes()[change])
    choose_settings(notebook, settings(stand_in_path, tmp_path, 2))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code = [cell for cell in code if cell.source not in (TRAINING, "plot_learning_curve()")]
    before = [str(cell.outputs).count("'image/png'") for cell in code]
    NotebookClient(notebook, kernel_name="python3").execute(cwd=ROOT)
    assert (tmp_path / "cifar10_cnn-2.index").is_file()
    assert [str(cell.outputs).count("'image/png'") for cell in code] == before
