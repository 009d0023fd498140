"""The programs that `make bench` compares. Each runs in a process of its own:

    python -m benchmarks.contestants notebook

It prints a line when it is ready, then reads numbers of iterations from its input, a line each, and
prints how many seconds these took.
"""

import contextlib
import functools
import io
import os
import sys
import tempfile
import time

from tools.exercises import read_changes
from tools.notebook import DATA_PATH, run_cells

BATCH_SIZE = 64

# A turn is a part of a night: it prints and saves when a night does, not at its own end too.
NIGHT = {"is_last = (i_global == i_last) or interrupted.is_set()": "is_last = interrupted.is_set()"}

# One batch again and again, cropped and not distorted: no input work.
CORE = {
    "= random_batch(i_global)": "= images_test[:64], labels_test[:64]",
    "images = pre_process(images, training, seed)": "images = tf.cast(images[:, 4:28, 4:28], tf.float32)",
}


def notebook(change="as it is", replace=None):
    """The notebook's own optimize(), with the progress and the checkpoints of a night."""
    replace = read_changes()[change] | NIGHT | (replace or {})
    namespace = run_cells(DATA_PATH, tempfile.mkdtemp(), replace)
    # So that turns of 100 iterations, after 10 to begin with, end where the progress is printed. The test
    # set is far away: it is classified after 20,000, 30,000, ...
    namespace["global_step"].assign(10_090)
    return namespace["optimize"]


def two_devices():
    """The notebook on two logical devices, which share the same cores."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # As the notebook does, before TensorFlow is imported.
    from tools.devices import TWO_DEVICES, split_cpu

    split_cpu()
    return notebook(replace=TWO_DEVICES)


def best_network(change="wider"):
    """The iterations of the exercises' best network."""
    namespace = run_cells(DATA_PATH, tempfile.mkdtemp(), read_changes()[change])

    def run(number):
        for step in range(1, number + 1):
            float(namespace["train_step"](*namespace["random_batch"](step)))

    return run


def load_arrays():
    """The training set as uint8 pixels and class-numbers."""
    import cifar10

    cifar10.data_path = DATA_PATH
    images, cls, _ = cifar10.load_training_data()
    return images, cls


def keras_fit():
    """Keras' own way: random layers in the model, model.fit on a tf.data pipeline."""
    import keras
    import tensorflow as tf

    pixels, cls = load_arrays()
    layers = keras.layers
    he = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal")
    network = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Rescaling(1 / 255),
            layers.RandomCrop(24, 24),
            layers.RandomFlip("horizontal"),
            layers.RandomHue(0.1, value_range=(0, 1)),
            layers.RandomContrast(0.7, value_range=(0, 1)),
            layers.RandomBrightness(0.2, value_range=(0, 1)),
            layers.RandomSaturation(1.0, value_range=(0, 1)),
            layers.Conv2D(64, 5, padding="same", kernel_initializer=he),
            layers.BatchNormalization(scale=False),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 5, padding="same", activation="relu", kernel_initializer=he),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(256, activation="relu", kernel_initializer=he),
            layers.Dense(128, activation="relu", kernel_initializer=he),
            layers.Dense(10),
        ]
    )
    network.compile(
        keras.optimizers.Adam(1e-4, epsilon=1e-8),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # Much slower with it.
    )
    pixels, cls = tf.constant(pixels), tf.constant(cls)
    data = tf.data.Dataset.random(seed=0).map(lambda draw: draw % len(pixels)).batch(BATCH_SIZE)
    data = data.map(lambda idx: (tf.gather(pixels, idx), tf.gather(cls, idx))).prefetch(tf.data.AUTOTUNE)
    return lambda number: network.fit(data, steps_per_epoch=number, epochs=1, verbose=0)


def pytorch(**options):
    """The same network in PyTorch, its distortions compiled or not, in lower precision or not."""
    from benchmarks.pytorch_peer import Trainer

    return Trainer(*load_arrays(), **options).train_steps


def pytorch_best_network():
    """The exercises' best network in PyTorch."""
    from benchmarks.pytorch_peer import WideTrainer

    return WideTrainer(*load_arrays(), widths=[64, 256, 256], batch_size=500).train_steps


def sgemm():
    """Products of float32 matrices with as many operations as the iterations have: the machine's limit."""
    import tensorflow as tf

    # A product has the operations of an iteration: 103 MFLOP forwards and backwards for each of 64 images.
    size = round((64 * 103e6 / 2) ** (1 / 3))
    matrix = tf.random.normal([size, size], stddev=size**-0.5)

    @tf.function
    def multiply(number):
        product = matrix
        for _ in tf.range(number):
            product = tf.matmul(matrix, product)
        return product

    return lambda number: multiply(tf.constant(number)).numpy()


# The title of each in the table, and the function that makes it.
CONTESTANTS = {
    "notebook": ("this notebook, its own `optimize()`", notebook),
    "core": (
        "the same on one fixed batch, no input, no distortions",
        functools.partial(notebook, replace=CORE),
    ),
    "two_devices": ("the same on *several devices*: two logical ones on the same cores", two_devices),
    "faster": (
        "the notebook made faster: *loop in TensorFlow*",
        functools.partial(notebook, "loop in TensorFlow"),
    ),
    "pytorch": ("PyTorch, batched distortions, channels-last, fused Adam", pytorch),
    "pytorch_compiled": (
        "the same, the distortions compiled by `torch.compile`",
        functools.partial(pytorch, compiled=True),
    ),
    "lower": ("the notebook in *lower precision*", functools.partial(notebook, "lower precision")),
    "all_three": ("the notebook with *all three*", functools.partial(notebook, "all three")),
    "pytorch_lower": (
        "PyTorch in lower precision: `torch.autocast`, channels-last",
        functools.partial(pytorch, lower=True),
    ),
    "keras_fit": ("Keras `fit` with Keras' random layers", keras_fit),
    "sgemm": ("the machine's limit with 32 bits: `sgemm`, products of matrices", sgemm),
}

# These train on batches of 500 images.
BEST = {
    "best": ("the exercises' best network, *wider*, in this notebook", best_network),
    "best_lower": (
        "the same in lower precision",
        functools.partial(best_network, "wider in lower precision"),
    ),
    "pytorch_best": ("*wider* in PyTorch, channels-last, fused SGD", pytorch_best_network),
}


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with contextlib.redirect_stdout(io.StringIO()):
        _, make = (CONTESTANTS | BEST)[sys.argv[1]]
        run = make()
        run(10)
        print("ready", file=answers)
        for line in sys.stdin:
            start = time.perf_counter()
            run(int(line))
            print(time.perf_counter() - start, file=answers)


if __name__ == "__main__":
    main()
