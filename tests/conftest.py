"""Fixtures: the stand-in set, the real CIFAR-10 where it is at hand, and what the notebook defines."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

import cifar10
from tools.notebook import ROOT, run_cells

SHARED = ROOT.parent / "shared"
needs_cifar10 = pytest.mark.skipif(
    not (SHARED / "CIFAR-10").is_dir(), reason="The real CIFAR-10 isn't at ../shared/CIFAR-10."
)
needs_original = pytest.mark.skipif(
    not (SHARED / "original").is_dir(), reason="The original's outputs aren't at ../shared/original."
)


FAULTS = ("test_faults.py", "test_saver.py")


def pytest_addoption(parser):
    parser.addoption("--fidelity", action="store_true", help="write tests/fidelity.md")
    parser.addoption("--full", action="store_true", help="all of the tests of faults (make test-faults)")


def _is_fault(item):
    """Tell whether a test is about something that goes wrong: with the data or in the training."""
    return "place" in item.fixturenames or item.path.name in FAULTS


def pytest_collection_modifyitems(config, items):
    """Leave out the long tests of faults unless --full is given."""
    if config.getoption("--full"):
        items[:] = [item for item in items if _is_fault(item)]
    else:
        long = [item for item in items if item.path.name in FAULTS and not item.get_closest_marker("short")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    for item in items:
        if _is_fault(item):
            item.user_properties.append(("fault", item.originalname.removeprefix("test_").replace("_", " ")))


def pytest_terminal_summary(terminalreporter):
    """Print what was tried, and what survived it."""
    table = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            fault = dict(report.user_properties).get("fault")
            if fault and (report.when == "call" or outcome != "passed"):
                table.setdefault(fault, []).append(outcome)
    if table:
        terminalreporter.section("faults: tried / survived")
        for fault, outcomes in table.items():
            tried = len(outcomes) - outcomes.count("skipped")
            terminalreporter.line(f"{fault:75} {tried:4} {outcomes.count('passed'):4}")


FIDELITY = pytest.StashKey[list[str]]()


@pytest.fixture
def fidelity(request):
    """A function that notes a measured difference from the original: its row of tests/fidelity.md."""
    rows = request.config.stash.setdefault(FIDELITY, [])

    def note(quantity, original, port, difference):
        rows.append(f"| {quantity} | {original} | {port} | {difference} | `{request.node.originalname}` |")

    return note


def pytest_sessionfinish(session, exitstatus):
    """Write the table of the differences from the original when all of it was measured."""
    if session.config.getoption("--fidelity") and exitstatus == 0:
        lines = ["| quantity | original | port | difference | measured by |", "|" + 5 * "---|"]
        lines += session.config.stash[FIDELITY]
        (ROOT / "tests" / "fidelity.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def stand_in_path():
    """What takes the place of the folder of the data set for the stand-in set."""
    return cifar10.STAND_IN


@pytest.fixture(scope="session")
def cifar10_path(tmp_path_factory):
    """Folder of the real CIFAR-10, extracted from an archive that was put there by hand."""
    path = tmp_path_factory.mktemp("CIFAR-10")
    shutil.copy(SHARED / "CIFAR-10" / "cifar-10-python.tar.gz", path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "data_path", path)
        cifar10.maybe_download_and_extract()
    return path


@pytest.fixture(scope="session")
def notebook(stand_in_path, tmp_path_factory):
    """What the notebook defines, with a new network, up to its training. Don't train this one."""
    return SimpleNamespace(**run_cells(stand_in_path, tmp_path_factory.mktemp("checkpoints")))


@pytest.fixture
def new_notebook(stand_in_path, tmp_path):
    """A function that runs the notebook up to its training, with a network of its own."""

    def run(save_dir=tmp_path / "checkpoints", data_path=stand_in_path, replace=None):
        return SimpleNamespace(**run_cells(data_path, save_dir, replace))

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a disk of a given size, e.g. "1m", and returns its folder."""
    path = tmp_path / "small disk"

    def make(size):
        path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("Mounting a disk takes Linux and the rights of root.")
        return path

    yield make
    if os.path.ismount(path):
        subprocess.run(["umount", str(path)], check=True)
