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

from tools.exercises import CHANGES
from tools.notebook import DATA_PATH, run_cells

BATCH_SIZE = 64

# A turn is a part of a night: it prints and saves when a night does, not at its own end too.
NIGHT = {
    "if (i_global % 1000 == 0) or (i_global == i_last) or interrupted.is_set():": "if i_global % 1000 == 0:"
}

# One batch again and again, cropped and not distorted: no input work.
ONE_BATCH = "x_batch, y_true_batch = tf.constant(images_test[:64]), tf.constant(labels_test[:64])"
CORE = {
    "x_batch, y_true_batch = random_batch(step)\n\n    device": ONE_BATCH + "\n\n    device",
    "images = pre_process(images, training, seed)": "images = tf.cast(images[:, 4:28, 4:28], tf.float32)",
}


def notebook(replace=None):
    """The notebook's own optimize(), with the progress and the checkpoints of a night."""
    namespace = run_cells(DATA_PATH, tempfile.mkdtemp(), NIGHT | (replace or {}))
    # So that turns of 100 iterations, after 10 to begin with, end where the progress is printed. The test
    # set is far away: it is classified after 10,000, 20,000, ...
    namespace["global_step"].assign(10_090)
    return namespace["optimize"]


def two_replicas():
    """The notebook with MirroredStrategy on two logical devices, which share the same cores."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # As the notebook does, before TensorFlow is imported.
    from tools.devices import MIRRORED, split_cpu

    split_cpu()
    return notebook(MIRRORED)


def best_network():
    """The iterations of the exercises' best network."""
    namespace = run_cells(DATA_PATH, tempfile.mkdtemp(), CHANGES["wider"])
    return lambda number: float(namespace["train_steps"](namespace["tf"].constant(number)))


def load_arrays():
    """The training set as uint8 pixels and class-numbers."""
    import cifar10

    cifar10.data_path = DATA_PATH
    images, cls, _ = cifar10.load_training_data()
    return images, cls


def plain_network(*first_layers):
    """The network of plain Keras layers."""
    import keras

    he = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal")
    return keras.Sequential(
        [
            *first_layers,
            keras.layers.Conv2D(64, 5, padding="same", kernel_initializer=he),
            keras.layers.BatchNormalization(scale=False),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(64, 5, padding="same", activation="relu", kernel_initializer=he),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu", kernel_initializer=he),
            keras.layers.Dense(128, activation="relu", kernel_initializer=he),
            keras.layers.Dense(10),
        ]
    )


def obvious():
    """The obvious port: the original's lines with today's names, one call from Python for each step."""
    import keras
    import numpy as np
    import tensorflow as tf

    pixels, cls = load_arrays()
    images = pixels.astype(np.float32) / 255
    network = plain_network()
    random = np.random.default_rng()
    optimizer = keras.optimizers.Adam(1e-4, epsilon=1e-8)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def pre_process_image(image):
        image = tf.image.random_crop(image, [24, 24, 3])
        image = tf.image.random_flip_left_right(image)
        image = tf.image.random_hue(image, 0.05)
        image = tf.image.random_contrast(image, 0.3, 1.0)
        image = tf.image.random_brightness(image, 0.2)
        image = tf.image.random_saturation(image, 0.0, 2.0)
        return tf.clip_by_value(image, 0.0, 1.0)

    @tf.function
    def train_step(x, y):
        x = tf.map_fn(pre_process_image, x)
        with tf.GradientTape() as tape:
            loss = cross_entropy(y, network(x, training=True))
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))

    def run(number):
        for _ in range(number):
            idx = random.choice(len(images), size=BATCH_SIZE, replace=False)
            train_step(images[idx], cls[idx])

    return run


def keras_fit():
    """Keras' own way: random layers in the model, model.fit on a tf.data pipeline."""
    import keras
    import tensorflow as tf

    pixels, cls = load_arrays()
    layers = keras.layers
    network = plain_network(
        keras.Input((32, 32, 3)),
        layers.Rescaling(1 / 255),
        layers.RandomCrop(24, 24),
        layers.RandomFlip("horizontal"),
        layers.RandomHue(0.1, value_range=(0, 1)),
        layers.RandomContrast(0.7, value_range=(0, 1)),
        layers.RandomBrightness(0.2, value_range=(0, 1)),
        layers.RandomSaturation(1.0, value_range=(0, 1)),
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


def pytorch(compiled=False):
    """The same network in PyTorch, its distortions compiled or not."""
    from benchmarks.pytorch_peer import Trainer

    return Trainer(*load_arrays(), compiled).train_steps


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


CONTESTANTS = {
    "notebook": notebook,
    "core": functools.partial(notebook, CORE),
    "two_replicas": two_replicas,
    "pytorch": pytorch,
    "pytorch_compiled": functools.partial(pytorch, compiled=True),
    "obvious": obvious,
    "keras_fit": keras_fit,
    "sgemm": sgemm,
    "best_network": best_network,
    "pytorch_best_network": pytorch_best_network,
}


def main():
    name = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with contextlib.redirect_stdout(io.StringIO()):
        run = CONTESTANTS[name]()
        run(10)
        print("ready", file=answers)
        for line in sys.stdin:
            start = time.perf_counter()
            run(int(line))
            print(time.perf_counter() - start, file=answers)


if __name__ == "__main__":
    main()
