"""What can go wrong in a night of training: killed, interrupted, damaged, full, changed, done twice.

`make test` leaves out the slow ones, and most of the damages; `make test-faults` runs all of it.
"""

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import saver as saver_module
from saver import CheckpointError, Saver
from tests.train import EXERCISE_OFTEN, OFTEN, STAGES
from tools.exercises import RESULTS
from tools.notebook import ROOT, run_cells, settings

ITERATIONS = 60
INDEX, DATA = ".index", ".data-00000-of-00001"
SETTINGS = "settings/.ATTRIBUTES/VARIABLE_VALUE"


def state(notebook):
    """All that training changes, as bytes. The seconds in the curve are left out."""
    variables = [*notebook.network.variables, *notebook.optimizer.variables, notebook.global_step]
    curve = notebook.learning_curve.numpy()[:, [0, 1, 2, 4]]
    return [v.numpy().tobytes() for v in variables] + [curve.tobytes()]


@pytest.fixture(scope="module")
def uninterrupted(stand_in_path, tmp_path_factory):
    """The state after all iterations without a break, in one process."""
    notebook = SimpleNamespace(**run_cells(stand_in_path, tmp_path_factory.mktemp("whole"), OFTEN))
    notebook.optimize(ITERATIONS)
    assert list(notebook.learning_curve.numpy()[:, 0]) == list(range(5, ITERATIONS + 1, 5))
    return state(notebook)


@pytest.fixture
def begin():
    """A function that runs a module of the project in another process, until the end of the test."""
    processes = []

    def run(*arguments, env=None):
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *arguments],
            cwd=ROOT,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def start(begin, stand_in_path, tmp_path):
    """A function that begins to train in another process, in the folder `checkpoints`."""

    def run(iterations=ITERATIONS, *options):
        process = begin("tests.train", stand_in_path, tmp_path / "checkpoints", str(iterations), *options)
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


@pytest.mark.parametrize("number", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 21))])
def test_kill_while_training(number, start, new_notebook, uninterrupted, capsys):
    """Each at a random moment after one of its first saves."""
    process = start()
    num_saves = 1 + number % 8
    kill(process, num_saves, random.Random(number).uniform(0, 0.2))
    assert process.returncode == -signal.SIGKILL
    resumed = new_notebook(replace=OFTEN)
    assert 5 * num_saves <= resumed.global_step < ITERATIONS
    resumed.optimize(ITERATIONS - int(resumed.global_step))
    assert state(resumed) == uninterrupted
    assert "set aside" not in capsys.readouterr().out


@pytest.mark.slow
def test_kill_again_and_again(start, new_notebook, uninterrupted):
    """A run that is killed after each of its first saves, until it reaches the end."""
    for number in range(4):
        kill(start(), 1, random.Random(number).uniform(0, 0.5))
    resumed = new_notebook(replace=OFTEN)
    assert resumed.global_step >= 20
    resumed.optimize(ITERATIONS - int(resumed.global_step))
    assert state(resumed) == uninterrupted


@pytest.mark.slow
def test_kill_an_exercise(start, new_notebook, tmp_path):
    """One with epochs in a new order and a learning-rate that depends on the iteration."""
    process = start(32, "--exercise")
    kill(process, 3)
    assert process.returncode == -signal.SIGKILL
    resumed = new_notebook(replace=EXERCISE_OFTEN)
    whole = new_notebook(tmp_path / "whole", replace=EXERCISE_OFTEN)
    assert 6 <= resumed.global_step < whole.last_iteration == 32
    for notebook in (resumed, whole):
        notebook.optimize(32 - int(notebook.global_step))
    assert state(resumed) == state(whole)


