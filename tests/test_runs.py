"""What a person may do with a training: go on, change it, begin from another one, run cells again.

The notebook of these tests is tiny. Its cells can be run again and edited, as in Jupyter.
"""

import gc
import itertools
import json
import os
import re
import shutil
import signal
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf

from saver import CheckpointError
from tests import toy
from tests.conftest import SLOW, mostly_slow, two_tasks
from tests.toy import DATA, INDEX, OTHER, TOGETHER, Kernel, copy, files, numbers, values_of, write

WIDER = {"keras.layers.Dense(3,": "keras.layers.Dense(4,"}
ADAM = "keras.optimizers.Adam(learning_rate=0.01)"


def more(*layers):
    """A change: more layers before the last one."""
    last = "        Double(1,"
    return {last: "".join(f"        keras.{layer},\n" for layer in layers) + last}


def from_line(output):
    """The line with start_from that a message names."""
    return re.search(r"saver\.restore\(save_dir, start_from=.*\)", output)[0]


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seven")
    Kernel(folder).optimize(7)
    return folder


@pytest.fixture
def first(seven, tmp_path):
    """A folder with the checkpoints after iterations 3 to 7."""
    return shutil.copytree(seven, tmp_path / "first")


########################################################################
# Going on.

NETWORKS = {
    "as it is": {},
    "dropout": more("layers.Dropout(0.5)"),
    "noise in a network in the network": more("Sequential([keras.layers.GaussianNoise(0.1)])"),
    "batch-normalization": more("layers.BatchNormalization()"),
    "two layers without names": more("layers.Dense(3)", "layers.Dense(3)"),
    "names like those of others": more(
        'layers.Dense(3, name="layer_fc1_bias")', 'layers.Dense(3, name="x_1")'
    ),
    "SGD": {ADAM: "keras.optimizers.SGD(0.01)"},
    "RMSprop": {ADAM: "keras.optimizers.RMSprop(0.01, momentum=0.9, centered=True)"},
    "averaged weights": {ADAM: "keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3)"},
    "a falling rate": {"learning_rate=0.01": "keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.5)"},
    "weight decay": {ADAM: "keras.optimizers.AdamW(learning_rate=0.01)"},
    "a lambda as a layer": more("layers.Lambda(lambda x: x + 0.5)"),
    "a lambda as an activation": {'activation="relu"': "activation=lambda x: tf.nn.relu(x) * 0.5"},
    "a function as an activation": more("layers.Activation(tf.nn.softplus)"),
    "weights that aren't trained": {'name="layer_fc1"': 'name="layer_fc1", trainable=False'},
    "lower precision": {'precision = "float32"': 'precision = "mixed_bfloat16"'},
    "a scaled loss": {ADAM: f"keras.optimizers.LossScaleOptimizer({ADAM})"},
}


@pytest.mark.parametrize("name", mostly_slow(NETWORKS, "as it is", "dropout"))
def test_a_training_in_parts_is_that_without_a_break_to_the_bit(name, tmp_path):
    whole = Kernel(tmp_path / "whole", NETWORKS[name])
    whole.optimize(8)
    for number in (3, 1, 4):
        resumed = Kernel(tmp_path / "parts", NETWORKS[name])
        resumed.optimize(number)
    assert resumed.state() == whole.state()
    assert numbers(tmp_path / "parts") == [4, 5, 6, 7, 8]


def test_a_checkpoint_has_the_variables_by_the_names_of_the_original(tmp_path):
    kernel = Kernel(tmp_path)
    kernel.optimize(2)
    values = values_of(tmp_path / "cifar10_cnn-2")
    moments = iter(kernel.optimizer.variables[2:])  # The iteration and the learning-rate stand before.
    for layer, name in (("layer_fc1", "layer_fc1"), ("layer_softmax", "fully_connected")):
        for kind, v in zip(("weights", "bias"), kernel.network.get_layer(layer).variables, strict=True):
            for slot, part in (("", v), ("/Adam", next(moments)), ("/Adam_1", next(moments))):
                np.testing.assert_array_equal(values.pop(f"network/{name}/{kind}{slot}"), part.numpy())
    assert values.pop("global_step") == values.pop("adam/iteration") == 2
    assert values.pop("adam/learning_rate") == np.float32(0.01)
    assert values.pop("learning_curve").tolist() == kernel.learning_curve
    assert list(values) == ["record"] and json.loads(values["record"])["began"] is None


def test_the_learning_curve_is_cut_back_to_the_restored_iteration(first):
    for ending in (INDEX, DATA):
        (first / f"cifar10_cnn-7{ending}").unlink()
    assert [step for step, _ in Kernel(first).learning_curve] == [1, 2, 3, 4, 5, 6]


