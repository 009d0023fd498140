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
from tools.devices import TWO_DEVICES, split_cpu
from tools.notebook import run_cells

NO_BATCH_NORMALIZATION = {
    'FusedBatchNormalization(scale=False, epsilon=0.001, name="layer_conv1_batch_normalize"),': ""
}
# What the replicas do, done on one device: each half of the batch has its own mean and variance.
HALVES = {
    "return tf.cast(network(images, training=training), tf.float32)": "if not training:\n"
    "    return network(images)\n"
    "halves = [network(images[i::2], training=True) for i in (0, 1)]\n"
    "return tf.reshape(tf.stack(halves, axis=1), [-1, num_classes])"
}


def main():
    data_path, folder, case = sys.argv[1:]
    split_cpu()

    def run(name, replace):
        tf.distribute.experimental_set_strategy(None)  # The notebook sets another one, or none.
        return run_cells(data_path, f"{folder}/{name}", OFTEN | replace)

    def train(name, replace, iterations):
        notebook = run(name, replace)
        notebook["optimize"](iterations)
        return notebook

    def losses(notebook):
        return [row[1] for row in notebook["learning_curve"]]

    if case == "plain":
        one = train("one", NO_BATCH_NORMALIZATION, 10)
        two = train("two", NO_BATCH_NORMALIZATION | TWO_DEVICES, 10)
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
        train("mirrored", TWO_DEVICES, 5)
        mirrored = train("mirrored", TWO_DEVICES, 5)
        result["mirrored"] = losses(mirrored)

        # The checkpoint of two devices opens on one, with the same program and with the tutorial's.
        images = mirrored["images_test"][:64]
        expected = mirrored["y_pred"](images).numpy()
        one_device = {old: new.replace(', "CPU:1"', "") for old, new in TWO_DEVICES.items()}
        start = {"saver.restore(save_dir)": f"saver.restore(save_dir, start_from={folder + '/mirrored'!r})"}
        for name, change in (("mirrored", one_device), ("started", start)):
            on_one = run(name, change)
            difference = np.abs(on_one["y_pred"](images).numpy() - expected).max()
            result[name + " on one"] = int(on_one["global_step"].numpy()), float(difference)
    print("\nRESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
