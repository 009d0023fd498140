"""What a person may do in Jupyter: run cells again, edit them, choose folders, put files there.

The notebook of these tests is tiny. Its cells can be run again and edited, as in a kernel.
"""

import codecs
import itertools
import json
import linecache
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from saver import CheckpointError
from tests.test_faults import DATA, INDEX, ROOT, SETTINGS, wait_for

CELLS = {
    "imports": """
import keras
import numpy as np
import tensorflow as tf
from saver import Saver
""",
    "settings": """
random_seed = 1
batch_size = 4
precision = "float32"
""",
    "data": """
images = tf.constant(np.random.default_rng(5).random([32, 2], np.float32))
""",
    "global_step": """
global_step = tf.Variable(0, dtype=tf.int64)
""",
    "layers": """
class Dense(keras.layers.Dense):
    '''A layer of the notebook.'''
    def call(self, inputs):
        return super().call(inputs) * 2  # Twice.
""",
    "network": """
keras.config.set_dtype_policy(precision)
keras.utils.set_random_seed(random_seed)
network = keras.Sequential([
    keras.Input([2]),
    keras.layers.Dense(3, activation="relu", name="layer_fc1"),
    Dense(1, dtype="float32", name="layer_softmax"),
])
""",
    "optimizer": """
optimizer = keras.optimizers.Adam(learning_rate=0.01)
optimizer.build(network.trainable_variables)
""",
    "helper": """
def strength(step, largest=0.5):
    return tf.random.stateless_uniform([], [random_seed, step], maxval=largest)
""",
    "distort": """
distort = lambda batch, step: batch + strength(step)
""",
    "train_step": """
def make_batches(number):
    def random_batch(step):
        start = [batch_size * step % number]
        return tf.gather(images, (start + tf.range(batch_size)) % number)
    return random_batch

random_batch = make_batches(32)

def train_step(step):
    with tf.GradientTape() as tape:
        outputs = network(distort(random_batch(step), step), training=True)
        loss = tf.reduce_mean((outputs - 1.0) ** 2)
    gradients = tape.gradient(loss, network.trainable_variables)
    optimizer.apply_gradients(zip(gradients, network.trainable_variables))
    return loss
""",
    "curve": """
learning_curve = tf.Variable(np.zeros([1, 2]), shape=[None, 2])
learning_curve.assign(np.zeros([0, 2]), read_value=False)
""",
    "saver": """
saver = Saver(
    network=network,
    optimizer=optimizer,
    global_step=global_step,
    learning_curve=learning_curve,
    train_step=train_step,
)
""",
    "restore": """
saver.restore(save_dir)
""",
    "train_steps": """
@tf.function(autograph=False)
def train_steps():
    strategy = tf.distribute.get_strategy()
    return strategy.run(train_step, [tf.cast(global_step.assign_add(1), tf.int32)])
""",
    "train": """
def train(number):
    '''The saves that succeeded, as a list of booleans.'''
    saved = []
    with saver.training() as interrupted:
        while number and not interrupted.is_set():
            number -= 1
            loss = train_steps()
            row = [int(global_step.numpy()), float(loss)]
            learning_curve.assign(np.vstack([learning_curve, row]))
            saved.append(saver.save())
    return saved
""",
}
_runs = itertools.count()


class Kernel:
    """A kernel in which all cells have been run, some of them changed.

    :param changes: Dictionary from texts in the cells, each there just once, to the new texts.
    :param until: Name of the last cell that is run.
    """

    def __init__(self, save_dir, changes=None, until="train"):
        self.names = {"__name__": "tiny_notebook", "save_dir": save_dir}
        self.cells = dict(CELLS)
        self.change(changes or {})
        names = list(CELLS)
        self.run(*names[: names.index(until) + 1])

    def change(self, changes):
        """Edit cells, without running them, and return their names."""
        changed = []
        for old, new in changes.items():
            [name] = [name for name, text in self.cells.items() if old in text]
            assert self.cells[name].count(old) == 1
            self.cells[name] = self.cells[name].replace(old, new)
            changed.append(name)
        return changed

    def run(self, *names):
        for name in names:
            text, file = self.cells[name], f"<{name} of the tiny notebook, run {next(_runs)}>"
            linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
            exec(compile(text, file, "exec"), self.names)

    def run_from(self, name):
        """Run all cells from one of them down."""
        names = list(CELLS)
        self.run(*names[names.index(name) :])

    def __getattr__(self, name):
        return self.names[name]

    def state(self):
        """All that training changes, as bytes."""
        variables = [
            *self.network.variables,
            *self.optimizer.variables,
            self.global_step,
            self.learning_curve,
        ]
        return [v.numpy().tobytes() for v in variables]


def files(folder):
    """The contents of all checkpoints in a folder and those in it, by path."""
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("cifar10_cnn-*")) if path.is_file()}


def numbers(folder):
    """The numbers of the checkpoints in a folder."""
    return sorted(int(path.name.split("-")[1].split(".")[0]) for path in folder.glob(f"cifar10_cnn-*{INDEX}"))