def test_a_learning_rate_set_by_hand_is_kept(first):
    kernel = Kernel(first)
    kernel.optimizer.learning_rate = 0.002
    kernel.optimize(1)
    kernel.run("saver", "restore")
    later = Kernel(first)
    assert later.global_step == 8 and later.optimizer.learning_rate == np.float32(0.002)
    later.optimizer.learning_rate = 0.01
    later.optimize(1)
    assert Kernel(first).optimizer.learning_rate == np.float32(0.01)


def test_a_relative_folder_stays_where_it_was_and_a_tilde_is_the_home(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    kernels = Kernel("checkpoints/"), Kernel("~/checkpoints")
    monkeypatch.chdir(tmp_path / "there")
    for kernel in kernels:
        kernel.optimize(2)
    assert numbers(tmp_path / "here" / "checkpoints") == numbers(tmp_path / "home" / "checkpoints") == [1, 2]
    assert not os.listdir(tmp_path / "there")
    assert (tmp_path / "here" / "checkpoints" / "training.lock").exists()
    assert Kernel("~/checkpoints").global_step == 2


def test_a_notebook_in_a_module_without_a_name(first):
    kernel = Kernel(first, name=None)
    kernel.optimize(1)
    assert Kernel(first, name=None).global_step == Kernel(first).global_step == 8


def test_training_before_restoring_is_refused(tmp_path):
    kernel = Kernel(tmp_path, until="saver")
    kernel.run("optimize")
    for call in (lambda: kernel.optimize(1), kernel.saver.save):
        with pytest.raises(CheckpointError, match=r"run saver.restore\(save_dir\) first"):
            call()
    kernel.run("restore")
    kernel.optimize(1)
    assert numbers(tmp_path) == [1]


########################################################################
# A changed training is another run, in a folder of its own.

CHANGES = {  # What is changed, and what is told.
    "the seed": (OTHER, "random_seed 1 → 2"),
    "the batch size": ({"batch_size = 4": "batch_size = 8"}, "batch_size 4 → 8"),
    "the data": ({"default_rng(5)": "default_rng(6)"}, "images_train float32 (32, 2) "),
    "the number of images": ({"random([32, 2]": "random([64, 2]"}, "images_train float32 (32, 2) "),
    "the precision": ({'= "float32"': '= "mixed_bfloat16"'}, "layer_fc1.dtype float32 → mixed_bfloat16"),
    "a distortion": ({"images + strength": "images - strength"}, "pre_process: 1 line changed"),
    "a function in a function": ({"maxval=largest": "maxval=2 * largest"}, "strength: 1 line changed"),
    "a default": ({"largest=0.5": "largest=0.25"}, "strength: 1 line changed"),
    "the batches": ({"replace=False": "replace=True"}, "random_batch: 1 line changed"),
    "the loss": ({"** 2)": "** 4)\n        loss += 0.0"}, "train_step: 1 line changed, 1 line new"),
    "the class of a layer": ({"(inputs) * 2": "(inputs) * 3"}, "Double.call: 1 line changed"),
    "another class of layer": ({"Double(1": "keras.layers.Dense(1"}, "layer_softmax Double → Dense"),
    "the width of a layer": (WIDER, "layer_fc1.units 3 → 4"),
    "an activation": ({'"relu"': '"tanh"'}, "layer_fc1.activation relu → tanh"),
    "one layer more": (more("layers.Dropout(0.5)"), "dropout is new"),
    "one layer less": (
        {'Dense(3, activation="relu", name="layer_fc1")': "Flatten()"},
        "layer_fc1 is removed",
    ),
    "the optimizer": ({ADAM: "keras.optimizers.SGD(0.01)"}, "optimizer Adam → SGD"),
    "the learning-rate": ({"rate=0.01": "rate=0.02"}, "optimizer.learning_rate 0.01 → 0.02"),
}


@pytest.mark.parametrize(
    "name", mostly_slow(CHANGES, "the data", "a function in a function", "the width of a layer")
)
def test_a_change_is_told_in_a_sentence_and_is_kept_apart(name, first, capsys):
    changes, sentence = CHANGES[name]
    kept = files(first)
    changed = Kernel(first, changes)
    output = capsys.readouterr().out
    [line] = [line for line in output.splitlines() if "holds another training" in line]
    assert line.startswith(f"{first}/ ") and sentence in line
    assert from_line(output) == "saver.restore(save_dir, start_from=save_dir)"
    assert changed.global_step == 0
    changed.optimize(9)
    assert kept.items() <= files(first).items()
    again = Kernel(first)
    assert again.global_step == 7
    again.optimize(2)
    assert Kernel(first, changes).global_step == 9
    assert numbers(first) == numbers(first / "changed-1") == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["the seed", "the batch size", "the data", "a distortion", "a function in a function", "the loss"],
        "a distortion",
    ),
)
def test_a_changed_cell_run_again_does_not_mix_two_trainings(name, first):
    changes, sentence = CHANGES[name]
    kernel = Kernel(first)
    kept = files(first)
    kernel.run(*kernel.change(changes))
    with pytest.raises(CheckpointError, match="(?s)Changed since .*Restart the kernel") as error:
        kernel.optimize(1)
    assert sentence in str(error.value)
    kernel.run_from("settings")  # With new variables it is like a new kernel.
    kernel.optimize(1)
    assert kept.items() <= files(first).items() and numbers(first / "changed-1") == [1]
    kernel.change({new: old for old, new in changes.items()})  # Undone, the first one goes on.
    kernel.run_from("settings")
    kernel.optimize(1)
    assert numbers(first)[-1] == 8 and numbers(first / "changed-1") == [1]


