"""Killed, interrupted, done twice: a training that is resumed is that without a break, to the bit."""

import os
import random
import re
import shutil
import signal
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from saver import CheckpointError
from tests.conftest import SLOW, mostly_slow
from tests.toy import DATA, INDEX, Kernel, files
from tests.train import EXERCISE_OFTEN, OFTEN, STAGES
from tools.notebook import ROOT, run_cells

ITERATIONS = 60
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _interrupts():
    """A shell lets its background jobs ignore some, and nohup others."""
    usual = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    before = [signal.signal(number, handler) for number, handler in zip(SIGNALS, usual, strict=True)]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def state(notebook):
    """All that training changes, as bytes. The seconds in the curve are left out."""
    variables = [*notebook.network.variables, *notebook.optimizer.variables, notebook.global_step]
    curve = np.array(notebook.learning_curve)[:, [0, 1, 2, 4]]
    return [v.numpy().tobytes() for v in variables] + [curve.tobytes()]


def train_up_to(last, notebook):
    notebook.optimize(last - int(notebook.global_step))
    return state(notebook)


@pytest.fixture(scope="module")
def uninterrupted(stand_in_path, tmp_path_factory):
    """The state after all iterations without a break, in one process."""
    notebook = SimpleNamespace(**run_cells(stand_in_path, tmp_path_factory.mktemp("whole"), OFTEN))
    notebook.optimize(ITERATIONS)
    assert [row[0] for row in notebook.learning_curve] == list(range(5, ITERATIONS + 1, 5))
    return state(notebook)


@pytest.fixture
def start(begin, stand_in_path, tmp_path):
    """A function that begins to train in another process, in the folder `checkpoints`."""

    def run(iterations=ITERATIONS, *options):
        process = begin("-m", "tests.train", stand_in_path, tmp_path / "checkpoints", iterations, *options)
        wait_for("TRAINING BEGINS\n", process)
        return process

    return run


