"""Runs the notebook from top to bottom without a browser, and shows the progress in the terminal.

    python -m tools.run_notebook                  # build/cifar10_cnn.ipynb and .html
    python -m tools.run_notebook --in-place       # cifar10_cnn.ipynb itself

Interrupt it (Ctrl-C) or close the terminal while it trains, and it saves a checkpoint and goes on to the
results.

The environment variables CIFAR10_DATA_PATH, CIFAR10_SAVE_DIR and CIFAR10_LAST_ITERATION choose the folder of
the data set, the folder of the checkpoints and the number of iterations to train up to. Only this program
reads them, and the notebook has no cell of parameters: `papermill -p` changes nothing.
When CIFAR-10 is neither found nor can be downloaded, the stand-in set takes its place and is trained for
1,000 iterations, in a folder of its own. The exit status is 1 when a cell fails, the kernel is killed, or the
last checkpoint could not be saved.
"""

import argparse
import ast
import asyncio
import base64
import contextlib
import copy
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

import cifar10
from tools.notebook import NOTEBOOK, ROOT, choose_settings, code_sha256, find_assignment


class TerminalClient(NotebookClient):
    """Executes a notebook and prints its headings and its text outputs on the way."""

    def create_kernel_manager(self):
        manager = super().create_kernel_manager()
        # This Python, and no other kernel that has the same name.
        manager.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
        return manager

    def output(self, outs, msg, display_id, cell_index):
        if msg["msg_type"] == "stream":
            show(msg["content"]["text"])
        return super().output(outs, msg, display_id, cell_index)

    async def forward_interrupts(self, notebook):
        """Interrupt the cell that is running, as Jupyter's stop-button does, instead of the kernel."""
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            with contextlib.suppress(NotImplementedError, AttributeError):  # Windows.
                number = getattr(signal, name)
                if signal.getsignal(number) != signal.SIG_IGN:  # As nohup lets SIGHUP be.
                    loop.add_signal_handler(number, lambda: asyncio.ensure_future(self.km.interrupt_kernel()))


def show(text):
    """Print a text, unless the terminal was closed, and of lines that are overwritten what fits into one."""
    columns = shutil.get_terminal_size().columns
    text = re.sub(r"\r[^\r\n]*+(?!\n)", lambda match: match[0][:columns], text)
    with contextlib.suppress(OSError):
        print(text, end="", flush=True)


def show_headings(cell, cell_index):
    """Print the headings at the beginning of a markdown cell."""
    if cell.cell_type == "markdown" and cell.source.startswith("#"):
        for line in cell.source.splitlines():
            if line.startswith("#"):
                show(f"\n{line.lstrip('# ')}\n")


def assigned(notebook, name):
    """Return the value that a cell assigns a name."""
    _, match = find_assignment(notebook, name)
    return ast.literal_eval(match[1])


def find_data(notebook):
    """Choose the settings of the notebook: for CIFAR-10 or, when it can't be had, for the stand-in set."""
    choose_settings(notebook, os.environ)
    cifar10.data_path = assigned(notebook, "cifar10.data_path")
    try:
        cifar10.maybe_download_and_extract()
    except cifar10.DataUnavailableError as error:
        print(error, file=sys.stderr)
        cifar10.data_path = cifar10.STAND_IN
        save_dir = str(Path(assigned(notebook, "save_dir")) / "stand-in")
        stand_in = {"CIFAR10_DATA_PATH": cifar10.STAND_IN, "CIFAR10_SAVE_DIR": save_dir}
        choose_settings(notebook, {"CIFAR10_LAST_ITERATION": "1000"} | os.environ | stand_in)


def moved(notebook, folder):
    """Return a copy of the notebook that works in another folder, with its images in it."""
    notebook = copy.deepcopy(notebook)
    for cell in [cell for cell in notebook.cells if cell.cell_type == "markdown"]:
        for path in filter(os.path.exists, re.findall(r"\]\(([\w/.-]+)\)", cell.source)):
            target = Path(os.path.relpath(path, folder)).as_posix()
            if path.endswith(".png"):
                image = base64.b64encode(Path(path).read_bytes()).decode()
                cell.setdefault("attachments", {})[Path(path).name] = {"image/png": image}
                target = f"attachment:{Path(path).name}"
            cell.source = cell.source.replace(f"]({path})", f"]({target})")
    code = f"# Executed in the project's folder, where its files lie.\nimport os\n\nos.chdir({str(ROOT)!r})"
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(first, nbformat.v4.new_code_cell(code, id="folder"))
    return notebook


def printed_lines(notebook, pattern):
    """Return the lines that the notebook has printed in which a regular expression is found."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    lines = [line for output in outputs for line in output.get("text", "").splitlines()]
    return [line for line in lines if re.search(pattern, line)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="folder of the results")
    parser.add_argument("--in-place", action="store_true", help="keep the outputs in the notebook itself")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    build.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    sources = [cell.source for cell in notebook.cells]
    find_data(notebook)
    if arguments.in_place and cifar10.is_stand_in():
        sys.exit("The notebook's own outputs must be of CIFAR-10, so it was not run.")
    client = TerminalClient(
        notebook, timeout=None, record_timing=False, on_cell_start=show_headings, kernel_name="python3"
    )
    client.on_notebook_start = client.forward_interrupts
    failure = ""
    try:
        client.execute(cwd=ROOT)
    except CellExecutionError as error:
        failure = f"The notebook stopped with an error:\n{error}"
    except DeadKernelError:
        failure = "The kernel was killed, as happens when the memory is full. "
        failure += "The same command goes on from the newest checkpoint, if there is one."

    CoalesceStreamsPreprocessor().preprocess(notebook, {})
    executed = NOTEBOOK if arguments.in_place and not failure else build / NOTEBOOK.name
    page = build / NOTEBOOK.with_suffix(".html").name
    if arguments.in_place:
        for cell, source in zip(notebook.cells, sources, strict=True):
            cell.source = source
            if cell.cell_type == "code":  # TensorFlow's messages tell the time and the machine.
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        notebook.metadata.code_sha256 = code_sha256(notebook)  # Whose outputs these are.
    in_build = moved(notebook, build)
    nbformat.write(notebook if executed == NOTEBOOK else in_build, executed)
    page.write_text(HTMLExporter().from_notebook_node(in_build)[0], encoding="utf-8")

    saves = printed_lines(notebook, "checkpoint[ .:]|NOT saved")
    if not failure and saves and "NOT saved" in saves[-1]:
        failure = "The last iterations of the training are lost: see COULD NOT SAVE above."
    lines = ["", f"Executed notebook: {executed}", f"HTML page:         {page}"]
    lines += ["This was the STAND-IN SET, NOT CIFAR-10."] * cifar10.is_stand_in()
    lines += dict.fromkeys(saves[:1] + saves[-1:])
    lines += printed_lines(notebook, r"^Accuracy on Test-Set: .*\)$")[-1:]
    show("\n".join(lines) + "\n")
    sys.exit(failure or 0)


if __name__ == "__main__":
    main()