SCHEDULE = """class Warm(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, by): self.by = by
    def __call__(self, step): return self.by * tf.cast(step, tf.float32)
    def get_config(self): return {"by": self.by}"""
DECORATOR = """def scaled(function):
    @functools.wraps(function)
    def scale(*arguments): return 2.0 * function(*arguments)
    return scale"""
CLOSURE = """def make_shift(by):
    def shift(x): return x + by
    return shift
shift = make_shift(0.5)"""
WRITTEN = {  # What is defined, what uses it, what is edited then, and what is told.
    "a decorator": (DECORATOR, {"def pre_process": "@scaled\ndef pre_process"}, ("2.0", "3.0"), "scale"),
    "a function made by one": (
        CLOSURE,
        {"images +": "shift(images) +"},
        ("t(0.5)", "t(0.7)"),
        "by 0.5 → 0.7",
    ),
    "a lambda": ("f = lambda x: x + 0.5", {"images +": "f(images) +"}, ("0.5", "0.7"), "1 line changed"),
    "a list": (
        "sizes = [3, 4]",
        {"Dense(3,": "Dense(sizes[0],"},
        ("[3, 4]", "[3, 5]"),
        "sizes [3, 4] → [3, 5]",
    ),
    "a schedule": (
        SCHEDULE,
        {"rate=0.01": "rate=Warm(0.5)"},
        ("(0.5)", "(0.7)"),
        "learning_rate.by 0.5 → 0.7",
    ),
    "its code": (SCHEDULE, {"rate=0.01": "rate=Warm(0.5)"}, ("by * tf", "by + tf"), "Warm.__call__: 1 line"),
    "a lambda in a layer": (
        "",
        more("layers.Lambda(lambda x: x + 0.5)"),
        ("0.5", "0.7"),
        "main_network: 1 line",
    ),
    "an activation": (
        "def mine(x): return x**2",
        {'"relu"': "mine"},
        ("x**2", "x**4"),
        "mine: 1 line changed",
    ),
}


@pytest.mark.parametrize("name", mostly_slow(WRITTEN, "a decorator", "a schedule"))
def test_what_a_learner_may_write_is_the_same_again_and_its_edit_is_told(name, tmp_path, capsys):
    definition, changes, (old, new), sentence = WRITTEN[name]
    changes = changes | {"batch_size = 4": f"batch_size = 4\nimport functools\n{definition}"}
    Kernel(tmp_path, changes).optimize(2)
    assert Kernel(tmp_path, changes).global_step == 2
    capsys.readouterr()
    edited = {key: change.replace(old, new) for key, change in changes.items()}
    assert edited != changes
    assert Kernel(tmp_path, edited).global_step == 0
    assert sentence in capsys.readouterr().out


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 4),
    reason="These keep classes for ever: https://github.com/python/cpython/issues/118013",
)
def test_a_notebook_that_is_gone_leaves_the_memory(tmp_path):
    """Also when the optimizer has an object of a class of the notebook, which knows all in it."""
    cells = {"batch_size = 4": f"batch_size = 4\n{SCHEDULE}", "rate=0.01": "rate=Warm(0.5)"}
    network = weakref.ref(Kernel(tmp_path, cells).network)
    gc.collect()
    assert network() is None