def values_of(path):
    reader = tf.train.load_checkpoint(str(path))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def write(path, values):
    """Write a checkpoint from values by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=[tf.constant(value) for value in values.values()],
    )


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    for ending in (INDEX, DATA):
        shutil.copy(f"{source}{ending}", f"{target}{ending}")


OTHER = {"random_seed = 1": "random_seed = 2"}  # Another training.


########################################################################
# 1. Another folder without a restart.


def test_1_another_folder_without_a_restart(tmp_path):
    kernel = Kernel(tmp_path / "one")
    kernel.train(3)
    state, kept = kernel.state(), files(tmp_path)
    kernel.names["save_dir"] = tmp_path / "two"
    with pytest.raises(
        CheckpointError, match="(?s)no checkpoint of this training in .*two.*restart the kernel"
    ):
        kernel.run("restore")
    assert kernel.state() == state and files(tmp_path) == kept and not (tmp_path / "two").exists()
    # What the message says: its checkpoint is copied there first.
    copy(tmp_path / "one" / "cifar10_cnn-3", tmp_path / "two" / "cifar10_cnn-3")
    kernel.run("restore")
    kernel.train(1)
    assert numbers(tmp_path / "two") == [3, 4] and numbers(tmp_path / "one") == [1, 2, 3]


def test_1_changed_without_a_restart(tmp_path):
    """The folder changed-1 is another folder too. The cell of `global_step` needn't be run again."""
    kernel = Kernel(tmp_path)
    kernel.train(3)
    kept = files(tmp_path)
    kernel.change(OTHER)
    kernel.run("settings")
    for name in ("network", "helper", "saver"):
        with pytest.raises(CheckpointError, match="restart the kernel"):
            kernel.run_from(name)
    assert files(tmp_path) == kept


########################################################################
# 2. Cells run again.

WIDER = {"Dense(3,": "Dense(4,"}


@pytest.mark.parametrize(
    ("cells", "changes"),
    [
        (["network", "optimizer", "train_steps", "train"], WIDER),
        (["network", "optimizer", "train_steps", "train"], {}),
        (["global_step"], {}),
        (["global_step", "train_steps"], {}),
        (["optimizer"], {}),
        (["curve"], {}),
    ],
)
def test_2_objects_made_again(cells, changes, tmp_path):
    kernel = Kernel(tmp_path)
    kernel.train(3)
    kept = files(tmp_path)
    kernel.change(changes)
    kernel.run(*cells)
    for call in (lambda: kernel.train(1), kernel.saver.save, lambda: kernel.run("restore")):
        with pytest.raises(CheckpointError, match="made again.*[Rr]estart the kernel"):
            call()
    assert files(tmp_path) == kept


@pytest.mark.parametrize("cells", [["global_step"], ["network", "optimizer"]])
def test_2_a_compiled_function_trains_the_old_objects(cells, tmp_path):
    """The saver saves the new ones, but `train_steps` was compiled with the old ones."""
    kernel = Kernel(tmp_path)
    kernel.train(3)
    kept = files(tmp_path)
    kernel.run(*cells, "saver", "restore")
    with pytest.raises(CheckpointError, match="still trains what was there before. Restart the kernel"):
        kernel.train(1)
    assert files(tmp_path) == kept


def test_2_harmless_cells_run_again(tmp_path):
    """Nobody is bothered, and all goes on to the bit."""
    whole = Kernel(tmp_path / "whole")
    whole.train(8)
    kernel = Kernel(tmp_path / "again")
    kernel.train(2)
    kernel.run("restore")
    kernel.train(1)
    for name in ("imports", "settings", "data", "helper", "distort", "train_step", "train_steps", "train"):
        kernel.run(name)
    kernel.train(1)
    kernel.run("saver")  # Its cell alone.
    kernel.train(1)
    kernel.run_from("saver")
    kernel.train(1)
    kernel.run_from("network")  # A new network, which takes over from the checkpoint.
    kernel.train(1)
    kernel.run_from("imports")
    kernel.train(1)
    assert kernel.state() == whole.state()


########################################################################
# 3. and 4. Another data set, and other changes.