@pytest.mark.parametrize(
    "stage",
    [pytest.param(stage, marks=() if stage == "data moved" else pytest.mark.slow) for stage in STAGES],
)
def test_kill_while_saving(stage, start, new_notebook, uninterrupted, tmp_path, capsys):
    process = start(ITERATIONS, "--kill-at", stage)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    resumed = new_notebook(replace=OFTEN)
    output = capsys.readouterr().out
    # Killed in the save after iteration 35. It counts from the moment when its index is there.
    assert resumed.global_step == (30 if STAGES.index(stage) <= STAGES.index("data moved") else 35)
    assert ("cifar10_cnn-35 (cifar10_cnn-35.index is missing)" in output) == (stage == "data moved")
    resumed.optimize(ITERATIONS - int(resumed.global_step))
    assert state(resumed) == uninterrupted
    names = set(os.listdir(tmp_path / "checkpoints"))
    kept = {f"cifar10_cnn-{i}{ending}" for i in (40, 45, 50, 55, 60) for ending in (INDEX, DATA)}
    aside = {f"cifar10_cnn-35{DATA}.damaged-1"} if stage == "data moved" else set()
    assert names == kept | aside | {"training.lock", "training.owner"}


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_run", [1, 7])
def test_resume_after_any_number_of_iterations(steps_per_run, new_notebook, uninterrupted, tmp_path):
    change = OFTEN | {"steps_per_run = 10": f"steps_per_run = {steps_per_run}"}
    for number in (1, 12, ITERATIONS - 13):
        resumed = new_notebook(replace=change)
        resumed.optimize(number)
    if steps_per_run == 1:
        assert state(resumed) == uninterrupted
    else:  # The curve has other rows then.
        assert state(resumed)[:-1] == uninterrupted[:-1]