def test_comments_docstrings_layout_and_what_is_not_used_make_no_difference(first):
    same = {
        "# Twice.": "# Two times.",
        "    '''A layer of the notebook.'''\n": "",
        "def main_network():": "def main_network():\n    'The network.'",
        "maxval=largest)": "\n        maxval = largest\n    )",
        "random_seed = 1": "random_seed = 1\nnumber_of_mine = 7",
        "learning_curve.append([i_global, loss])": "learning_curve.append([i_global, 1 * loss])",
    }
    assert Kernel(first, same).global_step == 7


def test_settings_that_only_one_version_of_keras_has_make_no_difference(first):
    values = values_of(first / "cifar10_cnn-7")
    record = json.loads(values["record"])
    record["settings"]["layer_fc1.new_in_keras_4"] = True
    del record["settings"]["optimizer.use_ema"]
    write(first / "cifar10_cnn-7", values | {"record": json.dumps(record)})
    assert Kernel(first).global_step == 7


@pytest.mark.parametrize(("optimizer", "name"), [("SGD", "SGD"), ("AdamW", "adamw"), ("RMSprop", "rmsprop")])
def test_a_training_of_an_older_keras_that_named_it_otherwise_goes_on(optimizer, name, tmp_path):
    Kernel(tmp_path, {ADAM: f'keras.optimizers.{optimizer}(0.01, name="{name}")'}).optimize(2)
    assert Kernel(tmp_path, {ADAM: f"keras.optimizers.{optimizer}(0.01)"}).global_step == 2


def test_the_first_three_changes_are_told_and_the_number_of_the_others(first, capsys):
    five = ["the seed", "the batch size", "the data", "a distortion", "the width of a layer"]
    Kernel(first, {old: new for name in five for old, new in CHANGES[name][0].items()})
    assert re.search("layer_fc1.units 3 → 4, .*, .*, and 3 more", capsys.readouterr().out)


def test_each_run_finds_its_own_folder_also_when_it_was_renamed(tmp_path):
    runs = [{"random_seed = 1": f"random_seed = {seed}"} for seed in (1, 2, 3, 4)]
    for n in range(3):
        Kernel(tmp_path, runs[n]).optimize(n + 1)
    (tmp_path / "changed-1").rename(tmp_path / "my second one")
    assert [int(Kernel(tmp_path, run).global_step) for run in runs] == [1, 2, 3, 0]
    Kernel(tmp_path, runs[1]).optimize(1)
    Kernel(tmp_path, runs[3]).optimize(4)
    folders = (tmp_path, tmp_path / "my second one", tmp_path / "changed-2", tmp_path / "changed-1")
    assert [numbers(folder)[-1] for folder in folders] == [1, 3, 3, 4]


########################################################################
# Files of others are never deleted, renamed or overwritten.


def test_checkpoints_of_others_with_lower_numbers_are_kept(tmp_path):
    """Those of another run, of the original program, of another program, damaged ones and half ones."""
    kernel = Kernel(tmp_path)
    for v in (kernel.global_step, kernel.optimizer.iterations):
        v.assign(95)
    kernel.optimize(5)
    Kernel(tmp_path / "other", OTHER).optimize(3)
    for number in (2, 3):
        copy(tmp_path / "other" / f"cifar10_cnn-{number}", tmp_path / f"cifar10_cnn-{number}")
    write(tmp_path / "cifar10_cnn-20", toy.original(kernel, 20))
    write(tmp_path / "cifar10_cnn-30", {"weights": 1.0})
    copy(tmp_path / "cifar10_cnn-99", tmp_path / "cifar10_cnn-40")
    os.truncate(tmp_path / f"cifar10_cnn-40{DATA}", 100)
    (tmp_path / f"cifar10_cnn-50{INDEX}").write_text("an index")
    (tmp_path / f"cifar10_cnn-1{DATA}").write_text("data")
    kept = {path: x for path, x in files(tmp_path).items() if not re.search(r"-(9\d|100)\.", path.name)}
    assert len(kept) == 6 + 4 + 2 + 2 + 2 + 2
    kernel.optimize(4)
    resumed = Kernel(tmp_path)
    assert resumed.global_step == 104
    resumed.optimize(4)
    assert kept.items() <= files(tmp_path).items()
    assert [n for n in numbers(tmp_path) if n > 60] == [104, 105, 106, 107, 108]