def wait_for(text, process):
    """Read the output of a process up to a line."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"The process ended before it printed {text!r}:\n{''.join(lines)}")


########################################################################
# Killed.


def kill(process, num_saves, seconds=0.0):
    """Kill a process some seconds after one of its saves."""
    for _ in range(num_saves):
        wait_for("Saved checkpoint.\n", process)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", mostly_slow(range(21), 0))
def test_kill_while_training(number, start, new_notebook, uninterrupted, capsys):
    """Each at a random moment after one of its first saves."""
    num_saves = 1 + number % 8
    kill(start(), num_saves, random.Random(number).uniform(0, 0.2))
    resumed = new_notebook(replace=OFTEN)
    assert 5 * num_saves <= resumed.global_step < ITERATIONS
    assert train_up_to(ITERATIONS, resumed) == uninterrupted
    assert "Damaged" not in capsys.readouterr().out


@SLOW
def test_kill_again_and_again(start, new_notebook, uninterrupted):
    """A run that is killed after each of its first saves, until it reaches the end."""
    for number in range(4):
        kill(start(), 1, random.Random(number).uniform(0, 0.5))
    resumed = new_notebook(replace=OFTEN)
    assert resumed.global_step >= 20
    assert train_up_to(ITERATIONS, resumed) == uninterrupted


@SLOW
def test_kill_an_exercise_in_lower_precision(start, new_notebook, tmp_path):
    """With epochs in a new order, and a learning-rate that depends on the iteration."""
    kill(start(32, "--exercise"), 3)
    resumed = new_notebook(replace=EXERCISE_OFTEN)
    whole = new_notebook(tmp_path / "whole", replace=EXERCISE_OFTEN)
    assert 6 <= resumed.global_step < 32
    assert train_up_to(32, resumed) == train_up_to(32, whole)


@SLOW
@pytest.mark.parametrize("stage", STAGES)
def test_kill_while_saving(stage, start, new_notebook, uninterrupted, tmp_path, capsys):
    process = start(ITERATIONS, "--kill-at", stage)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    resumed = new_notebook(replace=OFTEN)
    # Killed in the save after iteration 35. It counts from the moment when its index is there.
    assert resumed.global_step == (30 if STAGES.index(stage) <= STAGES.index("data moved") else 35)
    assert train_up_to(ITERATIONS, resumed) == uninterrupted
    assert "Damaged" not in capsys.readouterr().out  # It was only half done.
    kept = {f"cifar10_cnn-{i}{ending}" for i in (40, 45, 50, 55, 60) for ending in (INDEX, DATA)}
    assert set(os.listdir(tmp_path / "checkpoints")) == kept | {"training.lock", "training.owner"}


@SLOW
def test_resume_after_any_number_of_iterations(new_notebook, uninterrupted):
    for number in (1, 12, ITERATIONS - 13):
        resumed = new_notebook(replace=OFTEN)
        resumed.optimize(number)
    assert state(resumed) == uninterrupted
    assert (np.diff(np.array(resumed.learning_curve)[:, 3]) > 0).all()  # The seconds of all runs.


########################################################################
# Interrupted.


@SLOW
@pytest.mark.parametrize("number", SIGNALS)
def test_interrupt_of_a_process(number, start, new_notebook, uninterrupted, tmp_path):
    process = start(100_000)
    wait_for("Saved checkpoint.\n", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and output.endswith("TRAINING RETURNED\n")
    assert "Interrupted: " in output and "Saved checkpoint." in output
    resumed = new_notebook(replace=OFTEN)
    step = int(resumed.global_step)
    assert step >= 5
    if step < ITERATIONS and step % 5 == 0:
        assert train_up_to(ITERATIONS, resumed) == uninterrupted
    else:  # With a last row in the curve, or on a fast machine.
        whole = new_notebook(save_dir=tmp_path / "whole", replace=OFTEN)
        assert state(resumed) == train_up_to(step, whole)


TWO = [signal.SIGINT, signal.SIGTERM]
SEQUENCES = [[number] for number in SIGNALS] + [
    TWO,
    [signal.SIGTERM, signal.SIGINT],
    [signal.SIGTERM, signal.SIGTERM],
    [signal.SIGHUP, signal.SIGTERM],
]


@pytest.mark.parametrize(
    "signals", mostly_slow(SEQUENCES, TWO), ids=lambda signals: ", ".join(s.name for s in signals)
)
@pytest.mark.parametrize("when", ["in an iteration", "between two", "while writing", "while renaming"])
def test_interrupts_that_break_nothing_off(signals, when, tmp_path, monkeypatch, capsys):
    kernel, whole = Kernel(tmp_path / "own"), Kernel(tmp_path / "whole")
    before, left = [signal.getsignal(number) for number in SIGNALS], list(signals)

    def interrupting(function):
        def interrupted(*arguments, **others):
            while left:
                signal.raise_signal(left.pop(0))
            return function(*arguments, **others)

        return interrupted

    with monkeypatch.context() as patch:
        if when == "in an iteration":
            patch.setitem(kernel.names, "pre_process", interrupting(kernel.pre_process))
        elif when == "between two":
            patch.setitem(kernel.names, "float", interrupting(float))
        elif when == "while writing":
            patch.setattr(tf.raw_ops, "SaveV2", interrupting(tf.raw_ops.SaveV2))
        else:
            patch.setattr(os, "replace", interrupting(os.replace))
        assert kernel.optimize(5) == [True]
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert capsys.readouterr().out.count("Interrupted: ") == 1
    resumed = Kernel(tmp_path / "own")
    assert resumed.global_step == 1
    resumed.optimize(4)
    whole.optimize(5)
    assert resumed.state() == whole.state()


@SLOW
@pytest.mark.parametrize("number", SIGNALS)
def test_interrupt_while_evaluating(number, new_notebook, uninterrupted, monkeypatch):
    """During training it is as at any other time; outside it has its usual effect and harms nothing."""
    notebook = new_notebook(replace=OFTEN)
    names, accuracy, left = notebook.optimize.__globals__, notebook.accuracy, [number]

    def interrupted_accuracy(*batch):
        if left:
            signal.raise_signal(left.pop())
        return accuracy(*batch)

    with monkeypatch.context() as patch:
        patch.setitem(names, "accuracy", interrupted_accuracy)
        notebook.optimize(ITERATIONS)
        assert notebook.global_step == 6 and not left
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(names, "y_pred_cls", lambda images: signal.raise_signal(signal.SIGINT))
        notebook.print_test_accuracy()
    assert train_up_to(ITERATIONS, notebook) == uninterrupted


def test_a_signal_that_nohup_ignores_stays_ignored(tmp_path, monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    kernel = Kernel(tmp_path)
    monkeypatch.setitem(kernel.names, "float", lambda x: signal.raise_signal(signal.SIGHUP) or float(x))
    assert kernel.optimize(3) == [True] * 3
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_second_interrupt_breaks_off_and_harms_nothing(tmp_path):
    kernel, whole = Kernel(tmp_path / "own"), Kernel(tmp_path / "whole")
    kernel.optimize(2)
    with pytest.raises(KeyboardInterrupt), kernel.saver.training() as interrupted:
        assert not interrupted.is_set()
        kernel.learning_curve.append([3, float(kernel.train_step(kernel.random_batch(3)))])
        signal.raise_signal(signal.SIGINT)
        assert interrupted.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(CheckpointError, match="saver.save"):
        kernel.run("restore")  # The last iteration isn't saved.
    kernel.optimize(2)  # The lock was released, and it can just go on,
    kernel.run("restore")  # and then all is saved.
    whole.optimize(5)
    assert kernel.state() == whole.state()


@pytest.mark.parametrize("ending", [DATA, INDEX])
def test_a_second_interrupt_while_saving_harms_nothing(ending, tmp_path, monkeypatch):
    kernel, whole = Kernel(tmp_path / "own"), Kernel(tmp_path / "whole")
    replace = os.replace

    def interrupted(source, target):
        replace(source, target)
        if ending in str(target):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        kernel.optimize(5)
    resumed = Kernel(tmp_path / "own")
    resumed.optimize(3 - int(resumed.global_step))
    whole.optimize(3)
    assert resumed.state() == whole.state()


@SLOW
def test_interrupted_measurement_records_nothing(begin, stand_in_path):
    results = ROOT / "benchmarks" / "accuracy.csv"
    before = results.read_bytes()
    process = begin(
        "-m", "benchmarks.accuracy", "as it is", "--seeds", "987654", "--data-path", stand_in_path
    )
    try:
        wait_for("Global Step:", process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1 and "Nothing is recorded: " in output, output
        assert results.read_bytes() == before
    finally:
        process.kill()
        process.wait()
        results.write_bytes(before)
        for folder in (ROOT / "build" / "accuracy").glob("*/987654"):
            shutil.rmtree(folder)


########################################################################
# Done twice.


@SLOW
def test_two_processes_in_one_folder(start, new_notebook, tmp_path):
    process = start(100_000)
    wait_for("Saved checkpoint.\n", process)
    second = new_notebook(replace=OFTEN)  # It may look, but not train.
    step = int(second.global_step)
    assert step >= 5
    owner = re.escape(f"process {process.pid} on {socket.gethostname()} is training there")
    with pytest.raises(CheckpointError, match=f"checkpoints is in use: {owner}"):
        second.optimize(1)
    assert second.global_step == step
    process.kill()  # A dead owner's lock is taken over.
    process.communicate()
    third = new_notebook(replace=OFTEN)
    third.optimize(1)
    with pytest.raises(CheckpointError, match=r"newer than .* Run saver.restore\(save_dir\)"):
        second.optimize(1)


def test_a_look_while_another_kernel_saves(tmp_path, capsys):
    """Between its two renames the newest checkpoint has only its data."""
    Kernel(tmp_path).optimize(3)
    index = tmp_path / f"cifar10_cnn-3{INDEX}"
    index.rename(tmp_path / "away")
    looking = Kernel(tmp_path)
    assert looking.global_step == 2
    (tmp_path / "away").rename(index)
    kept = files(tmp_path)
    with pytest.raises(CheckpointError, match="cifar10_cnn-3 is newer"):
        looking.optimize(1)
    assert files(tmp_path) == kept
    looking.run("restore")
    assert looking.global_step == 3