########################################################################
# Interrupted.


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_while_training(number, start, new_notebook, uninterrupted, tmp_path):
    process = start(100_000)
    wait_for("Saved checkpoint.\n", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and output.endswith("TRAINING RETURNED\n")
    assert "Interrupted: the iterations under way are finished" in output
    assert "Interrupted, with 99" in output
    resumed = new_notebook(replace=OFTEN)
    step = int(resumed.global_step)
    assert step >= 5
    if step < ITERATIONS:
        resumed.optimize(ITERATIONS - step)
        assert state(resumed) == uninterrupted
    else:  # A fast machine. Go there without a break as well.
        whole = new_notebook(save_dir=tmp_path / "whole", replace=OFTEN)
        whole.optimize(step)
        assert state(resumed) == state(whole)


@pytest.mark.slow
def test_interrupt_of_the_run_without_a_browser(begin, stand_in_path, tmp_path):
    """It saves a checkpoint and goes on to the results."""
    environment = settings(stand_in_path, tmp_path / "checkpoints", 100_000)
    process = begin("tools.run_notebook", "--build", tmp_path / "build", env=environment)
    wait_for("Global Step:    100", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "Saved checkpoint." in output and "Interrupted, with 99" in output
    assert output.splitlines()[-1].startswith("Accuracy on Test-Set: ")
    assert len(list((tmp_path / "checkpoints").glob("*.index"))) == 1


@pytest.mark.slow
def test_interrupted_measurement_records_nothing(begin, stand_in_path):
    before = RESULTS.read_bytes()
    process = begin("benchmarks.accuracy", "as it is", "--seeds", "987654", "--data-path", stand_in_path)
    try:
        wait_for("Global Step:    100", process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1 and "Interrupted, so nothing is recorded." in output, output
        assert RESULTS.read_bytes() == before
    finally:
        process.kill()
        RESULTS.write_bytes(before)
        for folder in (ROOT / "build" / "accuracy").glob("*/987654"):
            shutil.rmtree(folder)


def test_second_interrupt_aborts(tmp_path):
    training = tiny(tmp_path)
    before = signal.default_int_handler
    signal.signal(signal.SIGINT, before)  # A shell lets its background jobs ignore the signal.
    with pytest.raises(KeyboardInterrupt), training.saver.training() as interrupted:
        assert not interrupted.is_set()
        signal.raise_signal(signal.SIGINT)
        assert interrupted.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with training.saver.training():  # The lock was released.
        pass


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_while_saving(number, new_notebook, uninterrupted, monkeypatch, tmp_path):
    write = tf.train.Checkpoint.write

    def interrupted_write(self, path):
        signal.raise_signal(number)
        return write(self, path)

    notebook = new_notebook(replace=OFTEN)
    with monkeypatch.context() as patch:
        patch.setattr(tf.train.Checkpoint, "write", interrupted_write)
        notebook.optimize(ITERATIONS)
    assert notebook.global_step == 5
    resumed = new_notebook(replace=OFTEN)
    assert resumed.global_step == 5
    resumed.optimize(ITERATIONS - 5)
    assert state(resumed) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_while_evaluating(number, new_notebook, uninterrupted):
    """During training it is as at any other time; outside it has its usual effect and harms nothing."""
    notebook = new_notebook(replace=OFTEN)
    accuracy = notebook.accuracy

    def interrupted_accuracy(*batch):
        signal.raise_signal(number)
        return accuracy(*batch)

    notebook.optimize.__globals__["accuracy"] = interrupted_accuracy
    notebook.optimize(ITERATIONS)
    assert notebook.global_step == 5
    notebook.optimize.__globals__["accuracy"] = accuracy
    notebook.optimize(5)

    y_pred_cls = notebook.y_pred_cls
    notebook.predict_cls.__globals__["y_pred_cls"] = lambda images: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        notebook.print_test_accuracy()
    notebook.predict_cls.__globals__["y_pred_cls"] = y_pred_cls
    notebook.optimize(ITERATIONS - 10)
    assert state(notebook) == uninterrupted


########################################################################
# Damaged files. A tiny network, so that every byte can be tried.


def tiny(save_dir):
    """A training run of a network with six weights, whose state is told by its number of iterations."""
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input([2]), keras.layers.Dense(2, name="layer_fc1")])
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(network.trainable_variables)
    global_step = tf.Variable(0, dtype=tf.int64)

    def train(step=None):
        global_step.assign(step or global_step + 1)
        optimizer.iterations.assign(global_step)
        for v in network.variables:
            v.assign(tf.fill(v.shape, tf.cast(global_step, tf.float32)))

    saver = Saver(network=network, optimizer=optimizer, global_step=global_step, train_step=train)
    training = SimpleNamespace(saver=saver, network=network, global_step=global_step, train=train)
    saver.restore(save_dir)
    return training


def values(training):
    return [v.numpy().tolist() for v in training.network.variables]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A folder with the checkpoints after iterations 1 and 2."""
    path = tmp_path_factory.mktemp("two")
    training = tiny(path)
    for _ in range(2):
        training.train()
        training.saver.save()
    return path


def check_damage(path, capsys, restored, harmless=False):
    """Check that the first checkpoint takes the place of the damaged second one, which is kept."""
    files = {name: (path / name).read_bytes() for name in os.listdir(path)}
    capsys.readouterr()
    restored.saver.restore(path)
    step = int(restored.global_step.numpy())
    output = capsys.readouterr().out
    assert {name: (path / name).read_bytes() for name in os.listdir(path)} == files  # It was a mere look.
    with restored.saver.training():
        aside = capsys.readouterr().out
    for name in ("training.lock", "training.owner"):
        (path / name).unlink()
    if harmless and step == 2:  # E.g. a byte of padding.
        assert "Damaged" not in output
    else:
        assert step == 1
        assert f"Damaged, so it is not used: {path / 'cifar10_cnn-2'} (" in output
        assert f"Damaged, so it is set aside: {path / 'cifar10_cnn-2'} (" in aside
        assert f"Restored checkpoint from: {path / 'cifar10_cnn-1'}\n" in output
        assert not (path / f"cifar10_cnn-2{INDEX}").exists()
    assert values(restored) == [[[step, step], [step, step]], [step, step]]
    left = {name: (path / name).read_bytes() for name in os.listdir(path)}
    assert sorted(left.values()) == sorted(files.values())  # Nothing lost, nothing altered.


def try_damages(damages, two_checkpoints, tmp_path, capsys, harmless=False):
    restored = tiny(tmp_path / "none")
    for number, damage in enumerate(damages):
        path = tmp_path / str(number)
        shutil.copytree(two_checkpoints, path)
        damage(path / f"cifar10_cnn-2{INDEX}", path / f"cifar10_cnn-2{DATA}")
        check_damage(path, capsys, restored, harmless)
        shutil.rmtree(path)


def few(numbers, request):
    """All of the numbers with --full, eight of them without."""
    numbers = list(numbers)
    return numbers if request.config.getoption("--full") else numbers[:: max(1, len(numbers) // 7)]


@pytest.mark.parametrize("ending", [INDEX, DATA])
def test_file_cut_short(ending, two_checkpoints, tmp_path, capsys, request):
    size = (two_checkpoints / f"cifar10_cnn-2{ending}").stat().st_size
    damages = [lambda *files, n=n: os.truncate(files[ending == DATA], n) for n in few(range(size), request)]
    try_damages(damages, two_checkpoints, tmp_path, capsys)


@pytest.mark.parametrize("ending", [INDEX, DATA])
def test_flipped_bit(ending, two_checkpoints, tmp_path, capsys, request):
    size = (two_checkpoints / f"cifar10_cnn-2{ending}").stat().st_size

    def flip(*files, bit):
        content = bytearray(files[ending == DATA].read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        files[ending == DATA].write_bytes(content)

    bits = few(range(3, 8 * size, 11), request)  # Every byte, and each bit of a byte in turn.
    damages = [lambda *files, bit=bit: flip(*files, bit=bit) for bit in bits]
    try_damages(damages, two_checkpoints, tmp_path, capsys, harmless=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda index, data: index.write_bytes(bytes(index.stat().st_size)),
        lambda index, data: data.write_bytes(bytes(data.stat().st_size)),
        lambda index, data: index.write_bytes(b""),
        lambda index, data: data.write_bytes(b""),
        lambda index, data: index.write_bytes(random.Random(1).randbytes(500)),
        lambda index, data: data.write_bytes(random.Random(2).randbytes(500)),
        lambda index, data: index.unlink(),
        lambda index, data: data.unlink(),
        lambda index, data: shutil.copy(str(data).replace("-2.", "-1."), data),
    ],
    ids=["index zeroed", "data zeroed", "index empty", "data empty", "index garbage", "data garbage",
         "index missing", "data missing", "data of another checkpoint"],
)  # fmt: skip
def test_file_zeroed_missing_or_garbage(damage, two_checkpoints, tmp_path, capsys):
    try_damages([damage], two_checkpoints, tmp_path, capsys)


def test_damaged_checkpoint_of_the_notebook(new_notebook, uninterrupted, tmp_path, capsys):
    new_notebook(replace=OFTEN).optimize(20)
    with open(tmp_path / "checkpoints" / f"cifar10_cnn-20{DATA}", "r+b") as file:
        file.seek(4_000_000)
        byte = file.read(1)[0]
        file.seek(4_000_000)
        file.write(bytes([byte ^ 16]))
    resumed = new_notebook(replace=OFTEN)
    assert "Damaged, so it is not used" in capsys.readouterr().out
    assert resumed.global_step == 15 and len(resumed.learning_curve.numpy()) == 3
    resumed.optimize(ITERATIONS - 15)
    assert state(resumed) == uninterrupted


def test_none_is_whole(two_checkpoints, tmp_path):
    path = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, path)
    for name in os.listdir(path):
        (path / name).write_bytes(b"garbage")
    before = {name: (path / name).read_bytes() for name in os.listdir(path)}
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none is whole:\n  cifar10_cnn-2: .*\n  cifar10_cnn-1: "):
            tiny(path)
        assert {name: (path / name).read_bytes() for name in os.listdir(path)} == before
    for name in os.listdir(path):  # As after they were set aside.
        (path / name).rename(path / f"{name}.damaged-1")
    with pytest.raises(CheckpointError, match="none is whole:\n  cifar10_cnn-1.data.*damaged-1"):
        tiny(path)


def test_names_of_damaged_files_are_never_used_twice(two_checkpoints, tmp_path, capsys):
    path = tmp_path / "checkpoints"
    for _ in range(3):
        shutil.copytree(two_checkpoints, path, dirs_exist_ok=True)
        (path / f"cifar10_cnn-2{INDEX}").write_bytes(b"")
        check_damage(path, capsys, tiny(tmp_path / "none"))
    assert sum(".damaged-" in name for name in os.listdir(path)) == 6


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_state_file_makes_no_difference(content, two_checkpoints, tmp_path):
    path = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, path)
    if content is not None:
        (path / "checkpoint").write_bytes(content)
    assert tiny(path).global_step == 2


@pytest.mark.parametrize("name", ["[1] ünï", "a*b?", "with space", "{x}"])
def test_folder_with_a_difficult_name(name, tmp_path, monkeypatch):
    for path in (tmp_path / name, Path(name)):  # Absolute and relative.
        monkeypatch.chdir(tmp_path)
        for number in range(8):
            training = tiny(path)
            assert training.global_step == number
            training.train()
            assert training.saver.save()
        assert len(list(path.iterdir())) == 10  # The last five are kept.
        shutil.rmtree(path)


def test_empty_or_missing_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        assert tiny(tmp_path / name).global_step == 0
        assert "the variables are new ones" in capsys.readouterr().out
    assert not (tmp_path / "missing").exists()


def test_files_of_the_user_are_left_alone(tmp_path):
    names = ["cifar10_cnn-1.index.bak", "cifar10_cnn-1-copy.index", "notes.txt", "unfinished.txt"]
    (tmp_path / "mine").mkdir()
    for name in names[1:]:
        (tmp_path / "mine" / name).write_text("mine")
    training = tiny(tmp_path / "mine")
    (tmp_path / "mine" / names[0]).write_text("mine")
    for _ in range(9):
        training.train()
        training.saver.save()
    assert all((tmp_path / "mine" / name).read_text() == "mine" for name in names)


def test_each_50000th_is_kept(tmp_path):
    training = tiny(tmp_path / "checkpoints")
    numbers = [49_000, 50_000, 51_000, 99_000, 100_000, 101_000, 102_000, 103_000, 104_000, 105_000]
    for number in numbers:
        training.train(number)
        training.saver.save()
    kept = {int(path.name.split("-")[1].split(".")[0]) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {50_000, 100_000, *numbers[-5:]}


@pytest.mark.parametrize("name", ["weights", SETTINGS])
def test_checkpoint_of_another_program(name, tmp_path, capsys):
    """It is kept, whatever its number; even when it has settings, of which nobody knows what they are."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(folder / "cifar10_cnn-3"),
        tensor_names=[name],
        shape_and_slices=[""],
        tensors=[tf.constant("no JSON")],
    )
    files = {path: path.read_bytes() for path in folder.iterdir()}
    training = tiny(folder)
    output = capsys.readouterr().out
    assert f"The checkpoints in {folder}/ are of another training." in output
    assert "it was saved by another program" in output
    for _ in range(7):
        training.train()
        training.saver.save()
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == files
    assert tiny(folder).global_step == 7