def test_a_newer_checkpoint_of_another_run_is_not_touched(first, tmp_path, capsys):
    """It makes the folder that run's. The one that was there goes on by `start_from`."""
    Kernel(tmp_path / "other", OTHER).optimize(9)
    copy(tmp_path / "other" / "cifar10_cnn-9", first / "cifar10_cnn-9")
    kept = files(tmp_path)
    capsys.readouterr()
    kernel = Kernel(first)
    assert "holds another training" in capsys.readouterr().out and kernel.global_step == 0
    kernel.saver.restore(first, start_from=first / "cifar10_cnn-7")
    kernel.optimize(1)
    assert kept.items() <= files(tmp_path).items() and numbers(first / "changed-1") == [7, 8]
    assert Kernel(first, OTHER).global_step == 9


def test_a_checkpoint_that_came_during_the_training_is_not_overwritten(first, tmp_path, capsys):
    kernel = Kernel(tmp_path / "mine", OTHER)
    kernel.optimize(2)
    copy(first / "cifar10_cnn-3", tmp_path / "mine" / "cifar10_cnn-3")
    kept = files(tmp_path)
    kernel.train_step(kernel.random_batch(3))
    assert not kernel.saver.save()
    assert re.search("COULD NOT SAVE .*another checkpoint has that name", capsys.readouterr().out)
    assert files(tmp_path) == kept
    for file in (tmp_path / "mine").glob("cifar10_cnn-3.*"):  # The advice is to move it away.
        file.rename(tmp_path / file.name)
    assert kernel.saver.save()


@pytest.mark.parametrize("number", [1, 9])
def test_a_renamed_checkpoint_is_not_of_its_number(number, first):
    copy(first / "cifar10_cnn-6", first / f"cifar10_cnn-{number}")
    content = (first / f"cifar10_cnn-6{DATA}").read_bytes()
    for step in (7, 8):
        kernel = Kernel(first)
        assert kernel.global_step == step
        kernel.optimize(1)
    assert content in [x for path, x in files(first).items() if f"-{number}{DATA}" in path.name]


########################################################################
# Beginning from another training.


def start(tmp_path, changes, place="first", save_dir="own"):
    line = {"restore(save_dir)": f'restore(save_dir, start_from="{tmp_path}/{place}")'}
    return Kernel(tmp_path / save_dir, line | changes)


START = {  # What is changed, the learning-rate, and what is said to be new.
    "nothing": ({}, 0.01, ""),
    "the learning-rate": ({"rate=0.01": "rate=0.02"}, 0.02, ""),
    "a distortion": ({"images + strength": "images - strength"}, 0.01, ""),
    "a width": (
        WIDER, 0.01, "network/layer_fc1/weights, network/layer_fc1/bias, network/fully_connected/weights"
    ),
    "one layer more": (
        more('layers.Dense(3, name="layer_fc2")'), 0.01, "network/layer_fc2/weights, network/layer_fc2/bias"
    ),
    "the optimizer": ({ADAM: "keras.optimizers.SGD(0.03)"}, 0.03, "sgd/iteration"),
}  # fmt: skip


@pytest.mark.parametrize("name", mostly_slow(START, "the learning-rate", "a width"))
def test_start_from_takes_all_that_fits_but_for_the_learning_rate(name, first, tmp_path, capsys):
    changes, rate, new = START[name]
    trained, kept = values_of(first / "cifar10_cnn-7"), files(tmp_path)
    fresh = {v.path: v.numpy() for v in Kernel(tmp_path / "none", changes).network.variables}
    capsys.readouterr()
    kernel = start(tmp_path, changes)
    output = capsys.readouterr().out
    assert re.search(f"Started from .*{first}/cifar10_cnn-7, .* in {tmp_path}/own/\n", output)
    assert re.search(f"New, .*: {new}.\n", output) if new else "New" not in output
    assert kernel.global_step == 7 and kernel.learning_curve == trained["learning_curve"].tolist()
    for v in kernel.network.variables:
        path = v.path.replace("layer_softmax", "fully_connected").replace("kernel", "weights")
        np.testing.assert_array_equal(v.numpy(), fresh[v.path] if path in new else trained[path])
    assert kernel.optimizer.learning_rate == np.float32(rate)
    kernel.optimize(2)
    assert numbers(tmp_path / "own") == [7, 8, 9] and kept.items() <= files(tmp_path).items()
    again = start(tmp_path, changes)  # The next "Run All" goes on from its own newest,
    assert again.state() == kernel.state()
    again.optimize(4)
    assert numbers(tmp_path / "own") == [9, 10, 11, 12, 13] and kept.items() <= files(tmp_path).items()
    assert Kernel(tmp_path / "own", changes).global_step == 13  # also without the line.
    whole = start(tmp_path, changes, save_dir="whole")
    whole.optimize(6)
    assert again.state() == whole.state()


