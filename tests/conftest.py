"""Fixtures: the stand-in set, the real CIFAR-10 where it is at hand, and what the notebook defines."""

import codecs
import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import socket
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

# A change of the notebook: no pictures of distorted images, for which TensorFlow makes another graph.
NO_PICTURES = {"plot_distorted_image(img, cls, seed=0)": ""}
SLOW = pytest.mark.slow
FAULTS = ("test_files.py", "test_runs.py", "test_interrupts.py")
PEAKS = pytest.StashKey[list[float]]()


def mostly_slow(values, *quick):
    """Parameters of a test, of which `make test` tries only these."""
    return [pytest.param(value, marks=[] if value in quick else SLOW) for value in values]


def pytest_addoption(parser):
    parser.addoption("--fidelity", action="store_true", help="write tests/fidelity.md")
    parser.addoption("--full", action="store_true", help="run the slow tests too, and try all damages")


@pytest.hookimpl(tryfirst=True)  # Before the tests are chosen by their marks.
def pytest_collection_modifyitems(config, items):
    """Mark what is about faults, of the data or in the training, and leave out what is slow."""
    for item in items:
        if "place" in item.fixturenames or item.path.name in FAULTS:
            item.add_marker("fault")
    if not config.getoption("--full"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def peak_memory():
    """The most memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Note the memory of one of the processes that share the tests."""
    node.config.stash.setdefault(PEAKS, []).append(node.workeroutput["peak"])


def pytest_terminal_summary(terminalreporter, config):
    """Print the memory, what was tried, what survived it, and what was left out."""
    peaks = " and ".join(f"{peak:.1f} GB" for peak in config.stash.get(PEAKS, [peak_memory()]))
    terminalreporter.line(f"\nPeak of the memory: {peaks}")
    table = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if "fault" in report.keywords and (report.when == "call" or outcome != "passed"):
                fault = report.location[2].split("[")[0].removeprefix("test_").replace("_", " ")
                table.setdefault(fault, []).append(outcome)
    if table:
        terminalreporter.section("faults: tried / survived")
        for fault, outcomes in table.items():
            tried = len(outcomes) - outcomes.count("skipped")
            terminalreporter.line(f"{fault:75} {tried:4} {outcomes.count('passed'):4}")
    slow = [item for item in terminalreporter.stats.get("deselected", []) if "slow" in item.keywords]
    if slow and not config.getoption("--full"):
        terminalreporter.section("left out")
        terminalreporter.line(
            f"{len(slow)} slow tests, and most of the bytes that others damage. All: make test-all"
        )


def custom_gradients():
    """TensorFlow's registry, which keeps each of them with its graph for ever, and their names in it."""
    if "tensorflow" not in sys.modules:
        return {}, set()
    registry = sys.modules["tensorflow.python.framework.ops"].gradient_registry._registry
    return registry, {name for name in registry if name.startswith("CustomGradient-")}


@pytest.fixture(autouse=True)
def _as_before(request):
    """What a test has set or made goes with it. Else a thousand notebooks would stay in memory."""
    _, before = custom_gradients()
    yield
    registry, after = custom_gradients()
    for name in after - before:
        del registry[name]
    if {"new_notebook", "cifar10_path"} & {*request.fixturenames}:
        gc.collect()  # Networks and data go, and the C library gives back what would hardly fit larger ones.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")
        sys.modules["tensorflow"].distribute.experimental_set_strategy(None)


FIDELITY = pytest.StashKey[list[str]]()


@pytest.fixture
def fidelity(request):
    """A function that notes a measured difference from the original: its row of tests/fidelity.md."""
    rows = request.config.stash.setdefault(FIDELITY, [])

    def note(quantity, original, port, difference):
        rows.append(f"| {quantity} | {original} | {port} | {difference} | `{request.node.originalname}` |")

    return note


def pytest_sessionfinish(session, exitstatus):
    """Write the table of the differences from the original when they were measured, and tell the memory."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak"] = peak_memory()
    rows = session.config.stash.get(FIDELITY, [])
    if session.config.getoption("--fidelity") and exitstatus == 0 and rows:
        lines = ["| quantity | original | port | difference | measured by |", "|" + 5 * "---|", *rows]
        (ROOT / "tests" / "fidelity.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def stand_in_path():
    """What takes the place of the folder of the data set for the stand-in set."""
    return cifar10.STAND_IN


@pytest.fixture(scope="session")
def cifar10_path(tmp_path_factory):
    """Folder of the real CIFAR-10, extracted from an archive that was put there by hand."""
    path = tmp_path_factory.mktemp("CIFAR-10")
    name = "cifar-10-python.tar.gz"
    (path / name).symlink_to(SHARED / "CIFAR-10" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "data_path", path)
        cifar10.maybe_download_and_extract()
    return path


@pytest.fixture(scope="session")
def notebook(stand_in_path, tmp_path_factory):
    """What the notebook defines, with a new network, up to its training. Don't train this one."""
    return SimpleNamespace(**run_cells(stand_in_path, tmp_path_factory.mktemp("checkpoints"), NO_PICTURES))


@pytest.fixture
def new_notebook(stand_in_path, tmp_path):
    """A function that runs the notebook up to its training, with a network of its own."""

    def run(save_dir=tmp_path / "checkpoints", data_path=stand_in_path, replace=None):
        return SimpleNamespace(**run_cells(data_path, save_dir, NO_PICTURES | (replace or {})))

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


@contextlib.contextmanager
def largest_file(size):
    """Let writing more bytes to a file fail, like on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def as_user():
    """A function that takes root's rights from this process, or gives them back."""
    is_root = os.geteuid() == 0
    codecs.lookup("ascii")  # Python may lie in root's home, so filelock couldn't load it later.

    def change(folder=None):
        for path in (folder, *folder.parents) if folder else ():
            if path.stat().st_uid == os.getuid() and path != path.parent:
                path.chmod(path.stat().st_mode | 0o055)
        if is_root:
            os.seteuid(65534 if folder else 0)

    yield change
    change()


@pytest.fixture
def read_only(as_user):
    """A function that makes a folder read-only, and takes root's rights from this process."""
    folders = []

    def protect(folder):
        folders.append(folder)
        folder.chmod(0o555)
        as_user(folder)
        with pytest.raises(PermissionError):
            (folder / "test").touch()

    yield protect
    as_user()
    for folder in folders:
        folder.chmod(0o755)


def take_signals():
    """Let a new process take the signals that it would ignore when the tests run behind nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def begin():
    """A function that runs Python in another process, until the end of the test.

    Its arguments are those of Python, the folder, and more variables of the environment.
    """
    processes = []

    def run(*arguments, cwd=ROOT, env=None):
        command = [sys.executable, "-u", *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        options |= {"cwd": cwd, "env": os.environ | (env or {}), "preexec_fn": take_signals}
        processes.append(subprocess.Popen(command, **options))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.wait()


def two_tasks():
    """The variables of the environment of two processes on this computer that train together."""
    with socket.socket() as first, socket.socket() as second:
        for s in (first, second):
            s.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{s.getsockname()[1]}" for s in (first, second)]
    tasks = [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}} for i in (0, 1)]
    return [{"TF_CONFIG": json.dumps(task)} for task in tasks]