########################################################################
# Changed.


CHANGES = [
    (
        {"learning_rate=1e-4": "learning_rate=5e-4"},
        ["optimizer.config.learning_rate, only there: 0.0001",
         "optimizer.config.learning_rate, only here: 0.0005"],
    ),
    (
        {"random_seed = 42": "random_seed = 7"},
        ["random_seed, only there: 42", "random_seed, only here: 7"],
    ),
    (
        {'Dense(128, activation="relu"': 'Dense(64, activation="relu"'},
        ["units, only there: 128", "units, only here: 64", "variables[9], only here: kernel (256, 64)"],
    ),
    (
        {'Dense(128, activation="relu"': 'Dense(128, activation="tanh"'},
        ["activation, only there: relu", "activation, only here: tanh"],
    ),
    (
        {"keras.layers.Flatten(),": "keras.layers.Flatten(), keras.layers.Dropout(0.5),"},
        ["network.layers, only here: Dropout"],
    ),
    (
        {'keras.layers.Dense(num_classes, name="layer_softmax"),':
         'keras.layers.Dense(num_classes, name="layer_softmax"), keras.layers.Dense(10),'},
        ["network.layers, only here: Dense"],
    ),
    (
        {"images = random_saturation(images, lower=0.0, upper=2.0, seed=seeds[5])": ""},
        ["source of pre_process_image, only there: images = random_saturation("],
    ),
    (
        {"keras.optimizers.Adam(learning_rate=1e-4, beta_1=0.9, beta_2=0.999, epsilon=1e-8)":
         "keras.optimizers.SGD(1e-4)"},
        ["optimizer.class_name, only there: Adam", "optimizer.class_name, only here: SGD"],
    ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("change", "lines"), CHANGES)
def test_changed_training_is_noticed_named_and_kept_apart(change, lines, new_notebook, tmp_path, capsys):
    new_notebook().optimize(2)
    folder = tmp_path / "checkpoints"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    changed = new_notebook(replace=change)
    output = capsys.readouterr().out
    assert f"The checkpoints in {folder}/ are of another training." in output
    for line in lines:
        assert line in output
    assert changed.global_step == 0
    changed.optimize(1)
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "changed-1" / f"cifar10_cnn-1{INDEX}").is_file()
    # Each finds its own again.
    assert new_notebook(replace=change).global_step == 1
    assert new_notebook().global_step == 2