@pytest.mark.parametrize(
    "place", ["first", "first/", "first/cifar10_cnn-7", "first/cifar10_cnn-7.index", "best.index"]
)
def test_start_from_a_folder_or_a_checkpoint(place, first, tmp_path):
    copy(first / "cifar10_cnn-7", tmp_path / "best")
    kernel = start(tmp_path, OTHER, place)
    assert kernel.global_step == kernel.optimizer.iterations == 7


def test_start_from_an_older_checkpoint_of_the_same_program(first, tmp_path):
    start(tmp_path, {}, "first/cifar10_cnn-4").optimize(3)
    own, trained = (values_of(tmp_path / name / "cifar10_cnn-7") for name in ("own", "first"))
    for name in own.keys() - {"record"}:
        np.testing.assert_array_equal(own[name], trained[name])


def test_start_from_another_folder_is_another_training(first, tmp_path, capsys):
    shutil.copytree(first, tmp_path / "second")
    start(tmp_path, OTHER).optimize(1)
    kernel = start(tmp_path, OTHER, "second")
    assert f"it began from {first}/cifar10_cnn-7" in capsys.readouterr().out and kernel.global_step == 7
    kernel.optimize(2)
    assert numbers(tmp_path / "own") == [7, 8] and numbers(tmp_path / "own" / "changed-1") == [7, 8, 9]
    assert start(tmp_path, OTHER).global_step == 8
    assert f", which began from {first}/cifar10_cnn-7\n" in capsys.readouterr().out
    assert start(tmp_path, OTHER, "second").global_step == 9


