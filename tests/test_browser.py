"""The notebook in JupyterLab, in a browser without a window, as a learner uses it: `apt install chromium`."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import pytest

from tests.conftest import SLOW
from tests.toy import values_of
from tests.train import OFTEN
from tools.notebook import NOTEBOOK, ROOT, TRAINING, changed_notebook, choose_settings

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    SLOW,
    pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium or Chrome."),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="There is no Playwright."),
]
LAST = 200
# Saves and records often, and is slow enough on any machine to be stopped.
CHANGES = OFTEN | {"# Get a batch of training examples.": "time.sleep(0.1)"}
WIDGET = "window.jupyterapp.shell.currentWidget"


def wait_until(condition, seconds=120):
    """Wait until something is true and return it."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "It took too long."
        time.sleep(0.2)
    return result


class Tab:
    """The notebook in a tab of the browser."""

    def __init__(self, browser, address):
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.goto(address)
        self.page.wait_for_function(f"() => window.jupyterapp && {WIDGET}?.sessionContext?.isReady")

    def run_all(self):
        self.page.get_by_text("Run", exact=True).first.click()
        self.page.get_by_text("Run All Cells", exact=True).click()

    def in_cell(self, cell, javascript):
        """Scroll to a cell, and return what a function of JavaScript returns of its element `node`."""
        content = f"{WIDGET}.content"
        self.page.evaluate(f"{content}.activeCellIndex = {cell}; {content}.scrollToItem({cell}, 'start')")
        return self.page.evaluate(f"(node => {javascript})({content}.widgets[{cell}].node)")


@pytest.fixture
def lab(tmp_path):
    """A copy of the project that JupyterLab shows, and a function that opens its notebook in a new tab."""
    from playwright.sync_api import sync_playwright

    project = tmp_path / "project"
    shutil.copytree(ROOT / "images", project / "images")
    for name in ("cifar10.py", "saver.py"):
        shutil.copy(ROOT / name, project)
    notebook, _ = changed_notebook(CHANGES)
    choose_settings(notebook, {"CIFAR10_DATA_PATH": "stand-in", "CIFAR10_LAST_ITERATION": LAST})
    nbformat.write(notebook, project / NOTEBOOK.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    log, environment = tmp_path / "log", os.environ | {"HOME": str(tmp_path)}
    with log.open("w") as file, sync_playwright() as playwright:
        server = subprocess.Popen(command, cwd=project, env=environment, stdout=file, stderr=file)
        try:
            wait_until(lambda: f":{port}/" in log.read_text())
            options = ["--no-sandbox", "--disable-background-networking"]
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
            address = f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}"
            yield SimpleNamespace(project=project, notebook=notebook, open=lambda: Tab(browser, address))
            browser.close()
        finally:
            server.terminate()
            server.wait()


def test_code_blocks_of_an_answer_stand_apart(lab):
    """There is a line of text between any two, and space below each, in JupyterLab's own style."""
    tab = lab.open()
    for i, cell in enumerate(lab.notebook.cells):
        if cell.source.startswith("<details>"):
            wait_until(
                lambda i=i: tab.in_cell(i, "node.querySelector('details')?.toggleAttribute('open', true)")
            )
            box = "[...node.querySelectorAll('pre')].map(block => block.getBoundingClientRect())"
            blocks = tab.in_cell(i, f"{box}.map(box => [box.top, box.bottom])")
            assert len(blocks) == cell.source.count("\n```") // 2
            for above, below in zip(blocks, blocks[1:], strict=False):
                assert below[0] - above[1] >= 20, cell.source
            text = "[...node.querySelectorAll('details > *')].filter(element => element.offsetHeight)"
            tops = tab.in_cell(i, f"{text}.map(element => element.getBoundingClientRect().top)")
            for _, bottom in blocks:
                assert all(top - bottom >= 10 for top in tops if top >= bottom), cell.source


def test_a_training_is_watched_stopped_left_alone_and_gone_on_with(lab):
    [training] = [i for i, cell in enumerate(lab.notebook.cells) if cell.source == TRAINING]

    def output():
        """The text and the picture below the training cell, of which there is at most one at any time."""
        images = tab.in_cell(training, "[...node.querySelectorAll('.jp-OutputArea img')].map(i => i.src)")
        text = tab.in_cell(training, "node.querySelector('.jp-OutputArea').innerText")
        assert len(images) <= 1
        # One line of progress, which is overwritten, and nothing stands behind it.
        assert len(re.findall(rf"of {LAST},.* left", text)) <= 1 + ("Interrupted" in text)
        assert not re.search(r"left *[^ \n]", text)
        return text, images

    def text_has(pattern):
        return lambda: re.search(pattern, output()[0])

    tab = lab.open()
    tab.run_all()
    wait_until(lambda: output()[1])
    _, before = output()
    wait_until(text_has(r"Global Step: +20, Loss: .*, Saved checkpoint\."))
    wait_until(lambda: output()[1] != before)

    tab.page.locator('[data-jp-item-name="interrupt"]').click()
    wait_until(text_has("Time usage"))
    saved = wait_until(text_has(r"Interrupted: .*\nGlobal Step: +(\d+), .*Saved checkpoint\."))
    assert int(saved[1]) < LAST

    # The whole notebook again, and then the tab is closed while it trains.
    tab.run_all()
    wait_until(text_has(rf"Global Step: (?!{saved[1]}\b)\d+ of {LAST}, .* left\s*$"))
    tab.page.close()
    tab = lab.open()
    tab.run_all()
    wait_until(text_has(f"The network has had {LAST} iterations already."), seconds=300)

    # Each iteration was done once, and no cell has failed.
    curve = values_of(lab.project / "checkpoints" / f"cifar10_cnn-{LAST}")["learning_curve"]
    assert list(curve[:, 0]) == list(range(5, LAST + 1, 5))
    cells = f"{WIDGET}.content.widgets.filter(cell => cell.model.type == 'code')"
    wait_until(lambda: tab.page.evaluate(f"{cells}.every(cell => cell.model.executionCount)"))
    tab.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    executed = nbformat.read(lab.project / NOTEBOOK.name, as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert len(outputs) > 20 and not [output for output in outputs if output.output_type == "error"]