CHANGES = {
    "data": ({"default_rng(5)": "default_rng(6)"}, "images.sha256, only there: "),
    "number of images": ({"random([32, 2]": "random([64, 2]"}, "images.shape[0], only here: 64"),
    "seed": (OTHER, "random_seed, only here: 2"),
    "batch size": ({"batch_size = 4": "batch_size = 8"}, "batch_size, only here: 8"),
    "precision": ({'precision = "float32"': 'precision = "mixed_bfloat16"'}, "only here: mixed_bfloat16"),
    "function of a distortion": (
        {"batch + strength": "batch - strength"},
        "distort, only here: lambda batch, step: batch - strength(step)",
    ),
    "function in a function": (
        {"[random_seed, step]": "[random_seed, 2 * step]"},
        "source of strength, only there: return tf.random.stateless_uniform([], [random_seed, step]",
    ),
    "default": (
        {"largest=0.5": "largest=0.25"},
        "source of strength, only here: def strength(step, largest=0.25)",
    ),
    "value of an outer function": (
        {"make_batches(32)": "make_batches(16)"},
        "source of make_batches.random_batch, only here: # number = 16",
    ),
    "class of a layer": ({"(inputs) * 2": "(inputs) * 3"}, "source of Dense.call, only here: return super()"),
    "layer of Keras": (
        {"    Dense(1": "    keras.layers.Dense(1"},
        "source of Dense.call, only there: def call(self, inputs):",
    ),
    "activation": ({'"relu"': '"tanh"'}, "activation, only here: tanh"),
    "learning rate": ({"learning_rate=0.01": "learning_rate=0.02"}, "learning_rate, only here: 0.02"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_3_and_4_changes_in_a_new_kernel(name, tmp_path, capsys):
    """They are named and kept apart, and each goes on from its own, whoever trained last."""
    changes, line = CHANGES[name]
    Kernel(tmp_path).train(7)
    capsys.readouterr()
    changed = Kernel(tmp_path, changes)
    output = capsys.readouterr().out
    assert f"The checkpoints in {tmp_path}/ are of another training." in output and line in output
    assert changed.global_step == 0
    kept = files(tmp_path)
    changed.train(9)
    assert kept.items() <= files(tmp_path).items()
    first = Kernel(tmp_path)
    assert first.global_step == 7
    first.train(2)
    assert Kernel(tmp_path, changes).global_step == 9
    assert numbers(tmp_path) == numbers(tmp_path / "changed-1") == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "name", set(CHANGES) - {"activation", "class of a layer", "layer of Keras", "learning rate", "precision"}
)
def test_3_and_4_changes_in_the_same_kernel(name, tmp_path):
    """Running the changed cell again doesn't mix two trainings, and neither does it from there down."""
    changes, line = CHANGES[name]
    kernel = Kernel(tmp_path)
    kernel.train(2)
    kept = files(tmp_path)
    kernel.run(*kernel.change(changes), *(["train_step"] if "data" in name or "images" in name else []))
    with pytest.raises(CheckpointError, match="has changed since") as caught:
        kernel.train(1)
    assert line.replace("there", "before").replace("here", "now") in str(caught.value)
    with pytest.raises(CheckpointError):
        kernel.run_from("network")
    assert files(tmp_path) == kept
    kernel.run_from("settings")  # With a new network and a new `global_step` it is like a new kernel.
    kernel.train(1)
    assert kept.items() <= files(tmp_path).items() and numbers(tmp_path / "changed-1") == [1]
    # Undone, the first one goes on.
    kernel.change({new: old for old, new in changes.items()})
    kernel.run_from("settings")
    assert kernel.train(1) == [True] and numbers(tmp_path) == [1, 2, 3]


# What is defined for a change, a change that uses it, what is edited then, and the line that says so.
WRITTEN = {
    "functools.partial": (
        "def shift(by, batch, step): return batch + by * strength(step)",
        {"lambda batch, step: batch + strength(step)": "functools.partial(shift, 0.5)"},
        ("shift, 0.5", "shift, 0.7"),
        "distort[1][0], only here: 0.7",
    ),
    "train_step as a functools.partial": (
        "",
        {
            "def train_step(step):": "def step_by(power, step):",
            "(outputs - 1.0) ** 2": "(outputs - 1.0) ** power",
            "learning_curve = tf": "train_step = functools.partial(step_by, 2.0)\nlearning_curve = tf",
        },
        ("outputs - 1.0", "outputs - 1.5"),
        "source of step_by, only here: loss = tf.reduce_mean((outputs - 1.5) ** power)",
    ),
    "method of an object": (
        "class Shift:\n"
        "    def __init__(self, by): self.by = by\n"
        "    def move(self, batch, step): return batch + self.by * strength(step)",
        {"lambda batch, step: batch + strength(step)": "Shift(0.5).move"},
        ("Shift(0.5)", "Shift(0.7)"),
        "distort[1][1].by, only here: 0.7",
    ),
    "decorator": (
        "def scaled(by):\n"
        "    def decorate(function):\n"
        "        @functools.wraps(function)\n"
        "        def scale(*arguments): return by * function(*arguments)\n"
        "        return scale\n"
        "    return decorate",
        {"largest=0.5):": "by=0.5): return drawn(step, by)\n\n@scaled(2.0)\ndef drawn(step, largest):"},
        ("by * function", "by + function"),
        "source of drawn', only here: return by + function(*arguments)",
    ),
    "slice": (
        "part = slice(0, 2)",
        {"batch + strength(step)": "batch[part] + strength(step)"},
        ("slice(0, 2)", "slice(0, 3)"),
        "part, only here: slice(0, 3, None)",
    ),
    "functools.partial in a layer": (
        "def shift(by, x): return x + by",
        {'activation="relu"': "activation=functools.partial(shift, 0.5)"},
        ("shift, 0.5", "shift, 0.7"),
        "activation[1][0], only here: 0.7",
    ),
    "layer with a function": (
        "class Apply(keras.layers.Layer):\n"
        "    def __init__(self, function): super().__init__(); self.function = function\n"
        "    def call(self, x): return self.function(x)",
        {"    Dense(1": "    Apply(lambda x: x + 0.5),\n    Dense(1"},
        ("x + 0.5", "x + 0.7"),
        "function, only here: lambda x: x + 0.7",
    ),
    "regularizer": (
        "class Small(keras.regularizers.Regularizer):\n"
        "    def __init__(self, by): self.by = by\n"
        "    def __call__(self, x): return self.by * tf.reduce_sum(x**2)",
        {
            'activation="relu"': 'activation="relu", kernel_regularizer=Small(0.5)',
            "tf.reduce_mean((outputs - 1.0) ** 2)": "outputs[0, 0] ** 2 + network.losses[0]",
        },
        ("x**2", "x**4"),
        "source of Small.__call__, only here: return self.by * tf.reduce_sum(x ** 4)",
    ),
    "schedule": (
        "class Warm(keras.optimizers.schedules.LearningRateSchedule):\n"
        "    def __init__(self, by): self.by = by\n"
        "    def __call__(self, step): return self.by * tf.cast(step, tf.float32)",
        {"learning_rate=0.01": "learning_rate=Warm(0.5)"},
        ("Warm(0.5)", "Warm(0.7)"),
        "optimizer.config.learning_rate.config.by, only here: 0.7",
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_3_and_4_what_a_learner_may_write(name, tmp_path, capsys):
    """It doesn't stop the saver, is the same in the next kernel, and when it is edited that is noticed."""
    definition, changes, (old, new), line = WRITTEN[name]
    changes = changes | {"batch_size = 4": f"batch_size = 4\nimport functools\n{definition}"}
    Kernel(tmp_path, changes).train(2)
    assert Kernel(tmp_path, changes).global_step == 2
    capsys.readouterr()
    edited = {key: change.replace(old, new) for key, change in changes.items()}
    assert edited != changes or old in "".join(CELLS.values())
    assert Kernel(tmp_path, edited).global_step == 0
    assert line in capsys.readouterr().out


def test_4_comments_layout_and_names_make_no_difference(tmp_path):
    Kernel(tmp_path).train(2)
    same = {
        "# Twice.": "# Two times.",
        "'''A layer of the notebook.'''": "'''Of the notebook.'''",
        "lambda batch, step: batch": "lambda batch, step:   batch",
        'name="layer_fc1"': 'name="first"',
        "def train(number):": "def train(number, unused=None):",
    }
    assert Kernel(tmp_path, same).global_step == 2


def test_4_the_first_twenty_differences_are_told(tmp_path, capsys):
    Kernel(tmp_path).train(2)
    head = "def strength(step, largest=0.5):\n"
    assert Kernel(tmp_path, {head: head + 30 * "    unused = 0\n"}).global_step == 0
    output = capsys.readouterr().out
    assert output.count("only here: unused = 0\n") == 20 and "\n  and 10 more\n" in output


########################################################################
# 5. Checkpoints of the version before this one.


def test_5_settings_that_were_added_later(tmp_path):
    """An older version recorded less. Its checkpoint opens, and the next one has this run's own identity."""
    Kernel(tmp_path).train(1)
    path = tmp_path / "cifar10_cnn-1"
    values = values_of(path)
    settings = json.loads(values[SETTINGS])
    old = {name: settings[name] for name in ("network", "variables", "optimizer", "random_seed")}
    write(path, values | {SETTINGS: json.dumps(old | {"pre_process_image": "def pre_process_image(): pass"})})

    kernel = Kernel(tmp_path)
    assert kernel.global_step == 1
    kernel.train(1)
    new = json.loads(values_of(tmp_path / "cifar10_cnn-2")[SETTINGS])
    assert new.keys() == settings.keys() and len(new) > 12
    assert all(new[name] == settings[name] for name in new.keys() - {"network", "optimizer"})
    # From now on a change is noticed.
    kept = files(tmp_path)
    Kernel(tmp_path, {"batch_size = 4": "batch_size = 8"}).train(1)
    assert kept.items() <= files(tmp_path).items() and numbers(tmp_path) == [1, 2]
    # And those with another seed never open.
    assert Kernel(tmp_path, OTHER).global_step == 0


########################################################################
# 6. Other checkpoints in the folder.


def test_6_a_newer_checkpoint_of_another_training(tmp_path, capsys):
    """As when a newer version of this project comes with another network: one's own goes on beside it."""
    Kernel(tmp_path).train(3)
    Kernel(tmp_path / "other", OTHER).train(5)
    copy(tmp_path / "other" / "cifar10_cnn-5", tmp_path / "cifar10_cnn-5")
    kept = files(tmp_path)
    capsys.readouterr()
    kernel = Kernel(tmp_path)
    output = capsys.readouterr().out
    assert f"Restored checkpoint from: {tmp_path}/cifar10_cnn-3\n" in output
    assert "also has newer checkpoints, of another training" in output
    kernel.train(4)
    assert kept.items() <= files(tmp_path).items() and numbers(tmp_path / "changed-1") == [4, 5, 6, 7]
    again = Kernel(tmp_path)
    again.train(1)
    assert again.global_step == 8 and 8 in numbers(tmp_path / "changed-1")
    assert Kernel(tmp_path, OTHER).global_step == 5


def test_6_a_gap_between_the_folders(tmp_path):
    for n, seed in enumerate((1, 2, 3), 1):
        Kernel(tmp_path, {"random_seed = 1": f"random_seed = {seed}"}).train(n)
    assert numbers(tmp_path / "changed-2") == [1, 2, 3]
    shutil.rmtree(tmp_path / "changed-1")
    assert Kernel(tmp_path, {"random_seed = 1": "random_seed = 3"}).global_step == 3
    Kernel(tmp_path, {"random_seed = 1": "random_seed = 4"}).train(1)
    assert numbers(tmp_path / "changed-1") == [1] and numbers(tmp_path / "changed-2") == [1, 2, 3]


def test_6_a_checkpoint_is_never_overwritten(tmp_path, capsys):
    """It was put there while the training was under way."""
    Kernel(tmp_path / "other", OTHER).train(2)
    kernel = Kernel(tmp_path / "mine")
    kernel.train(1)
    copy(tmp_path / "other" / "cifar10_cnn-2", tmp_path / "mine" / "cifar10_cnn-2")
    kept = files(tmp_path)
    kernel.names["train_steps"]()
    assert not kernel.saver.save()
    assert "COULD NOT SAVE" in (output := capsys.readouterr().out) and "of another training" in output
    assert files(tmp_path) == kept
    with pytest.raises(CheckpointError, match="saver.save"):
        kernel.run("restore")


@pytest.mark.parametrize("number", [1, 9])
def test_6_a_renamed_checkpoint_is_not_its_number(number, tmp_path, capsys):
    Kernel(tmp_path).train(5)
    copy(tmp_path / "cifar10_cnn-4", tmp_path / f"cifar10_cnn-{number}")
    kept = files(tmp_path)
    for step in (5, 6):
        kernel = Kernel(tmp_path)
        assert kernel.global_step == step
        kernel.train(1)
    assert (
        files(tmp_path)[tmp_path / f"cifar10_cnn-{number}{DATA}"] == kept[tmp_path / f"cifar10_cnn-4{DATA}"]
    )


########################################################################
# 7. and 8. Changed networks.

NETWORKS = {
    "dropout": {"    Dense(1": "    keras.layers.Dropout(0.5),\n    Dense(1"},
    "noise in a network in the network": {
        "    Dense(1": "    keras.Sequential([keras.layers.GaussianNoise(0.1)]),\n    Dense(1"
    },
    "SGD": {"keras.optimizers.Adam(learning_rate=0.01)": "keras.optimizers.SGD(0.01, momentum=0.9)"},
    "schedule": {"learning_rate=0.01": "keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.5)"},
    "weight decay": {"Adam(learning_rate=0.01)": "AdamW(learning_rate=0.01)"},
    "lambda as a layer": {"    Dense(1": "    keras.layers.Lambda(lambda x: x + 0.5),\n    Dense(1"},
    "lambda as an activation": {'activation="relu"': "activation=lambda x: tf.nn.relu(x) * 0.5"},
    "function as an activation": {"    Dense(1": "    keras.layers.Activation(tf.nn.softplus),\n    Dense(1"},
    "precision": {'precision = "float32"': 'precision = "mixed_bfloat16"'},
    "optimizer not built": {"optimizer.build(network.trainable_variables)": ""},
}


@pytest.mark.parametrize(
    "name", ["dropout", *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n != "dropout")]
)
def test_7_changed_networks_resume_to_the_bit(name, tmp_path):
    whole = Kernel(tmp_path / "whole", NETWORKS[name])
    whole.train(8)
    for number in (3, 1, 4):
        resumed = Kernel(tmp_path / "parts", NETWORKS[name])
        resumed.train(number)
    assert resumed.state() == whole.state()
    assert numbers(tmp_path / "parts") == [4, 5, 6, 7, 8]


def test_8_two_lambdas_in_a_line(tmp_path, capsys):
    """They are told apart by their source, whatever file the kernel has for it."""
    two = "    keras.layers.Lambda(lambda x: x + 1.0), keras.layers.Lambda(lambda x: x {} 2.0),\n    Dense(1"
    Kernel(tmp_path, {"    Dense(1": two.format("*")}).train(2)
    assert Kernel(tmp_path, {"    Dense(1": two.format("*")}).global_step == 2
    assert Kernel(tmp_path, {"    Dense(1": two.format("-")}).global_step == 0
    output = capsys.readouterr().out
    assert (
        "function, only there: lambda x: x * 2.0" in output
        and "function, only here: lambda x: x - 2.0" in output
    )
    assert "x + 1.0" not in output


########################################################################
# 9. What else is in the folder.


def test_9_others_with_lower_numbers_are_kept(tmp_path):
    """Those of another run, of the original program, of another one, damaged ones and half ones."""
    kernel = Kernel(tmp_path)
    kernel.train(5)
    kernel.names["global_step"].assign(95)
    kernel.optimizer.iterations.assign(95)
    kernel.train(5)
    assert numbers(tmp_path) == [96, 97, 98, 99, 100]
    Kernel(tmp_path / "other", OTHER).train(3)
    for number in (1, 2, 3):
        copy(tmp_path / "other" / f"cifar10_cnn-{number}", tmp_path / f"cifar10_cnn-{number}")
    write(tmp_path / "cifar10_cnn-20", original(Kernel(tmp_path / "none"), 20))
    write(tmp_path / "cifar10_cnn-30", {"weights": 1.0})
    copy(tmp_path / "cifar10_cnn-99", tmp_path / "cifar10_cnn-40")
    os.truncate(tmp_path / f"cifar10_cnn-40{DATA}", 100)
    (tmp_path / f"cifar10_cnn-50{INDEX}").write_text("an index")
    (tmp_path / f"cifar10_cnn-60{DATA}").write_text("data")
    own = {f"cifar10_cnn-{number}{ending}" for number in range(96, 101) for ending in (INDEX, DATA)}
    kept = {path: content for path, content in files(tmp_path).items() if path.name not in own}
    assert len(kept) == 6 + 6 + 2 + 2 + 2 + 2
    kernel.train(4)
    resumed = Kernel(tmp_path)
    assert resumed.global_step == 104
    resumed.train(4)
    assert kept.items() <= files(tmp_path).items()
    assert [n for n in numbers(tmp_path) if n > 60] == [104, 105, 106, 107, 108]


########################################################################
# 10. Files that can't be read or deleted.


@pytest.fixture
def as_user():
    """A function that takes root's rights from this process until the end of the test."""
    is_root = os.geteuid() == 0
    codecs.lookup("ascii")  # Python may lie in root's home, so filelock couldn't load it later.
    yield lambda: os.seteuid(65534) if is_root else None
    if is_root:
        os.seteuid(0)


def readable(folder):
    """Let another user into a folder of the tests."""
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)


@pytest.mark.parametrize("ending", [INDEX, DATA])
def test_10_a_file_that_cannot_be_read(ending, tmp_path, as_user):
    """It isn't damaged. It is named, and nothing is changed."""
    Kernel(tmp_path).train(2)
    kernel = Kernel(tmp_path / "none")
    state, kept = kernel.state(), files(tmp_path)
    file = tmp_path / f"cifar10_cnn-2{ending}"
    file.chmod(0)
    readable(tmp_path)
    as_user()
    with pytest.raises(CheckpointError, match=f"cifar10_cnn-2{ending} can't be read: Permission denied"):
        kernel.saver.restore(tmp_path)
    os.seteuid(os.getuid())
    assert kernel.state() == state and files(tmp_path) == kept


def test_10_files_that_cannot_be_deleted(tmp_path, as_user, capsys):
    """As in a folder where each may only delete what is his own. It is said once, and all is saved."""
    if os.geteuid():
        pytest.skip("Files of another user take the rights of root.")
    folder = tmp_path / "checkpoints"
    kernel = Kernel(folder)
    kernel.train(5)
    for path in folder.glob("training.*"):
        path.unlink()
    readable(tmp_path)
    folder.chmod(0o1777)
    capsys.readouterr()
    as_user()
    assert kernel.train(3) == [True] * 3
    output = capsys.readouterr().out
    assert output.count("Saved checkpoint.") == 3 and "COULD NOT" not in output
    assert output.count("can't be deleted, so they are kept") == 1
    os.seteuid(0)
    for path in folder.glob("training.*"):
        path.unlink()
    assert numbers(folder) == list(range(1, 9))
    kernel.train(1)  # Now it can.
    assert numbers(folder) == [5, 6, 7, 8, 9]


def test_10_a_look_while_another_kernel_saves(tmp_path):
    """Between its two renames the newest checkpoint looks damaged."""
    Kernel(tmp_path).train(3)
    index = tmp_path / f"cifar10_cnn-3{INDEX}"
    index.rename(tmp_path / "away")
    looking = Kernel(tmp_path)
    assert looking.global_step == 2
    (tmp_path / "away").rename(index)
    kept = files(tmp_path)
    with pytest.raises(CheckpointError, match="has a checkpoint after 3 iterations"):
        looking.train(1)
    assert files(tmp_path) == kept
    looking.run("restore")
    assert looking.global_step == 3


########################################################################
# 11. The learning rate by hand.


def test_11_learning_rate_set_by_hand(tmp_path, capsys):
    kernel = Kernel(tmp_path)
    kernel.train(1)
    kernel.optimizer.learning_rate = 0.002
    kernel.train(1)
    kernel.run("saver")  # Its cell run again doesn't take the lower rate for the optimizer's own.
    kernel.run("restore")
    capsys.readouterr()
    later = Kernel(tmp_path)
    output = capsys.readouterr().out
    assert later.global_step == 2 and later.optimizer.learning_rate == np.float32(0.002)
    assert "learning rate is 0.002" in output and "optimizer.learning_rate = 0.01" in output
    later.optimizer.learning_rate = 0.01
    later.train(1)
    capsys.readouterr()
    assert Kernel(tmp_path).optimizer.learning_rate == np.float32(0.01)
    assert "learning rate" not in capsys.readouterr().out


########################################################################
# 12. Folders.


def test_12_changing_the_directory(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    kernel = Kernel("checkpoints/")
    monkeypatch.chdir(tmp_path / "there")
    kernel.train(2)
    assert numbers(tmp_path / "here" / "checkpoints") == [1, 2] and not os.listdir(tmp_path / "there")
    assert (tmp_path / "here" / "checkpoints" / "training.lock").exists()


def test_12_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Kernel("~/checkpoints").train(1)
    assert numbers(tmp_path / "home" / "checkpoints") == [1] and not Path("~").exists()
    assert Kernel("~/checkpoints").global_step == 1


########################################################################
# 13. Interrupts.


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGINT],
        [signal.SIGTERM],
        [signal.SIGINT, signal.SIGTERM],
        [signal.SIGTERM, signal.SIGINT],
        [signal.SIGTERM, signal.SIGTERM],
    ],
)
@pytest.mark.parametrize("when", ["training", "saving"])
def test_13_interrupts_that_break_nothing_off(signals, when, tmp_path, monkeypatch, capsys):
    kernel = Kernel(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    owner, name = (tf.train.Checkpoint, "write") if when == "saving" else (np, "vstack")
    function = getattr(owner, name)

    def interrupted(*arguments):
        for number in signals:
            signal.raise_signal(number)
        return function(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    assert kernel.train(5) == [True]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert capsys.readouterr().out.count("a checkpoint is saved. Press stop again") == 1
    assert Kernel(tmp_path).global_step == 1


def test_13_breaking_off_waits_for_the_save(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(signal, "default_int_handler", signal.default_int_handler)
    kernel = Kernel(tmp_path)
    replace = os.replace

    def interrupted(source, target):
        replace(source, target)
        if DATA in str(target):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernel.train(5)
    assert "Saved checkpoint." in capsys.readouterr().out
    assert Kernel(tmp_path).global_step == 1


########################################################################
# 14. Iterations that aren't saved.


def test_14_unsaved_iterations_are_not_lost(tmp_path, monkeypatch):
    kernel = Kernel(tmp_path)
    kernel.train(2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("The disk is full")))
        assert kernel.train(3) == [False] * 3
    state = kernel.state()
    for cells in (["restore"], ["saver", "restore"]):
        with pytest.raises(CheckpointError, match="5 iterations, but they are not saved. Call saver.save"):
            kernel.run(*cells)
        assert kernel.state() == state
    assert kernel.saver.save()
    kernel.run("restore")
    assert kernel.state() == state


def test_14_broken_off(tmp_path):
    kernel = Kernel(tmp_path)
    with pytest.raises(KeyboardInterrupt), kernel.saver.training():
        kernel.train_steps()
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(CheckpointError, match="saver.save"):
        kernel.run("restore")
    kernel.train(1)  # It can just go on,
    kernel.run("restore")  # and then all is saved.
    assert kernel.global_step == 2


########################################################################
# 15. The saver's cell alone.


def test_15_training_before_restoring(tmp_path):
    kernel = Kernel(tmp_path, until="saver")
    kernel.run("train_steps", "train")
    for call in (lambda: kernel.train(1), kernel.saver.save):
        with pytest.raises(CheckpointError, match=r"run saver.restore\(save_dir\) first"):
            call()
    kernel.run("restore")
    kernel.train(1)
    assert numbers(tmp_path) == [1]


########################################################################
# 16. Power.


def test_16_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """A file before it gets its name, and the names before an older checkpoint goes."""
    kernel = Kernel(tmp_path)
    kernel.train(6)
    events = []

    def note(module, name, of):
        function = getattr(module, name)

        def noting(*arguments, **others):
            events.append((name, Path(of(*arguments)).name))
            return function(*arguments, **others)

        monkeypatch.setattr(module, name, noting)

    note(os, "fsync", lambda file: os.readlink(f"/proc/self/fd/{file}"))
    note(os, "replace", lambda source, target: target)
    note(Path, "rename", lambda path, target: target)
    note(Path, "unlink", lambda path: path)
    kernel.train(1)
    new = [f"cifar10_cnn-7{ending}" for ending in (DATA, INDEX)]
    events = [event for event in events if "training" not in event[1]]
    assert {*events[:2]} == {("fsync", name) for name in new}
    assert events[2:4] == [("replace", name) for name in new]
    assert ("fsync", tmp_path.name) in events[4:6] and events[6] == (
        "rename",
        f"cifar10_cnn-2{INDEX}.deleted",
    )
    assert [name for name, _ in events[7:]] == ["unlink", "unlink"]


########################################################################
# 17. Several processes.

WORKER = """
import os, sys
import tensorflow as tf
tf.distribute.experimental_set_strategy(tf.distribute.MultiWorkerMirroredStrategy())
from tests.test_saver import Kernel
kernel = Kernel(sys.argv[1])
print("BEGINS", flush=True)
kernel.train(int(sys.argv[2]))
print("ENDS AFTER", int(kernel.global_step.numpy()), flush=True)
"""


@pytest.fixture
def workers():
    """A function that begins to train in two processes that train together, each with its folder."""
    processes = []

    def start(folders, iterations):
        sockets = [socket.socket() for _ in range(2)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        cluster = {"worker": [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]}
        for s in sockets:
            s.close()
        for index, folder in enumerate(folders):
            task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, folder, str(iterations)],
                    cwd=ROOT,
                    env=os.environ | {"TF_CONFIG": json.dumps(task)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        return processes

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_17_processes_that_restored_different_iterations(workers, tmp_path):
    Kernel(tmp_path / "one").train(2)
    kept = files(tmp_path)
    outputs = [p.communicate(timeout=120)[0] for p in workers([tmp_path / "one", tmp_path / "two"], 5)]
    for output in outputs:
        assert "have restored: process 0: 2, process 1: 0" in output and "ENDS" not in output, output
    assert files(tmp_path) == kept


@pytest.mark.slow
def test_17_a_folder_in_use(workers, tmp_path):
    """Only the first process knows, but none waits for ever."""
    kernel = Kernel(tmp_path)
    with kernel.saver.training():
        outputs = [p.communicate(timeout=120)[0] for p in workers([tmp_path, tmp_path], 5)]
    assert "is in use: process" in outputs[0] and "process 0 can't begin" in outputs[1], outputs
    assert not files(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_17_one_of_the_processes_is_stopped(number, workers, tmp_path):
    """Both stop after the same iteration, with one checkpoint by the first."""
    processes = workers([tmp_path, tmp_path], 100_000)
    wait_for("Saved checkpoint.", processes[0])
    processes[number].send_signal(signal.SIGINT)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    ends = [output.rsplit("ENDS AFTER ", 1)[1].split()[0] for output in outputs]
    assert ends[0] == ends[1] and numbers(tmp_path)[-1] == int(ends[0])
    assert "Saved checkpoint." not in outputs[1]


########################################################################
# 18. Checkpoints of the original program.


def original(kernel, step):
    """What the original program would have saved: other names, values of their own, all different."""
    values = {"global_step": np.int32(step), "beta1_power": np.float32(0.9), "beta2_power": np.float32(0.999)}
    for v in kernel.network.trainable_variables:
        layer, kind = v.path.split("/")[-2:]
        layer = {"layer_softmax": "fully_connected"}.get(layer, layer)
        name = f"network/{layer}/{kind.replace('kernel', 'weights')}"
        for ending in ("", "/Adam", "/Adam_1"):
            random = np.random.default_rng(len(values) + 100 * step)
            values[name + ending] = random.random(v.shape, np.float32)
    return values | {"network/cross_entropy/Mean_average": np.float32(1)}


def test_18_a_checkpoint_of_2016(tmp_path, capsys):
    """It opens, trains on, resumes to the bit, and its files stay."""
    write(tmp_path / "cifar10_cnn-7", values := original(Kernel(tmp_path / "none"), 7))
    kept = files(tmp_path)
    capsys.readouterr()
    kernel = Kernel(tmp_path)
    output = capsys.readouterr().out
    assert f"Restored checkpoint of the original program from: {tmp_path}/cifar10_cnn-7\n" in output
    assert kernel.global_step == kernel.optimizer.iterations == 7 and len(kernel.learning_curve.numpy()) == 0
    for v, name in zip(
        kernel.network.variables,
        ["layer_fc1/weights", "layer_fc1/bias", "fully_connected/weights", "fully_connected/bias"],
        strict=True,
    ):
        assert (v.numpy() == values[f"network/{name}"]).all()
        moments = {m.path.split("/")[-1]: m for m in kernel.optimizer.variables}
        for ending, moment in (("Adam", "momentum"), ("Adam_1", "velocity")):
            mine = moments[f"{v.path.replace('/', '_')}_{moment}"]
            assert (mine.numpy() == values[f"network/{name}/{ending}"]).all()
    kernel.train(4)
    resumed = Kernel(tmp_path)
    assert resumed.global_step == 11
    resumed.train(4)
    kernel.train_steps()  # Without a break,
    for _ in range(3):
        kernel.train_steps()
    assert kernel.state()[:-1] == resumed.state()[:-1]  # but for the curve.
    assert kept.items() <= files(tmp_path).items() and numbers(tmp_path) == [7, 11, 12, 13, 14, 15]
    assert [row[0] for row in resumed.learning_curve.numpy()] == list(range(8, 16))


def test_18_the_newer_one_counts_and_neither_deletes_the_other(tmp_path):
    Kernel(tmp_path).train(3)
    write(tmp_path / "cifar10_cnn-2", original(Kernel(tmp_path / "none"), 2))
    own = Kernel(tmp_path)
    assert own.global_step == 3
    write(tmp_path / "cifar10_cnn-7", original(own, 7))
    kept = files(tmp_path)
    own.run("restore")  # In the same kernel: the curve must not be the one that was there.
    assert own.global_step == 7 and len(own.learning_curve.numpy()) == 0
    own.train(8)
    assert kept.items() <= files(tmp_path).items()
    assert numbers(tmp_path) == [1, 2, 3, 7, 11, 12, 13, 14, 15]


def test_18_in_the_place_of_ones_own(tmp_path):
    """With the same number: its files are there, and the curve of one's own isn't its."""
    Kernel(tmp_path).train(3)
    write(tmp_path / "cifar10_cnn-3", original(Kernel(tmp_path / "none"), 3))
    kernel = Kernel(tmp_path)
    assert kernel.global_step == 3 and len(kernel.learning_curve.numpy()) == 0


@pytest.mark.parametrize(
    "changes",
    [WIDER, {"keras.optimizers.Adam(learning_rate=0.01)": "keras.optimizers.SGD(0.01)"},
     {'    keras.layers.Dense(3, activation="relu", name="layer_fc1"),\n': ""}],
    ids=["wider", "SGD", "a layer less"],
)  # fmt: skip
def test_18_one_that_does_not_fit(changes, tmp_path, capsys):
    write(tmp_path / "cifar10_cnn-3", original(Kernel(tmp_path / "none"), 3))
    kept = files(tmp_path)
    kernel = Kernel(tmp_path, changes)
    assert "the original program saved it, but these don't fit: " in capsys.readouterr().out
    assert kernel.global_step == 0
    kernel.train(7)
    assert kept.items() <= files(tmp_path).items() and numbers(tmp_path) == [3]
    assert Kernel(tmp_path, changes).global_step == 7


@pytest.fixture(autouse=True)
def _precision_of_keras():
    yield
    keras.config.set_dtype_policy("float32")