FUNCTIONAL = "(main := main_network()) and keras.Model(main.inputs, {})"


@pytest.mark.slow
def test_network_of_connected_layers(new_notebook, capsys):
    """Keras numbers its layers on when it is made again; that makes no difference, their order does."""
    same = {"network = main_network()": "network = " + FUNCTIONAL.format("main.outputs[0]")}
    new_notebook(replace=same).optimize(1)
    assert new_notebook(replace=same).global_step == 1
    other = {
        "network = main_network()": "network = " + FUNCTIONAL.format("main.outputs[0] + main.outputs[0]")
    }
    capsys.readouterr()
    assert new_notebook(replace=other).global_step == 0
    assert "are of another training" in capsys.readouterr().out


@pytest.mark.slow
def test_comments_and_names_make_no_difference(new_notebook):
    new_notebook().optimize(1)
    same = {
        "# Randomly crop the input images.": "# Another comment.",
        "keras.layers.Flatten(),": 'keras.layers.Flatten(name="a"),',
    }
    assert new_notebook(replace=same).global_step == 1


def test_entries_that_only_one_version_of_keras_has_make_no_difference(tmp_path):
    training = tiny(tmp_path)
    identity = training.saver._identity
    identity["network"]["layers"][1]["config"]["new_in_keras_4"] = True
    del identity["optimizer"]["config"]["use_ema"]
    training.train()
    training.saver.save()
    assert tiny(tmp_path).global_step == 1


