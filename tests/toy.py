"""A tiny notebook, whose cells the tests run, edit and run again, as a person does in Jupyter."""

import itertools
import linecache
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

INDEX, DATA = ".index", ".data-00000-of-00001"
CELLS = {
    "imports": """
import math
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
images_train = np.random.default_rng(5).random([32, 2], np.float32)
""",
    "distort": """
def strength(step, largest=0.5):
    return tf.random.stateless_uniform([], [random_seed, step], maxval=largest)

def pre_process(images, step):
    return images + strength(step)
""",
    "global_step": """
global_step = tf.Variable(0, dtype=tf.int64)
""",
    "layers": """
class Double(keras.layers.Dense):
    '''A layer of the notebook.'''
    def call(self, inputs):
        return super().call(inputs) * 2  # Twice.
""",
    "main_network": """
def main_network():
    return keras.Sequential([
        keras.Input([2]),
        keras.layers.Dense(3, activation="relu", name="layer_fc1"),
        Double(1, dtype="float32", name="layer_softmax"),
    ], name="network")
""",
    "network": """
keras.config.set_dtype_policy(precision)
keras.utils.set_random_seed(random_seed)
network = main_network()
""",
    "optimizer": """
optimizer = keras.optimizers.Adam(learning_rate=0.01)
""",
    "train_step": """
@tf.function
def train_step(x_batch):
    global_step.assign_add(1)
    with tf.GradientTape() as tape:
        outputs = network(pre_process(x_batch, global_step), training=True)
        loss = tf.reduce_mean((outputs - 1.0) ** 2)
    gradients = tape.gradient(loss, network.trainable_variables)
    optimizer.apply_gradients(zip(gradients, network.trainable_variables))
    return loss
""",
    "random_batch": """
def random_batch(step):
    random = np.random.default_rng([random_seed, step])
    return images_train[random.choice(len(images_train), size=batch_size, replace=False)]
""",
    "learning_curve": """
learning_curve = []
""",
    "saver": """
saver = Saver(
    network=network,
    optimizer=optimizer,
    global_step=global_step,
    learning_curve=learning_curve,
    functions=[main_network, random_batch, train_step],
)
""",
    "restore": """
saver.restore(save_dir)
""",
    "optimize": """
def optimize(num_iterations):
    '''Return the list of whether each save succeeded.'''
    saved = []
    i_first = int(global_step.numpy()) + 1
    with saver.training() as interrupted:
        for i_global in range(i_first, i_first + num_iterations):
            loss = float(train_step(random_batch(i_global)))
            assert math.isfinite(loss), f"Loss {loss} in iteration {i_global}"
            learning_curve.append([i_global, loss])
            saved.append(saver.save())
            if interrupted.is_set():
                break
    return saved
""",
}
OTHER = {"random_seed = 1": "random_seed = 2"}  # Makes another run.
TOGETHER = {  # Several processes or devices train together.
    "@tf.function\ndef train_step(x_batch):\n    global_step.assign_add(1)\n": "def train_part(x_batch):\n",
    "    return loss": """    return loss

@tf.function
def train_step(x_batch):
    global_step.assign_add(1)
    strategy = tf.distribute.get_strategy()
    return strategy.reduce("MEAN", strategy.run(train_part, [x_batch]), axis=None)""",
}
_runs = itertools.count()


class Kernel:
    """A kernel in which all cells have been run, some of them changed.

    :param changes: Dictionary from texts in the cells, each there just once, to the new texts.
    :param until: Name of the last cell that is run.
    """

    def __init__(self, save_dir, changes=None, until="optimize", name="tiny_notebook"):
        self.names = {"save_dir": save_dir} | ({"__name__": name} if name else {})
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

    def run_all(self):
        """Run all cells of a new kernel, and return it."""
        kernel = Kernel(self.names["save_dir"], until="imports")
        kernel.cells = self.cells
        kernel.run_from("settings")
        return kernel

    def __getattr__(self, name):
        return self.names[name]

    def state(self):
        """All that training changes, as bytes."""
        variables = [*self.network.variables, *self.optimizer.variables, self.global_step]
        return [v.numpy().tobytes() for v in variables] + [list(self.learning_curve)]


def files(folder):
    """The contents of all checkpoints in a folder and those in it, by path."""
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("cifar10_cnn-*")) if path.is_file()}


def numbers(folder):
    """The numbers of the checkpoints in a folder."""
    return sorted(int(path.name.split("-")[1].split(".")[0]) for path in folder.glob(f"cifar10_cnn-*{INDEX}"))


def values_of(path):
    """The values in a checkpoint by name."""
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
    """Copy the two files of a checkpoint."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for ending in (INDEX, DATA):
        shutil.copy(f"{source}{ending}", f"{target}{ending}")


def original_name(variable):
    """The name that a variable of the network had in the original program."""
    name = variable.path.replace("/layer_softmax/", "/fully_connected/").replace("/kernel", "/weights")
    return name.replace("_batch_normalize/", "/batch_normalize/")


def original(kernel, step):
    """What the original program would have saved: values of their own, all different."""
    values = {"global_step": np.int32(step), "beta1_power": np.float32(0.9), "beta2_power": np.float32(0.999)}
    for v in kernel.network.variables:
        for ending in ("", "/Adam", "/Adam_1") if v.trainable else ("",):
            random = np.random.default_rng(len(values) + 100 * step)
            values[original_name(v) + ending] = random.random(v.shape, np.float32)
    return values | {"network/cross_entropy/Mean_average": np.float32(1)}