def test_start_from_what_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint to start from: .*/first"):
        start(tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_the_line_that_a_message_names_goes_on_from_the_old_training(first, capsys):
    """Also later, when the changed one was trained with new weights for a while."""
    Kernel(first, WIDER).optimize(2)
    line, kept = from_line(capsys.readouterr().out), files(first)
    for n in (8, 9):
        kernel = Kernel(first, WIDER | {"saver.restore(save_dir)": line})
        kernel.optimize(1)
        assert kernel.global_step == n and kept.items() <= files(first).items()
    assert numbers(first / "changed-1") == [1, 2] and numbers(first / "changed-2") == [7, 8, 9]


def test_what_a_run_began_from_in_its_own_folder_is_not_deleted(first, tmp_path):
    kept = files(tmp_path)
    start(tmp_path, OTHER, "first/cifar10_cnn-5", save_dir="first").optimize(9)
    assert kept.items() <= files(tmp_path).items()
    assert numbers(first / "changed-1") == [10, 11, 12, 13, 14]


TUTORIAL = {  # A small network with the layers of the tutorial's.
    "keras.Input([2])": "keras.Input([1, 2, 1])",
    "images + strength": "tf.reshape(images, [-1, 1, 2, 1]) + strength",
    'Dense(3, activation="relu", name="layer_fc1")': 'Conv2D(3, 1, name="layer_conv1")',
} | more(
    'layers.BatchNormalization(scale=False, name="layer_conv1_batch_normalize")',
    'layers.Conv2D(3, 1, name="layer_conv2")',
    "layers.Flatten()",
    'layers.Dense(5, name="layer_fc1")',
    'layers.Dense(4, name="layer_fc2")',
)


def write_as_before(path, kernel):
    """Write a checkpoint as the version before this one did."""
    parts = {name: getattr(kernel, name) for name in ("network", "optimizer", "global_step")}
    curve = tf.Variable(kernel.learning_curve, shape=[None, 2], dtype=tf.float64)
    path.parent.mkdir()
    tf.train.Checkpoint(learning_curve=curve, settings=tf.Variable("{}"), **parts).write(str(path))


def write_as_2016(path, kernel):
    write(path, toy.original(kernel, 7))


@pytest.mark.parametrize("write_old", [write_as_before, write_as_2016])
def test_start_from_a_checkpoint_of_an_older_program(write_old, tmp_path, capsys):
    kernel = Kernel(tmp_path / "new", TUTORIAL)
    kernel.optimize(7)
    write_old(tmp_path / "first" / "cifar10_cnn-7", kernel)
    kept = files(tmp_path / "first")
    capsys.readouterr()
    started = start(tmp_path, TUTORIAL)
    assert re.search("Started from .*/first/cifar10_cnn-7, ", output := capsys.readouterr().out)
    assert "New" not in output
    if write_old is write_as_before:
        assert started.state() == kernel.state()
    else:
        assert started.learning_curve == [] and started.global_step == started.optimizer.iterations == 7
        started.optimize(1)
        old = values_of(tmp_path / "first" / "cifar10_cnn-7")
        saved = values_of(tmp_path / "own" / "cifar10_cnn-7")  # Before its first iteration.
        same = [name for name in saved.keys() & old.keys() if name != "global_step"]
        assert len(same) == 3 * 11 + 2
        for name in same:
            np.testing.assert_array_equal(saved[name], old[name])
    started.optimize(2)
    assert start(tmp_path, TUTORIAL).state() == started.state()
    other = Kernel(tmp_path / "first", TUTORIAL)  # Without start_from it is another training.
    assert other.global_step == 0 and "holds another training" in (output := capsys.readouterr().out)
    assert from_line(output)
    other.optimize(9)
    assert kept.items() <= files(tmp_path / "first").items()


########################################################################
# Cells run again in the same kernel.

AGAIN = "global_step main_network network optimizer train_step learning_curve saver restore".split()
TYPICAL = [
    "network", "main_network", "saver", "restore", "global_step saver restore",
    "main_network network optimizer train_step saver restore", " ".join(AGAIN),
]  # fmt: skip
SUBSETS = [" ".join(cells) for n in range(9) for cells in itertools.combinations(AGAIN, n)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of 5 iterations without a break, and of as many after a change of the network."""
    folder = tmp_path_factory.mktemp("whole")
    for changes in ({}, WIDER):
        Kernel(folder, changes).optimize(5)
    return {path.relative_to(folder): content for path, content in files(folder).items()}


@pytest.mark.parametrize("cells", mostly_slow(SUBSETS, *TYPICAL))
def test_cells_run_again_are_right_to_the_bit_or_refused_with_advice_that_works(cells, whole, tmp_path):
    """In their order, with that of `main_network` edited. No file ever has anything else than it should."""
    kernel = Kernel(tmp_path)
    kernel.optimize(3)
    kernel.change(WIDER if "main_network" in cells else {})

    def check():
        contents = {path.relative_to(tmp_path): content for path, content in files(tmp_path).items()}
        assert not [path for path, content in contents.items() if whole.get(path) != content]

    def run_and_train(*names):
        """Return what it was refused with, or nothing."""
        try:
            for name in names:
                kernel.run(name)
                if name == "saver":
                    gc.collect()  # The objects made before are gone.
            kernel.optimize(2)
        except CheckpointError as error:
            return str(error)
        finally:
            check()

    advice = run_and_train(*cells.split())
    if advice and "run saver.restore(save_dir) first" in advice:
        advice = run_and_train("restore")
    assert advice is None or re.search("[Rr]estart the kernel and run all cells.", advice)
    assert advice is None or 'start_from="None"' not in advice
    kernel = kernel.run_all()
    kernel.optimize(5 - int(kernel.global_step))
    check()
    assert numbers(tmp_path / "changed-1" if "main_network" in cells else tmp_path) == [1, 2, 3, 4, 5]


def test_equal_data_and_other_cells_run_again_make_no_difference(tmp_path, whole):
    kernel = Kernel(tmp_path)
    kernel.optimize(1)
    kernel.run("imports", "settings", "data", "distort", "layers", "random_batch", "optimize")
    kernel.optimize(4)
    assert all(content == whole[path.relative_to(tmp_path)] for path, content in files(tmp_path).items())


@pytest.mark.parametrize("number", [0, 2])
def test_restoring_again_does_not_lose_iterations_that_are_not_saved(number, tmp_path, monkeypatch):
    kernel = Kernel(tmp_path)
    kernel.optimize(number)
    with monkeypatch.context() as patch:
        patch.setattr(tf.raw_ops, "SaveV2", lambda **_: os.truncate(tmp_path / "no such file", 0))
        assert kernel.optimize(3) == [False] * 3
    state = kernel.state()
    for cells in (["restore"], ["saver", "restore"]):
        with pytest.raises(CheckpointError, match="Call saver.save()"):
            kernel.run(*cells)
        assert kernel.state() == state
    assert kernel.saver.save()
    kernel.run("restore")
    assert kernel.state() == state and numbers(tmp_path)[-1] == number + 3


def test_another_folder_in_the_same_kernel_takes_a_restart_or_start_from(first, tmp_path):
    kernel = Kernel(first)
    state, kept = kernel.state(), files(tmp_path)
    kernel.names["save_dir"] = tmp_path / "two"
    with pytest.raises(CheckpointError, match="no checkpoint of this training in .*two.*restart") as error:
        kernel.run("restore")
    assert kernel.state() == state and files(tmp_path) == kept and not (tmp_path / "two").exists()
    exec(from_line(str(error.value)), kernel.names)
    assert kernel.state() == state
    kernel.optimize(1)
    assert numbers(tmp_path / "two") == [7, 8] and kept.items() <= files(tmp_path).items()
    assert kernel.run_all().global_step == 8
    kernel.names["save_dir"] = tmp_path / "three"
    assert kernel.run_all().global_step == 0


########################################################################
# Numbers that aren't finite, and iterations that fail half-way.


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["weights", "moment"])
def test_what_is_not_finite_is_not_saved_and_good_checkpoints_stay(value, place, first, tmp_path):
    whole = Kernel(tmp_path / "whole")
    whole.optimize(9)
    kernel = Kernel(first)
    kept = files(first)
    v = kernel.network.layers[0].kernel if place == "weights" else kernel.optimizer.variables[2]
    v.assign(tf.fill(v.shape, value))
    with pytest.raises((AssertionError, CheckpointError), match="Loss nan in iteration 8|aren't finite"):
        kernel.optimize(9)
    with pytest.raises(CheckpointError, match="(?s)aren't finite|so the network isn't sound"):
        kernel.saver.save()
    with pytest.raises(CheckpointError, match=r"saver.restore\(save_dir\) again, which goes back"):
        kernel.optimize(1)
    assert files(first) == kept
    kernel.run("restore")
    kernel.optimize(2)
    assert kernel.state() == whole.state()


def test_an_iteration_that_fails_half_way_is_not_saved(tmp_path):
    changes = {
        "    return loss": "    tf.debugging.assert_less(global_step, limit)\n    return loss",
        "learning_curve = []": "learning_curve = []\nlimit = tf.Variable(100, dtype=tf.int64)",
    }
    whole, kernel = Kernel(tmp_path / "whole", changes), Kernel(tmp_path / "own", changes)
    whole.optimize(5)
    kernel.optimize(3)
    kept = files(tmp_path)
    kernel.limit.assign(4)
    with pytest.raises(tf.errors.InvalidArgumentError):
        kernel.optimize(9)
    assert kernel.global_step == 4
    for call in (kernel.saver.save, lambda: kernel.optimize(1)):
        with pytest.raises(
            CheckpointError, match=r"An iteration failed.* Run saver.restore\(save_dir\) again"
        ):
            call()
    assert files(tmp_path) == kept
    kernel.limit.assign(100)
    kernel.run("restore")
    kernel.optimize(2)
    assert kernel.state() == whole.state()


########################################################################
# Several processes that train together.

WORKER = """
import sys
import tensorflow as tf
tf.distribute.experimental_set_strategy(tf.distribute.MultiWorkerMirroredStrategy())
from tests.toy import TOGETHER, Kernel
kernel = Kernel(sys.argv[1], TOGETHER)
kernel.optimize(int(sys.argv[2]))
print("ENDS AFTER", int(kernel.global_step.numpy()))
"""


@pytest.fixture
def workers(begin):
    """A function that begins to train in two processes that train together, each with its folder."""

    def run(folders, iterations):
        pairs = zip(folders, two_tasks(), strict=True)
        return [begin("-c", WORKER, folder, iterations, env=task) for folder, task in pairs]

    return run


@SLOW
def test_processes_that_restored_different_iterations_are_refused(workers, tmp_path):
    Kernel(tmp_path / "one", TOGETHER).optimize(2)
    kept = files(tmp_path)
    outputs = [p.communicate(timeout=120)[0] for p in workers([tmp_path / "one", tmp_path / "two"], 5)]
    for output in outputs:
        assert "have restored: process 0: 2, process 1: 0" in output and "ENDS" not in output, output
    assert files(tmp_path) == kept


@SLOW
def test_a_folder_in_use_is_told_to_all_processes(workers, tmp_path):
    """Only the first process knows, but none waits for ever."""
    with Kernel(tmp_path, TOGETHER).saver.training():
        outputs = [p.communicate(timeout=120)[0] for p in workers([tmp_path, tmp_path], 5)]
    assert "is in use: process" in outputs[0] and "process 0: none" in outputs[1], outputs
    assert not files(tmp_path)


@SLOW
@pytest.mark.parametrize("number", [0, 1])
def test_when_one_of_the_processes_is_stopped_both_stop_with_one_checkpoint(number, workers, tmp_path):
    processes = workers([tmp_path, tmp_path], 100_000)
    while not list(tmp_path.glob(f"*{INDEX}")):
        assert all(process.poll() is None for process in processes), processes[0].communicate()
    processes[number].send_signal(signal.SIGINT)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    ends = {output.rsplit("ENDS AFTER ", 1)[1].split()[0] for output in outputs}
    assert ends == {str(numbers(tmp_path)[-1])}, outputs
