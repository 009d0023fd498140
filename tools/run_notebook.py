"""Runs the notebook from top to bottom without a browser, and shows the progress in the terminal.

    python -m tools.run_notebook                  # build/cifar10_cnn.ipynb and .html
    python -m tools.run_notebook --in-place       # cifar10_cnn.ipynb itself

Interrupt it (Ctrl-C) while it trains, and it saves a checkpoint and goes on to the results.

The environment variables CIFAR10_DATA_PATH, CIFAR10_SAVE_DIR and CIFAR10_NUM_ITERATIONS choose the
folder of the data set, the folder of the checkpoints and the number of training iterations.
When CIFAR-10 is neither found nor can be downloaded, the stand-in set takes its place and is trained
for 1,000 iterations. The exit status is 1 when a cell fails or the last checkpoint could not be saved.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

import cifar10
from tools.notebook import NOTEBOOK, ROOT, code_sha256


class TerminalClient(NotebookClient):
    """Executes a notebook and prints its headings and its text outputs on the way."""

    def output(self, outs, msg, display_id, cell_index):
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().output(outs, msg, display_id, cell_index)

    async def forward_interrupts(self, notebook):
        """Interrupt the cell that is running, as Jupyter's stop-button does, instead of the kernel."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):  # Windows.
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, lambda: asyncio.ensure_future(self.km.interrupt_kernel()))


def print_heading(cell, cell_index):
    """Print the headings at the beginning of a markdown cell."""
    if cell.cell_type == "markdown" and cell.source.startswith("#"):
        for line in cell.source.splitlines():
            if line.startswith("#"):
                print("\n" + line.lstrip("# "), flush=True)


def find_data():
    """Choose CIFAR-10 for the notebook or, when it can't be had, the stand-in set."""
    cifar10.data_path = os.environ.get("CIFAR10_DATA_PATH", cifar10.data_path)
    try:
        cifar10.maybe_download_and_extract()
    except cifar10.DataUnavailableError as error:
        print(error, file=sys.stderr)
        cifar10.data_path = cifar10.STAND_IN
        cifar10.maybe_download_and_extract()
        save_dir = Path(os.environ.get("CIFAR10_SAVE_DIR", "checkpoints"))
        os.environ["CIFAR10_SAVE_DIR"] = str(save_dir / "stand-in")
        os.environ.setdefault("CIFAR10_NUM_ITERATIONS", "1000")
    os.environ["CIFAR10_DATA_PATH"] = str(cifar10.data_path)


def drop_messages(notebook):
    """Drop TensorFlow's messages about its start, which tell the time and the machine."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def printed_lines(notebook):
    """Return all lines that the notebook has printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [line for output in outputs for line in output.get("text", "").splitlines()]


def find_accuracy(notebook):
    """Return the line that tells the test accuracy after the training."""
    return next(
        line
        for line in printed_lines(notebook)
        if line.startswith("Accuracy on Test-Set") and line.endswith(")")
    )


def last_save_failed(notebook):
    """Tell whether the last checkpoint could not be saved."""
    saves = [line for line in printed_lines(notebook) if line.startswith(("Saved", "COULD NOT SAVE"))]
    return bool(saves) and saves[-1].startswith("COULD NOT SAVE")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="folder of the results")
    parser.add_argument("--in-place", action="store_true", help="keep the outputs in the notebook itself")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    os.chdir(ROOT)

    find_data()
    if arguments.in_place and cifar10.is_stand_in():
        sys.exit("The notebook's own outputs must be of CIFAR-10, so it was not run.")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = TerminalClient(
        notebook, timeout=None, record_timing=False, on_cell_start=print_heading, kernel_name="python3"
    )
    client.on_notebook_start = client.forward_interrupts
    failure = None
    try:
        client.execute(cwd=ROOT)
    except CellExecutionError as error:
        failure = error

    build.mkdir(parents=True, exist_ok=True)
    executed = NOTEBOOK if arguments.in_place and failure is None else build / NOTEBOOK.name
    page = build / NOTEBOOK.with_suffix(".html").name
    notebook.metadata.language_info = {"name": "python"}
    if arguments.in_place:
        drop_messages(notebook)
        notebook.metadata.code_sha256 = code_sha256(notebook)  # Whose outputs these are.
    nbformat.write(notebook, executed)
    page.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")

    print(f"\nExecuted notebook: {executed}\nHTML page:         {page}")
    if failure is not None:
        sys.exit(f"\nThe notebook stopped with an error:\n{failure}")
    if cifar10.is_stand_in():
        print("This was the STAND-IN SET, NOT CIFAR-10.")
    if last_save_failed(notebook):
        sys.exit("The last iterations of the training are lost: see COULD NOT SAVE above.")
    print(find_accuracy(notebook))


if __name__ == "__main__":
    main()
