"""Trains the notebook's network on one and on two logical devices, for test_devices.py.

    python -m tests.replicas DATA_PATH FOLDER plain
    python -m tests.replicas DATA_PATH FOLDER normalized

TensorFlow's devices can only be chosen at its start, so this is a program of its own, and a process can
hold replicas of one network only. It prints a JSON object with the losses of the first iterations,
of the network without batch normalization or with it. Rounding grows in training, about ten times in five
iterations, so only ten are done.
"""

import json
import sys

import numpy as np
import tensorflow as tf

from tests.train import OFTEN
from tools.devices import MIRRORED, split_cpu
from tools.notebook import run_cells

NO_BATCH_NORMALIZATION = {
    'BatchNormalization(scale=False, epsilon=0.001, name="layer_conv1_batch_normalize"),': ""
}
# What the replicas do, done on one device: each half of the batch has its own mean and variance.
HALVES = {
    "return network(images[part], training=training)": "if not training: return network(images)\n"
    "        halves = [network(images[i::2], training=True) for i in (0, 1)]\n"
    "        return tf.reshape(tf.stack(halves, axis=1), [-1, num_classes])"
}


def main():
    data_path, folder, case = sys.argv[1:]
    split_cpu()

    def train(name, replace, iterations):
        tf.distribute.experimental_set_strategy(None)  # The notebook sets another one, or none.
        notebook = run_cells(data_path, f"{folder}/{name}", OFTEN | replace)
        notebook["optimize"](iterations)
        return notebook

    def losses(notebook):
        return notebook["learning_curve"].numpy()[:, 1].tolist()

    if case == "plain":
        one = train("one", NO_BATCH_NORMALIZATION, 10)
        two = train("two", NO_BATCH_NORMALIZATION | MIRRORED, 10)
        # Adam's averages of the gradients and of their squares.
        averages = [[v.numpy() for v in notebook["optimizer"].variables[2:]] for notebook in (one, two)]
        result = {
            "one": losses(one),
            "two": losses(two),
            "differences": [
                float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(*averages, strict=True)
            ],
        }
    else:
        result = {"halves": losses(train("halves", HALVES, 10))}
        train("mirrored", MIRRORED, 5)
        mirrored = train("mirrored", MIRRORED, 5)
        result["mirrored"] = losses(mirrored)

        # The checkpoint of two devices opens on one.
        tf.distribute.experimental_set_strategy(None)
        on_one = run_cells(data_path, f"{folder}/mirrored", OFTEN)
        result["step on one"] = int(on_one["global_step"])
        x = on_one["images_test"][:64]
        difference = on_one["y_pred"](x) - mirrored["y_pred"](x)
        result["difference on one"] = float(tf.reduce_max(tf.abs(difference)))
    print("\nRESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