########################################################################
# Full disk, folder that can't be written.


def test_file_size_limit_while_saving(new_notebook, uninterrupted, tmp_path, capsys):
    """The disk is full during some saves. Training goes on, and so does saving later."""
    notebook = new_notebook(replace=OFTEN)
    notebook.optimize(10)
    folder = tmp_path / "checkpoints"
    before = {path: path.read_bytes() for path in folder.glob("cifar10*")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    capsys.readouterr()
    try:
        notebook.optimize(20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    output = capsys.readouterr().out
    assert output.count(f"COULD NOT SAVE {folder}/cifar10_cnn-") == 4
    assert "Free some space" in output and "Saved checkpoint." not in output
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in folder.iterdir()} == {p.name for p in before} | {
        "training.lock",
        "training.owner",
    }
    assert notebook.global_step == 30
    assert notebook.saver.save()
    assert new_notebook(replace=OFTEN).global_step == 30
    notebook.optimize(ITERATIONS - 30)
    assert state(notebook) == uninterrupted


@pytest.mark.slow
def test_full_disk_while_saving(small_disk, new_notebook, capsys):
    folder = small_disk("32m") / "checkpoints"  # Holds three of them.
    notebook = new_notebook(save_dir=folder, replace=OFTEN)
    notebook.optimize(30)
    output = capsys.readouterr().out
    assert output.count("COULD NOT SAVE") == 3 and output.count("Saved checkpoint.") == 3
    assert new_notebook(save_dir=folder, replace=OFTEN).global_step == 15
    (folder / f"cifar10_cnn-5{DATA}").unlink()  # The user frees some space.
    assert notebook.saver.save()
    assert new_notebook(save_dir=folder, replace=OFTEN).global_step == 30


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    training = tiny(tmp_path / "file" / "checkpoints")
    with pytest.raises(OSError, match="can't be saved in .*choose another save_dir"):
        with training.saver.training():
            pass
    assert not training.saver.save()
    assert (tmp_path / "file").read_text() == "mine"


def test_read_only_folder_can_be_looked_at(two_checkpoints, small_disk, capsys):
    disk = small_disk("1m")
    shutil.copytree(two_checkpoints, disk / "checkpoints")
    (disk / "checkpoints" / f"cifar10_cnn-2{DATA}").write_bytes(b"")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    training = tiny(disk / "checkpoints")
    assert training.global_step == 1
    assert "Damaged, so it is not used: " in capsys.readouterr().out
    with pytest.raises(OSError, match="Read-only.*can't be saved in"):
        with training.saver.training():
            pass


########################################################################
# Done twice.


def test_two_processes_in_one_folder(start, new_notebook, tmp_path):
    process = start(100_000)
    wait_for("Saved checkpoint.\n", process)
    second = new_notebook(replace=OFTEN)  # It may look, but not train.
    step = second.global_step.numpy()
    owner = f"process {process.pid} on {socket.gethostname()} is training there"
    with pytest.raises(CheckpointError, match=f"checkpoints is in use: {owner}"):
        second.optimize(1)
    assert second.global_step == step
    process.kill()  # A dead owner's lock is taken over.
    process.communicate()
    third = new_notebook(replace=OFTEN)
    third.optimize(1)
    with pytest.raises(CheckpointError, match="has a checkpoint after .* Restore that one first"):
        second.optimize(1)


def test_only_the_chief_writes(tmp_path):
    training = tiny(tmp_path / "checkpoints")
    training.saver._is_chief = False
    with training.saver.training():
        training.train()
        assert not training.saver.save()
    assert not (tmp_path / "checkpoints").exists()


def test_endings_are_those_of_tensorflow(two_checkpoints):
    names = {f"cifar10_cnn-{n}{e}" for n in (1, 2) for e in (saver_module._INDEX, saver_module._DATA)}
    assert set(os.listdir(two_checkpoints)) == names


def test_curve_is_a_plain_array_in_the_checkpoint(new_notebook, tmp_path):
    """Others can read it without this project."""
    new_notebook(replace=OFTEN).optimize(10)
    reader = tf.train.load_checkpoint(str(tmp_path / "checkpoints" / "cifar10_cnn-10"))
    curve = reader.get_tensor("learning_curve/.ATTRIBUTES/VARIABLE_VALUE")
    assert curve.shape == (2, 5) and list(curve[:, 0]) == [5, 10]
    assert np.isnan(curve[:, 4]).all() and (np.diff(curve[:, 3]) > 0).all()
